"""What a rollout was: its scored completions, its metrics over all ranks, whether there was anything to learn."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.batching import Ranks
from lit_posttrain.functional import has_spread
from lit_posttrain.rollout.engine import Completions

log = logging.getLogger(__name__)

MOSTLY_UNKNOWN = 0.5  # of the prompts' tokens


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


def rollout_metrics(record: RolloutRecord, ranks: Ranks) -> dict[str, Tensor]:
    """Take means over the completions of all ranks, by the names of the glossary. fp32 scalars.

    A reward's mean and standard deviation are over scorable completions, NaN where there is none;
    `rollout/zero_std_frac` is the share of groups whose rewards are all equal, `rollout/unique_frac` that of distinct
    completions within their group. `rollout/kept_frac`, the share of groups that are learnt from, is there with dynamic
    sampling only.
    """
    written = record.scored.completions
    names, sums = _sums(record)
    totals = dict(zip(names, ranks.sum(sums), strict=True))
    seconds = [written.generate_s if written else 0.0, record.scored.score_s]
    lengths = [written.tokens.completion_mask.sum(1).max().item()] if written else [0.0]
    maxima = ranks.max(torch.tensor(seconds + lengths))

    means = {  # NaN where there was nothing to count: not the same as a mean of 0
        **{f"rollout/{name}": (f"task:{name}", f"judged:{name}") for name in record.metric_names},
        "reward/mean": ("reward", "scored"),
        "reward/std": ("reward^2", "scored"),
        **{f"reward/{name}": (f"score:{name}", f"scored:{name}") for name in record.reward_names},
        "rollout/length_mean": ("length", "completions"),
        "rollout/length_max": None,
        "rollout/truncated_frac": ("truncated", "completions"),
        "rollout/zero_std_frac": ("flat_groups", "groups"),
        "rollout/unique_frac": ("distinct", "completions"),
        "advantage/mean": ("advantage", "completions"),
        "advantage/std": ("advantage^2", "completions"),
        "time/generate_s": None,
        "time/score_s": None,
    }
    if record.groups_kept is not None:
        means["rollout/kept_frac"] = ("kept", "groups")
    metrics = {name: totals[of[0]] / totals[of[1]] if of else maxima[0] for name, of in means.items()}
    for name in ("reward", "advantage"):
        mean_square = metrics[f"{name}/std"]
        metrics[f"{name}/std"] = (mean_square - metrics[f"{name}/mean"] ** 2).clamp(min=0).sqrt()
    metrics["time/score_s"], metrics["rollout/length_max"] = maxima[1], maxima[2]
    return {name: value.float() for name, value in metrics.items()}


def _sums(record: RolloutRecord) -> tuple[list[str], Tensor]:
    group_size, written = record.scored.group_size, record.scored.completions
    scored = ~record.scored.rewards.isnan()
    rewards = record.scored.rewards.masked_fill(~scored, 0).double()
    advantages = record.advantages.cpu().double()
    sums = {
        "completions": float(len(rewards)),
        "groups": float(len(rewards) // group_size),
        "kept": float(record.groups_kept or 0),
        "scored": scored.sum().item(),
        "reward": rewards.sum().item(),
        "reward^2": (rewards**2).sum().item(),
        "advantage": advantages.sum().item(),
        "advantage^2": (advantages**2).sum().item(),
        "flat_groups": (~has_spread(record.scored.rewards, group_size=group_size)).sum().item(),
        "length": 0.0,
        "truncated": 0.0,
        "distinct": 0.0,
    }
    for names, scores, total, count in (
        (record.reward_names, record.scored.scores, "score", "scored"),
        (record.metric_names, record.metric_scores, "task", "judged"),
    ):
        for index, name in enumerate(names):
            given = ~scores[:, index].isnan()
            sums[f"{count}:{name}"] = given.sum().item()
            sums[f"{total}:{name}"] = scores[:, index].masked_fill(~given, 0).sum().item()
    if written is not None:
        texts = written.texts
        sums["length"] = written.tokens.completion_mask.sum().item()
        sums["truncated"] = written.truncated.sum().item()
        sums["distinct"] = sum(
            len(set(texts[start : start + group_size])) for start in range(0, len(texts), group_size)
        )
    return list(sums), torch.tensor(list(sums.values()), dtype=torch.float64)


class SignalWatch:
    """Counts rollouts without a signal, and optimiser steps in which nothing was learnt.

    A warning comes with the first of them, and then when their number has doubled.
    """

    def __init__(self) -> None:
        self._rollouts = 0
        self._flat = 0  # rollouts whose rewards say nothing
        self._unknown = 0  # rollouts whose prompts are mostly unknown words
        self._idle_steps = 0
        self._reason = ""

    def saw_rollout(self, metrics: Mapping[str, Tensor], *, unknown_frac: float) -> None:
        """Look at a rollout.

        Args:
            metrics: of it, over all ranks.
            unknown_frac: share of unknown words among the tokens of the prompts.
        """
        self._rollouts += 1
        reason = ""
        if metrics["reward/mean"].isnan():
            reason = "no completion could be scored: the reward functions returned None for all of them"
        elif metrics["reward/std"] == 0:
            reason = "all completions had the same reward"
        elif metrics["rollout/zero_std_frac"] == 1:
            reason = "all completions of a prompt had the same reward"
        if reason:
            self._flat, self._reason = self._flat + 1, reason
            if _is_power_of_two(self._flat):
                log.warning("%s (in %s of %s rollouts so far)", reason, self._flat, self._rollouts)
        if unknown_frac > MOSTLY_UNKNOWN:
            self._unknown += 1
            if self._unknown == 1:
                log.warning(
                    "%.0f %% of the prompts' tokens are words that the tokenizer does not know", 100 * unknown_frac
                )

    def skipped_step(self) -> None:
        """Count a step in which nothing was learnt."""
        self._idle_steps += 1

    def say_at_the_end(self, steps: int) -> None:
        """Sum up what was wrong, if anything was.

        Args:
            steps: optimiser steps of the run.
        """
        if self._idle_steps:
            reason = self._reason or "no token had an advantage"
            log.warning("nothing was learnt in %s of %s steps: %s", self._idle_steps, steps, reason)
        elif self._flat:
            log.warning("%s in %s of %s rollouts", self._reason, self._flat, self._rollouts)
        if self._unknown:
            log.warning("most tokens of the prompts were unknown in %s of %s rollouts", self._unknown, self._rollouts)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        vars(self).update(state)


def _is_power_of_two(number: int) -> bool:
    return math.log2(number).is_integer()
