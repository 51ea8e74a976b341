"""Scored completions of a rollout, before it is known which of them are learnt from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.batching import Rollout
from lit_posttrain.functional import has_spread
from lit_posttrain.rollout.experience import Experience


@dataclass(frozen=True)
class Judged:
    """What a rollout's B completions were given by the reward functions.

    Attributes:
        rewards: of whole completions, per-token parts included, (B,); NaN = not scorable.
        token_rewards: the part that was given token by token, (B, C), 0 elsewhere.
        truncated: no EOS, (B,) bool.
    """

    rewards: Tensor
    token_rewards: Tensor
    truncated: Tensor


@dataclass(frozen=True)
class Samples:
    """This rank's completions of N prompts, G of each next to each other: B = N * G.

    Attributes:
        slots: the number of each prompt in the rollout, over all ranks and further batches, (N,) int64.
        experience: prompts and completions; None where the rank has no prompt.
        scores: what each of F reward functions gave, (B, F), NaN = None.
        rewards: their weighted sum, (B,).
        token_rewards: what of it was given token by token, B lists, empty where nothing was.
        group_size: G.
        score_s: seconds that scoring took.
    """

    slots: Tensor
    experience: Experience | None
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
        """The completions of some groups, (n,) to (n * G,)."""
        return (groups[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def judged(self, rows: Tensor, *, like: Rollout) -> Judged:
        """The rewards of some completions, in the shape of the rollout that is made of them.

        Args:
            rows: the completions, (n,).
            like: n rows of C tokens, or a masked row where n is 0.
        """
        device, shape = like.completion_ids.device, like.completion_ids.shape
        rewards, truncated = torch.zeros(shape[0]), torch.zeros(shape[0], dtype=torch.bool)
        token_rewards = torch.zeros(shape)
        if len(rows) > 0:
            assert self.experience is not None
            rewards, truncated = self.rewards[rows], self.experience.truncated.cpu()[rows]
        for place, row in enumerate(rows.tolist()):
            numbers = torch.tensor(self.token_rewards[row])
            token_rewards[place, : len(numbers)] = numbers
        return Judged(rewards.to(device), token_rewards.to(device), truncated.to(device))

    @classmethod
    def join(cls, parts: "Sequence[Samples]", *, pad_id: int) -> "Samples":
        """Several in one, in their order."""
        if len(parts) == 1:
            return parts[0]
        experiences = [part.experience for part in parts if part.experience is not None]
        return cls(
            slots=torch.cat([part.slots for part in parts]),
            experience=Experience.join(experiences, pad_id=pad_id) if experiences else None,
            scores=torch.cat([part.scores for part in parts]),
            rewards=torch.cat([part.rewards for part in parts]),
            token_rewards=[numbers for part in parts for numbers in part.token_rewards],
            group_size=parts[0].group_size,
            score_s=sum(part.score_s for part in parts),
        )


def first_with_spread(
    samples: Samples, *, count: int, gather: Callable[[list[int]], list[list[int]]]
) -> tuple[Tensor, Tensor]:
    """Choose groups with spread over all ranks, in the order of their slots: the same on any number of ranks.

    Args:
        samples: this rank's.
        count: groups to choose, over all ranks; fewer where there are not so many.
        gather: a list of each rank.

    Returns:
        The chosen groups of this rank, (n,), and their numbers among those of all ranks, (n,).
    """
    own: list[Any] = samples.slots[samples.spread].tolist()
    chosen = sorted(slot for slots in gather(own) for slot in slots)[:count]
    number = {slot: index for index, slot in enumerate(chosen)}
    groups = [group for group, slot in enumerate(samples.slots.tolist()) if slot in number]
    return torch.tensor(groups, dtype=torch.long), torch.tensor(
        [number[int(samples.slots[group])] for group in groups], dtype=torch.long
    )
