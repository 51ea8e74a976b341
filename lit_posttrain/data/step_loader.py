"""Optimiser steps of encoded rows as dataloaders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lit_posttrain.batching import PassLoader, StepPart
from lit_posttrain.data.step_plan import StepPlan


class StepLoader(PassLoader):
    """The micro-batches of training, with a place in the data that goes into the checkpoint.

    Not a `torch.utils.data.DataLoader`: there Lightning would put in a sampler of its own, which deals rows out by rank
    before they make a step.

    Args:
        plan: of the steps, with as many micro-batches as the Trainer accumulates.
        trainer: the Lightning Trainer.
    """

    def __init__(self, plan: StepPlan, trainer: Any) -> None:
        super().__init__(trainer, micro_batches=plan.micro_batches)
        self.plan = plan

    @property
    def _pass_length(self) -> int:
        return self.plan.num_steps * self.plan.micro_batches

    def __iter__(self) -> Iterator[StepPart[Any]]:
        """The micro-batches of one epoch, from where a checkpoint left off."""
        place = self._begin()
        position, end = place.position, self._end(place)
        parts = self.plan.parts(place.epoch, start=position)
        while position < end:
            part = next(parts)
            position += 1
            self._moved(place, position)
            yield part

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, as plain numbers."""
        return {
            **self._place_state(self._place_to_store()),
            "batch_size": self.plan.batch_size,
            "sizes": self.plan.sizes,
            "packing": self.plan.packing,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next iteration.

        Raises:
            ValueError: if the rows or the steps are others than those of the checkpoint.
        """
        inside_step = state["position"] % state["micro_batches"] != 0
        if inside_step and state["micro_batches"] != self._micro_batches:
            raise ValueError(
                f"the checkpoint was made inside a step of {state['micro_batches']} micro-batches, this run's have "
                f"{self._micro_batches}: resume with the same `accumulate_grad_batches`."
            )
        if inside_step and state.get("packing", False) != self.plan.packing:
            raise ValueError(
                "the checkpoint was made inside a step, and `data.packing` has changed since, which cuts a step into "
                f"other micro-batches: resume with `data.packing={str(not self.plan.packing).lower()}`."
            )
        for name, own in (("batch_size", self.plan.batch_size), ("sizes", self.plan.sizes)):
            if state["position"] > 0 and state[name] != own:
                what = "`data.batch_size`" if name == "batch_size" else "the number of rows of each source"
                raise ValueError(
                    f"the checkpoint was made in the middle of an epoch, and {what} has changed since, from "
                    f"{state[name]} to {own}: resume with the same data, or start from the run's export "
                    "(`model=local model.path=<run>/export`)."
                )
        self._resume = state


class FixedLoader:
    """The same batches at every pass, for validation: all rows once, in the order of the source.

    Args:
        plan: without shuffling.
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        """Batches in a pass."""
        return self.plan.num_steps * self.plan.micro_batches

    def __iter__(self) -> Iterator[StepPart[Any]]:
        return self.plan.parts(0)
