"""A training loader that knows its place: an exact length, and going on in the middle of a pass over the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch.distributed as dist


class Passes(Protocol):
    """Training data that are gone through again and again, each time in an order that can be made anew."""

    @property
    def num_batches(self) -> int | None:
        """Batches of a pass, None where their number is not known."""

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of pass `epoch` from number `start` on."""

    def identity(self) -> dict[str, Any]:
        """What contents and order of the batches depend on, as plain values by the names of arguments."""

    def state_dict(self, epoch: int, count: int) -> dict[str, Any]:
        """What `compare` needs beside the identity, of `count` batches that were used of pass `epoch`."""

    def compare(self, state: dict[str, Any]) -> bool:
        """Whether the data are still those of a checkpoint, as far as the identity does not tell."""


@dataclass(frozen=True)
class Place:
    """Where a run is in its data. A pass over them is an epoch of Lightning's, unless `max_steps` ends that early.

    Attributes:
        epoch: the pass, by Lightning's number.
        position: micro-batches of the pass that were used.
        start_step: optimiser steps that were done when the pass began.
    """

    epoch: int
    position: int
    start_step: int


class PassLoader(ABC):
    """Gives out the micro-batches of passes over the data, a fixed number of them for each unit of the data.

    Its length is exact, since only then Lightning does not fetch ahead. An epoch is one pass over the data, or as many
    steps as `max_steps` leaves, so that the last step of a run ends an epoch and validates.

    A checkpoint has the place at the end of the last whole optimiser step: what was given out of the next one comes
    again, for its gradient is in no checkpoint.

    Args:
        passes: the data.
        trainer: the Lightning Trainer.
        micro_batches: how many are made of a batch of `passes`, a unit: of a rollout, of an optimiser step.
    """

    def __init__(self, passes: Passes, trainer: Any, *, micro_batches: int) -> None:
        self._passes = passes
        self._trainer = trainer
        self._micro_batches = micro_batches
        self._stored: dict[str, Any] | None = None  # the state of a checkpoint that has not been taken up yet
        self._place: Place | None = None  # None before the first pass; its position counts what was given out

    @property
    def _pass_length(self) -> int | None:
        """Micro-batches of a pass over the data; None where their number is not known."""
        batches = self._passes.num_batches
        return None if batches is None else batches * self._micro_batches

    def __len__(self) -> int:
        """Micro-batches of Lightning's epoch; before a checkpoint is taken up, of the first epoch of the run.

        Lightning takes the length that it asks for first for that of all epochs: a run that resumes has to give the
        one that the whole run would have given.
        """
        if self._stored is not None or (self._place is None and self._trainer.ckpt_path is not None):
            return self._end(Place(0, position=0, start_step=0))
        return self._end(self._current_place())

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """The micro-batches of the current epoch, from where the run stands in it."""

    @property
    def place(self) -> Place:
        """The last place without what was used of an optimiser step that is not done."""
        return replace(self._last_place, position=self._used - self.unfinished)

    @property
    def unfinished(self) -> int:
        """Micro-batches that were used of an optimiser step that is not done."""
        if self._used == self._end(self._last_place):
            return 0  # Lightning steps at the end of an epoch, be the step whole or not
        return self._used % self._trainer.accumulate_grad_batches

    def state_dict(self) -> dict[str, Any]:
        """The places of all processes; Lightning stores them."""
        return {"ranks": self._of_all_ranks(self._stored or self._own_state())}

    def _own_state(self) -> dict[str, Any]:
        """That of this process, as tensors and plain values."""
        place = self.place
        return {
            "epoch": place.epoch,
            "position": place.position,
            "micro_batches": self._micro_batches,
            "num_batches": self._passes.num_batches,
            "identity": self._passes.identity(),
            "passes": self._passes.state_dict(place.epoch, -(-self._used // self._micro_batches)),
        }

    @property
    def _last_place(self) -> Place:
        """Where the last batch was given out; before the first one, the beginning."""
        return self._place or self._current_place()

    @property
    def _used(self) -> int:
        """Micro-batches of the pass that were used, without one that an exception interrupted."""
        progress = self._trainer.fit_loop.epoch_loop.batch_progress.current
        return self._last_place.position - (progress.ready - progress.processed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there when `take_up` is called, at the latest when the first batch is asked for."""
        ranks = state["ranks"]
        self._stored = ranks[self._trainer.global_rank if len(ranks) == self._trainer.world_size else 0]

    def changes(self) -> dict[str, tuple[Any, Any]]:
        """In what the data of the loaded checkpoint differ from these: before and now, by the names of arguments."""
        if self._stored is None:
            return {}
        before, now = self._stored["identity"], self._passes.identity()
        changed = {n: (before.get(n), now.get(n)) for n in {**before, **now} if before.get(n) != now.get(n)}
        return changed or ({} if self._passes.compare(self._stored["passes"]) else {"rows": ("", "")})

    def take_up(self) -> None:
        """Go to the place of the checkpoint that was loaded, now that the number of optimiser steps is known."""
        if self._stored is None:
            return
        state, self._stored = self._stored, None
        units, inside = divmod(state["position"], state["micro_batches"])
        position = units * self._micro_batches + inside  # between units their size may have changed
        steps = -(-position // self._trainer.accumulate_grad_batches)
        self._place = Place(state["epoch"], position, self._trainer.global_step - steps)

    def begin_anew(self) -> tuple[int, int | None]:
        """Leave the place of the checkpoint, whose data were others: the next epoch is a new pass.

        Returns:
            How many batches of the old pass were used, and how many it had, None where that is not known.
        """
        assert self._stored is not None
        state, self._stored = self._stored, None
        return -(-state["position"] // state["micro_batches"]), state["num_batches"]

    def _end(self, place: Place) -> int:
        """The position at which Lightning's epoch ends."""
        limits = [] if self._pass_length is None else [self._pass_length]
        if self._trainer.max_steps >= 0:
            steps = max(0, self._trainer.max_steps - place.start_step)
            limits.append(steps * self._trainer.accumulate_grad_batches)
        return min(limits)

    def _current_place(self) -> Place:
        """The place in Lightning's epoch, at its beginning where nothing of it was given out."""
        epoch = self._trainer.current_epoch
        if self._place is not None and self._place.epoch == epoch:
            return self._place
        return Place(epoch, position=0, start_step=self._trainer.global_step)

    def _begin(self) -> Place:
        self.take_up()  # in somebody else's module
        self._place = self._current_place()
        return self._place

    def _of_all_ranks(self, value: Any) -> list[Any]:
        if self._trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self._trainer.world_size
        dist.all_gather_object(values, value)
        return values
