"""A training loader that knows its place: an exact length, and going on in the middle of a pass over the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a run is in its data. A pass over them is an epoch of Lightning's, unless `max_steps` ends that early.

    Attributes:
        epoch: the pass.
        position: micro-batches of the pass that were used.
        offset: the position at which Lightning's epoch began; not 0 where a finished run goes on inside a pass.
        start_step: optimiser steps that were done then.
    """

    epoch: int
    position: int
    offset: int
    start_step: int


class PassLoader(ABC):
    """Gives out the micro-batches of passes over the data, a fixed number of them for each unit of the data.

    Its length is exact, since only then Lightning does not fetch ahead. An epoch is one pass over the data, or as many
    steps as `max_steps` leaves, so that the last step of a run ends an epoch and validates.

    Args:
        trainer: the Lightning Trainer.
        micro_batches: how many are made of a unit of the data: of a rollout, of an optimiser step.
    """

    def __init__(self, trainer: Any, *, micro_batches: int) -> None:
        self._trainer = trainer
        self._micro_batches = micro_batches
        self._resume: dict[str, Any] | None = None
        self._place: Place | None = None  # None before the first pass; its position counts what was given out
        self._first_length: int | None = None  # of the first epoch: Lightning takes it for that of all others too

    @property
    @abstractmethod
    def _pass_length(self) -> int | None:
        """Micro-batches of a pass over the data; None where their number is not known."""

    def __len__(self) -> int:
        """Micro-batches of Lightning's epoch: the current one, or the first before there is one."""
        place = self._place if self._place is not None and self._resume is None else self._next_place()
        return self._end(place) - place.offset

    def _end(self, place: Place) -> int:
        """The position at which Lightning's epoch ends."""
        limits = [] if self._first_length is None else [place.offset + self._first_length]
        if self._trainer.max_steps >= 0:
            steps_left = max(0, self._trainer.max_steps - place.start_step)
            limits.append(place.offset + steps_left * self._trainer.accumulate_grad_batches)
        if self._pass_length is not None:
            limits.append(self._pass_length)
        return min(limits)

    def _begin(self) -> Place:
        """Take up the place where the next epoch begins."""
        self._place, self._resume = self._next_place(), None
        if self._first_length is None:
            self._first_length = self._end(self._place) - self._place.offset
        return self._place

    def _moved(self, place: Place, position: int) -> None:
        self._place = replace(place, position=position)

    def _next_place(self) -> Place:
        """Where Lightning's next epoch begins."""
        step, resume = self._trainer.global_step, self._resume
        if resume is None and self._place is None:
            return Place(0, position=0, offset=0, start_step=step)
        if resume is None:
            assert self._place is not None
            last = self._place
            inside_pass = self._pass_length is not None and last.position < self._pass_length
            if inside_pass and last.position == self._end(last):  # a run that went on inside a pass has short epochs
                return Place(last.epoch, last.position, offset=last.position, start_step=step)
            return Place(last.epoch + 1, position=0, offset=0, start_step=step)
        # Between units a run may go on with another number of micro-batches.
        units, inside = divmod(resume["position"], resume["micro_batches"])
        position = units * self._micro_batches + inside
        same_epoch = resume["lightning_epoch"] == self._trainer.current_epoch
        pass_is_over = self._pass_length is not None and position >= self._pass_length
        cut_short = not same_epoch and resume["position"] < resume["end"]  # by `limit_train_batches`, not `max_steps`
        if pass_is_over or cut_short:
            return Place(resume["epoch"] + 1, position=0, offset=0, start_step=step)
        if same_epoch:
            return Place(resume["epoch"], position, resume["offset"], resume["start_step"])
        return Place(resume["epoch"], position, offset=position, start_step=step)

    def _place_to_store(self) -> Place:
        """The place without a batch that was given out and not used: what an exception interrupted comes again."""
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
        place = self._place or self._next_place()
        return replace(place, position=place.position - (progress.ready - progress.processed))

    def _place_state(self, place: Place) -> dict[str, Any]:
        """The place as plain numbers, for a checkpoint."""
        return {
            **asdict(place),
            "end": self._end(place),
            "lightning_epoch": self._trainer.current_epoch,
            "micro_batches": self._micro_batches,
        }
