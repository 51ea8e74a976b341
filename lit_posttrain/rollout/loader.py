"""Rollouts as data: a training loader that turns prompt batches into the micro-batches of optimiser steps."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from lightning import Trainer

from lit_posttrain.batching import MicroBatch, PassLoader, Place, PlannedRollout
from lit_posttrain.rollout.counter_rng import stable_hash
from lit_posttrain.rollout.side_stream import SideStream

PromptBatch = list[dict[str, Any]]


class RolloutMaker(Protocol):
    """What the loader asks of a module."""

    seed: int
    max_refills: int

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made of one rollout."""

    def make_rollout(self, rows: PromptBatch, index: int, more_rows: Callable[[], PromptBatch]) -> PlannedRollout:
        """Complete, score and plan this rank's prompts of the `index`-th rollout of the run; more are to be had."""


@runtime_checkable
class StartsAnywhere(Protocol):
    """A prompt loader that can begin an epoch at a given batch without making those before it."""

    def batches(self, start: int) -> Iterator[PromptBatch]:
        """The batches of the current epoch from number `start` on."""


@runtime_checkable
class KnowsItsEpoch(Protocol):
    """A loader or sampler whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""


class RolloutLoader(PassLoader):
    """Pulls a prompt batch, lets the module make a rollout of it, gives out its micro-batches; then the next.

    Its length is exact, since only then Lightning does not fetch ahead, which would sample a rollout before the last
    update on the one before. An epoch is one pass over the prompts, or as many steps as `max_steps` leaves. Under the
    same seed the order of a stock shuffling `DataLoader` is a function of the epoch too, and not of the global random
    numbers, so that a resumed run sees the same prompts. On several ranks a pass is as long as that of the rank with
    most prompt batches; in its last rollouts the others take part without prompts, since all must join the collectives.

    Args:
        prompts: gives lists of row dictionaries, this rank's part of a prompt batch each. Without a length it may go on
            for ever, and the Trainer needs `max_steps`.
        maker: the module.
        trainer: its Trainer.

    Raises:
        ValueError: if neither the prompts nor `max_steps` bound an epoch, or there are no prompts.
    """

    def __init__(self, prompts: Iterable[PromptBatch], maker: RolloutMaker, trainer: Trainer) -> None:
        super().__init__(trainer, micro_batches=maker.steps_per_rollout * trainer.accumulate_grad_batches)
        self._prompts = prompts
        self._maker = maker
        self._rollouts_made = 0
        self._current: PlannedRollout | None = None
        self._more_prompts = SideStream(self._prompt_batches)
        self._more_places = [(0, 0), (0, 0)]  # of the side stream, before and after the current rollout
        if num_batches(prompts) == 0:
            raise ValueError("there are no prompts to train on: the training prompt loader is empty.")
        if maker.max_refills > 0 and getattr(prompts, "persistent_workers", False):
            raise ValueError(
                "`max_refills` goes through the prompts a second time meanwhile, which a DataLoader with persistent "
                "workers cannot: use `persistent_workers=False`."
            )
        if num_batches(prompts) is None and trainer.max_steps < 0:
            raise ValueError("prompts without a length need `trainer.max_steps`: nothing else says when to stop.")

    @cached_property
    def _pass_length(self) -> int | None:
        """Micro-batches of a pass over the prompts, by the rank that has most; None where their number is not known.

        All ranks ask for it together, when Lightning first takes the length of the loader.
        """
        batches = self._of_all_ranks(num_batches(self._prompts))
        return None if None in batches else max(batches) * self._micro_batches

    def __iter__(self) -> Iterator[MicroBatch]:
        """The micro-batches of one epoch, from where a checkpoint left off."""
        place = self._begin()
        position, end = place.position, self._end(place)
        prompts = self._prompt_batches(place.epoch, start=-(-position // self._micro_batches))
        while position < end:
            number = position % self._micro_batches
            if number == 0:
                rows = next(prompts, None)
                if not self._trainer.strategy.reduce_boolean_decision(rows is not None, all=False):
                    return
                rows = rows or []  # where other ranks still have prompts this one takes part without
                before = self._more_places[-1]
                self._more_prompts.place = before  # an interrupted rollout may have moved it
                self._current = self._maker.make_rollout(rows, self._rollouts_made, self._more_prompts)
                self._more_places = [before, self._more_prompts.place]
                self._rollouts_made += 1
            assert self._current is not None  # a position inside a rollout comes with its rollout
            position += 1
            self._moved(place, position)
            yield self._current.micro_batch(number)

    def state_dict(self) -> dict[str, Any]:
        """The place in the data and the rollout that is being used, of all ranks; Lightning stores it."""
        place = self._place_to_store()
        position = place.position
        given_out = position if self._place is None else self._place.position
        taken_back = self._rollouts_in(given_out) - self._rollouts_in(position)
        inside = position % self._micro_batches != 0
        state = {
            **self._place_state(place),
            "rollouts_made": self._rollouts_made - taken_back,
            "more_place": list(self._more_places[0 if taken_back else 1]),
            "current": self._current.state_dict() if inside and self._current is not None else None,
        }
        return {"ranks": self._of_all_ranks(state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next iteration.

        Raises:
            ValueError: if the number of ranks or of micro-batches in a rollout has changed in the middle of a rollout.
        """
        ranks = state["ranks"]
        own = ranks[self._trainer.global_rank if len(ranks) == self._trainer.world_size else 0]
        if own["current"] is not None:
            if len(ranks) != self._trainer.world_size:
                raise ValueError(
                    f"the checkpoint was made in the middle of a rollout by {len(ranks)} processes, this run has "
                    f"{self._trainer.world_size}: resume with as many, or from a checkpoint between two rollouts."
                )
            if own["micro_batches"] != self._micro_batches:
                raise ValueError(
                    f"the checkpoint was made in the middle of a rollout of {own['micro_batches']} micro-batches, this "
                    f"run's have {self._micro_batches}: resume with the same `num_epochs`, `num_minibatches` and "
                    "`accumulate_grad_batches`, or from a checkpoint between two rollouts."
                )
        self._resume = own

    def _rollouts_in(self, position: int) -> int:
        """Rollouts of a pass that were begun when so many micro-batches were given out."""
        return -(-position // self._micro_batches)

    def _begin(self) -> Place:
        resume = self._resume
        place = super()._begin()
        self._current = None
        if resume is not None:
            self._rollouts_made = resume["rollouts_made"]
            epoch, position = resume["more_place"]
            self._more_places = [(epoch, position)] * 2
            if resume["current"] is not None and place.position > 0:
                self._current = PlannedRollout.from_state_dict(resume["current"])
        return place

    def _prompt_batches(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        for loader in (self._prompts, getattr(self._prompts, "sampler", None)):  # a stock DataLoader has one
            if isinstance(loader, KnowsItsEpoch):
                loader.set_epoch(epoch)
        if isinstance(self._prompts, StartsAnywhere):
            return self._prompts.batches(start)
        return self._seeded(epoch, start)

    def _seeded(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        """Iterate a foreign loader so that whatever it draws at its start depends on the seed and the epoch only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_hash("prompts", self._maker.seed, epoch))
            batches = iter(self._prompts)
            first = next(batches, None)
        for number, rows in enumerate(_chain(first, batches)):
            if number >= start:
                yield rows

    def _of_all_ranks(self, value: Any) -> list[Any]:
        if self._trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self._trainer.world_size
        dist.all_gather_object(values, value)
        return values


def num_batches(prompts: Iterable[PromptBatch]) -> int | None:
    """Its length, None where it has none: a stock DataLoader over a stream only says so when it is asked."""
    try:
        return len(prompts)  # type: ignore[arg-type]
    except TypeError:
        return None


def _chain(first: PromptBatch | None, rest: Iterator[PromptBatch]) -> Iterator[PromptBatch]:
    if first is not None:
        yield first
        yield from rest
