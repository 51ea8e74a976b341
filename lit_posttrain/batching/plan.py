"""The plan of a rollout: which sequences make which optimiser step, and which go through the model together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_posttrain.batching.tokens import MicroBatch, Rollout


def plan_steps(
    lengths: Tensor,
    sequence_ids: Tensor,
    *,
    num_sequences: int,
    num_epochs: int,
    num_minibatches: int,
    num_micro_batches: int,
    seed: int,
) -> list[list[Tensor]]:
    """The local rows of every micro-batch of a rollout.

    Every epoch deals all sequences of all ranks into `num_minibatches` optimiser steps, by a permutation that is a
    function of `seed` and the epoch alone: what makes a step depends neither on the number of ranks nor of
    micro-batches. Within a step a rank's rows are sorted by length and cut into `num_micro_batches`, so that little
    padding is computed. Nothing has to divide anything: a micro-batch may be empty.

    Args:
        lengths: tokens of each local sequence, (B,).
        sequence_ids: the number of each local sequence among those of all ranks, (B,), below `num_sequences`.
        num_sequences: how many sequences there are over all ranks.
        num_epochs: passes over the rollout.
        num_minibatches: optimiser steps in an epoch.
        num_micro_batches: micro-batches in an optimiser step on each rank.
        seed: any integer, the same on all ranks.

    Returns:
        `num_epochs * num_minibatches` steps, each a list of `num_micro_batches` tensors of local row numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    local_row = torch.full((num_sequences,), -1, dtype=torch.long)
    local_row[sequence_ids] = torch.arange(len(sequence_ids))
    steps = []
    for _ in range(num_epochs):
        order = (
            torch.randperm(num_sequences, generator=generator) if num_minibatches > 1 else torch.arange(num_sequences)
        )
        for sequences in order.tensor_split(num_minibatches):
            rows = local_row[sequences]
            rows = rows[rows >= 0].sort().values
            rows = rows[lengths[rows].argsort(stable=True)]
            steps.append(list(rows.tensor_split(num_micro_batches)))
    return steps


def in_batches(rollout: Rollout, values_of: Callable[[Rollout], Tensor], *, batch_size: int) -> Tensor:
    """Compute a value for every completion token, a few rows of similar length at a time.

    Args:
        rollout: B sequences.
        values_of: from a part of the rollout, without columns of padding, to (b, c <= C).
        batch_size: rows of a part.

    Returns:
        (B, C), 0 behind the end of a row's part.
    """
    order = rollout.lengths.argsort(stable=True)
    whole = None
    for rows in order.split(batch_size):
        values = values_of(rollout.select(rows))
        whole = values.new_zeros(rollout.completion_ids.shape) if whole is None else whole
        whole[rows, : values.shape[1]] = values
    assert whole is not None  # a rollout has at least one row
    return whole


@dataclass(frozen=True, eq=False)
class PlannedRollout:
    """Gives out the micro-batches of a rollout by number, and can be stored in the middle.

    Args:
        rollout: this rank's sequences, (B, ...); a masked row where it has none.
        steps: local rows of each micro-batch of each optimiser step (`plan_steps`).
        normalizers: the loss denominator of each step over all ranks, (S,).
        skip_steps: whether the optimiser is left alone in each step, (S,) bool, the same on all ranks.
        pad_id: for the masked row that stands in where a micro-batch has no row.
    """

    rollout: Rollout
    steps: list[list[Tensor]]
    normalizers: Tensor
    skip_steps: Tensor
    pad_id: int

    def micro_batch(self, index: int) -> MicroBatch:
        """The `index`-th micro-batch, counted over the steps."""
        step, part = divmod(index, len(self.steps[0]))
        rows = self.steps[step][part]
        if len(rows) > 0:
            chosen = self.rollout.select(rows.to(self.rollout.prompt_ids.device))
        else:
            chosen = Rollout.masked_row(self.pad_id, like=self.rollout)
        return MicroBatch(chosen, self.normalizers[step], skip_step=bool(self.skip_steps[step]))

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU and plain types only, so that a checkpoint loads with `weights_only=True`."""
        return {
            "rollout": dict(vars(self.rollout.to("cpu"))),
            "steps": self.steps,
            "normalizers": self.normalizers.cpu(),
            "skip_steps": self.skip_steps.cpu(),
            "pad_id": self.pad_id,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "PlannedRollout":
        """The inverse of `state_dict`."""
        return cls(
            Rollout(**state["rollout"]),
            state["steps"],
            state["normalizers"],
            state["skip_steps"],
            pad_id=state["pad_id"],
        )


T = TypeVar("T")
_NOTHING = object()


def interleave_ranks(shares: Sequence[Sequence[T]]) -> list[T]:
    """What was made of a batch's prompts, in the order of the batch.

    Args:
        shares: one entry for each prompt of a rank; rank r has the prompts r, r + world size, ... of the batch.

    >>> interleave_ranks([["a", "c", "e"], ["b", "d"]])
    ['a', 'b', 'c', 'd', 'e']
    """
    turns = zip_longest(*shares, fillvalue=_NOTHING)
    return [each for turn in turns for each in turn if each is not _NOTHING]  # type: ignore[misc]
