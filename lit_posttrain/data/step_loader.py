"""Optimiser steps of encoded rows as dataloaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from lit_posttrain.batching import PassLoader, StepPart
from lit_posttrain.batching.passes import Passes
from lit_posttrain.data.step_plan import StepPlan


class StepLoader(PassLoader):
    """The micro-batches of training, with a place in the data that goes into the checkpoint.

    Not a `torch.utils.data.DataLoader`: there Lightning would put in a sampler of its own, which deals rows out by rank
    before they make a step.

    Args:
        passes: gives micro-batches: a plan of the steps, with as many micro-batches as the Trainer accumulates, or
            somebody's own loader of micro-batches.
        trainer: the Lightning Trainer.
    """

    def __init__(self, passes: Passes, trainer: Any) -> None:
        self.plan = passes if isinstance(passes, StepPlan) else None
        super().__init__(passes, trainer, micro_batches=1 if self.plan is None else self.plan.micro_batches)

    def __iter__(self) -> Iterator[StepPart[Any]]:
        """The micro-batches of the current epoch, from where the run stands in it."""
        place = self._begin()
        position, end = place.position, self._end(place)
        units, inside = divmod(position, self._micro_batches)
        for part in islice(self._passes.batches(place.epoch, units), inside, None):
            if position >= end:
                return
            position += 1
            self._place = replace(place, position=position)
            yield part


class FixedLoader:
    """The same batches at every pass, for validation: all rows once, in the order of the source.

    Args:
        plan: its first epoch is given out.
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        """Batches in a pass."""
        return self.plan.num_steps * self.plan.micro_batches

    def __iter__(self) -> Iterator[StepPart[Any]]:
        return self.plan.parts(0)
