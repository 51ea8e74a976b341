"""A rollout together with the plan of the optimiser steps that are made of it."""

from typing import Any

from torch import Tensor

from lit_posttrain.batching.tokens import MicroBatch, Rollout


class PlannedRollout:
    """Gives out the micro-batches of a rollout by number, and can be stored in the middle.

    Args:
        rollout: this rank's sequences, (B, ...); a masked row where it has none.
        steps: local rows of each micro-batch of each optimiser step (`plan_steps`).
        normalizers: the loss denominator of each step over all ranks, (S,).
        skip_steps: whether the optimiser is left alone in each step, (S,) bool, the same on all ranks.
        pad_id: for the masked row that stands in where a micro-batch has no row.
    """

    def __init__(
        self,
        rollout: Rollout,
        steps: list[list[Tensor]],
        normalizers: Tensor,
        skip_steps: Tensor,
        *,
        pad_id: int,
    ) -> None:
        self.rollout = rollout
        self.steps = steps
        self.normalizers = normalizers
        self.skip_steps = skip_steps
        self.pad_id = pad_id

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
            "rollout": self.rollout.to("cpu").fields(),
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
