"""A rollout together with the plan of the optimiser steps that are made of it."""

from typing import Any

import torch
from torch import Tensor

from lit_posttrain.batching.tokens import MicroBatch, Rollout


class PlannedRollout:
    """Gives out the micro-batches of a rollout by number, and can be stored in the middle.

    Args:
        rollout: this rank's sequences, (B, ...); None where it has none.
        steps: local rows of each micro-batch of each optimiser step (`plan_steps`).
        normalizers: the loss denominator of each step over all ranks, (S,).
        skip_steps: whether the optimiser is left alone in each step, (S,) bool, the same on all ranks.
        pad_id: for the masked row that stands in where a micro-batch has no row.
    """

    def __init__(
        self,
        rollout: Rollout | None,
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
        if self.rollout is not None and len(rows) > 0:
            chosen = self.rollout.select(rows.to(self.rollout.prompt_ids.device))
        else:
            chosen = _masked_row(self.rollout, self.pad_id)
        return MicroBatch(chosen, self.normalizers[step], skip_step=bool(self.skip_steps[step]))

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU and plain types only, so that a checkpoint loads with `weights_only=True`."""
        fields = None if self.rollout is None else self.rollout.to("cpu").fields()
        return {
            "rollout": fields,
            "steps": self.steps,
            "normalizers": self.normalizers.cpu(),
            "skip_steps": self.skip_steps.cpu(),
            "pad_id": self.pad_id,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "PlannedRollout":
        """The inverse of `state_dict`."""
        rollout = None if state["rollout"] is None else Rollout(**state["rollout"])
        return cls(rollout, state["steps"], state["normalizers"], state["skip_steps"], pad_id=state["pad_id"])


def _masked_row(rollout: Rollout | None, pad_id: int) -> Rollout:
    """One row of a single token that counts for nothing: a rank without sequences still runs forward and backward."""
    ids = torch.full((1, 1), pad_id)
    zeros = torch.zeros(1, 1, dtype=torch.float32 if rollout is None else rollout.advantages.dtype)
    real = torch.ones(1, 1, dtype=torch.bool)
    return Rollout(
        prompt_ids=ids,
        prompt_mask=real,
        completion_ids=ids,
        completion_mask=real,
        loss_mask=~real,
        advantages=zeros,
        old_logprobs=zeros if rollout is None or rollout.old_logprobs is not None else None,
        ref_logprobs=zeros if rollout is None or rollout.ref_logprobs is not None else None,
    )
