"""What a rollout was: completions with their rewards, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_posttrain.functional import has_spread
from lit_posttrain.rollout.engine import Completions


@dataclass(frozen=True)
class ScoredCompletions:
    """This rank's completions of N prompts with their rewards, G of each next to each other: B = N * G.

    Attributes:
        prompt_index: the number of each prompt in the rollout, over all ranks and further batches, (N,) int64.
        completions: what the policy wrote; None where the rank has no prompt.
        scores: what each of F reward functions gave, (B, F), NaN = None.
        rewards: their weighted sum, (B,).
        token_rewards: what of it was given token by token, B lists, empty where nothing was.
        group_size: G.
        score_s: seconds that scoring took.
    """

    prompt_index: Tensor
    completions: Completions | None
    scores: Tensor
    rewards: Tensor
    token_rewards: list[list[float]]
    group_size: int
    score_s: float

    @property
    def spread(self) -> Tensor:
        """Which groups have two rewards that differ: (N,) bool."""
        return has_spread(self.rewards, group_size=self.group_size)

    def rows_of(self, groups: Tensor) -> Tensor:
        """Number the completions of some groups, (n,) to (n * G,)."""
        return (groups[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    @classmethod
    def join(cls, parts: "Sequence[ScoredCompletions]", *, pad_id: int) -> "ScoredCompletions":
        """Put several together, in their order."""
        if len(parts) == 1:
            return parts[0]
        written = [part.completions for part in parts if part.completions is not None]
        return cls(
            prompt_index=torch.cat([part.prompt_index for part in parts]),
            completions=Completions.join(written, pad_id=pad_id) if written else None,
            scores=torch.cat([part.scores for part in parts]),
            rewards=torch.cat([part.rewards for part in parts]),
            token_rewards=[numbers for part in parts for numbers in part.token_rewards],
            group_size=parts[0].group_size,
            score_s=sum(part.score_s for part in parts),
        )


@dataclass(frozen=True)
class RolloutRecord:
    """This rank's part of a rollout as the reward functions saw it.

    Attributes:
        index: the number of the rollout in the run.
        step: optimiser steps done when it was sampled.
        scored: its B completions with their rewards.
        reward_names: the F reward functions.
        metric_names: the S scores of validation, which say how good a completion is whatever it was rewarded for.
        metric_scores: (B, S), NaN = None.
        shaping: what was added to the rewards before they were compared (a KL, an overlong penalty), (B,).
        advantages: means over the tokens of each completion, (B,).
        groups_kept: groups that are learnt from, None where that is all of them.
    """

    index: int
    step: int
    scored: ScoredCompletions
    reward_names: list[str]
    metric_names: list[str]
    metric_scores: Tensor
    shaping: Tensor
    advantages: Tensor
    groups_kept: int | None

    @property
    def num_tokens(self) -> int:
        """Completion tokens sampled."""
        written = self.scored.completions
        return 0 if written is None else int(written.tokens.completion_mask.sum())
