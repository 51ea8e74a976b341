"""Rollouts as data: a training loader that turns prompt batches into the micro-batches of optimiser steps."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from lightning import Trainer

from lit_posttrain.batching import MicroBatch, PassLoader, PlannedRollout, ReplayedPasses
from lit_posttrain.batching.passes import Passes
from lit_posttrain.rollout.options import Rollouts

PromptBatch = list[dict[str, Any]]


@runtime_checkable
class StartsAnywhere(Protocol):
    """A prompt loader that can begin a pass at a given batch without making those before it."""

    def __len__(self) -> int:
        """Batches in a pass."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""

    def batches(self, start: int) -> Iterator[PromptBatch]:
        """The batches of the current pass from number `start` on."""

    def identity(self) -> dict[str, Any]:
        """What contents and order of the batches depend on, as plain values by the names of arguments."""


class PromptPasses:
    """The passes over such a loader.

    Args:
        prompts: the loader.
    """

    def __init__(self, prompts: StartsAnywhere) -> None:
        self._prompts = prompts

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        return len(self._prompts)

    def batches(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        """The batches of a pass from number `start` on."""
        self._prompts.set_epoch(epoch)
        return self._prompts.batches(start)

    def batches_aside(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        """The same of a pass beside the ones that are counted: passes do not disturb one another."""
        return self.batches(epoch, start)

    def identity(self) -> dict[str, Any]:
        """That of the prompts."""
        return self._prompts.identity()

    def state_dict(self, epoch: int, count: int) -> dict[str, Any]:
        """Nothing: the identity says all."""
        return {}

    def compare(self, state: dict[str, Any]) -> bool:
        """The identity has been compared."""
        return True


SIDE_EPOCHS = 1 << 20  # numbers of passes that the training order never reaches


class SideStream:
    """An endless stream of prompt batches: pass after pass over the training prompts, in orders of their own.

    Args:
        open_pass: the batches of a pass from a position on: (epoch, position) to an iterator.

    Attributes:
        place: pass and position of the next batch; set it to go on from there.
    """

    def __init__(self, open_pass: Callable[[int, int], Iterator[list[dict[str, Any]]]]) -> None:
        self.place = (0, 0)
        self._open_pass = open_pass
        self._opened: tuple[tuple[int, int], Iterator[list[dict[str, Any]]]] | None = None  # a pass, and its place

    def __call__(self) -> list[dict[str, Any]]:
        """The next batch, this rank's part of it.

        Raises:
            ValueError: if a pass has no batch.
        """
        for _ in range(2):
            epoch, position = self.place
            if self._opened is None or self._opened[0] != self.place:
                self._opened = (self.place, self._open_pass(SIDE_EPOCHS + epoch, position))
            batches = self._opened[1]
            rows = next(batches, None)
            if rows is not None:
                self.place = (epoch, position + 1)
                self._opened = (self.place, batches)
                return rows
            self.place = (epoch + 1, 0)
        raise ValueError("there are no prompts to sample more groups from: the training prompt loader is empty.")


class RolloutMaker(Protocol):
    """What the loader asks of a module."""

    rollouts: Rollouts
    max_resample_batches: int

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made of one rollout."""

    def make_rollout(self, rows: PromptBatch, index: int, more_rows: Callable[[], PromptBatch]) -> PlannedRollout:
        """Complete, score and plan this rank's prompts of the `index`-th rollout of the run; more are to be had."""


class SidePasses(Passes, Protocol):
    """Passes over prompts, of which others can be opened beside those that count."""

    def batches_aside(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        """The batches of a pass from number `start` on, while another one is being read."""


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

    _passes: SidePasses

    def __init__(self, prompts: Iterable[PromptBatch], maker: RolloutMaker, trainer: Trainer) -> None:
        passes: SidePasses = ReplayedPasses(prompts, seed=maker.rollouts.seed, world_size=trainer.world_size)
        if isinstance(prompts, StartsAnywhere):
            passes = PromptPasses(prompts)
        super().__init__(passes, trainer, micro_batches=maker.steps_per_rollout * trainer.accumulate_grad_batches)
        self._maker = maker
        self._rollouts_made = 0
        self._current: PlannedRollout | None = None
        self._current_unit = (-1, -1)  # the pass and the prompt batch that it was made of
        self._more_prompts = SideStream(passes.batches_aside)
        self._more_places = [(0, 0), (0, 0)]  # of the side stream, before and after the current rollout
        if passes.num_batches == 0:
            raise ValueError("there are no prompts to train on: the training prompt loader is empty.")
        if maker.max_resample_batches > 0 and getattr(prompts, "persistent_workers", False):
            raise ValueError(
                "`max_resample_batches` goes through the prompts a second time meanwhile, which a DataLoader with "
                "persistent workers cannot: use `persistent_workers=False`."
            )
        if passes.num_batches is None and trainer.max_steps < 0:
            raise ValueError("prompts without a length need `max_steps`: nothing else says when to stop.")

    @cached_property
    def _pass_length(self) -> int | None:
        """Micro-batches of a pass over the prompts, by the rank that has most; None where their number is not known.

        All ranks ask for it together, when Lightning first takes the length of the loader.
        """
        batches = self._of_all_ranks(self._passes.num_batches)
        return None if None in batches else max(batches) * self._micro_batches

    def __iter__(self) -> Iterator[MicroBatch]:
        """The micro-batches of the current epoch, from where the run stands in it."""
        place = self._begin()
        position, end = place.position, self._end(place)
        unit = (place.epoch, position // self._micro_batches)
        prompts = self._passes.batches(place.epoch, unit[1] + (self._current_unit == unit))
        while position < end:
            index, number = divmod(position, self._micro_batches)
            if self._current_unit != (place.epoch, index):
                rows = next(prompts, None)
                if not self._trainer.strategy.reduce_boolean_decision(rows is not None, all=False):
                    return
                rows = rows or []  # where other ranks still have prompts this one takes part without
                before = self._more_places[-1]
                self._more_prompts.place = before  # an interrupted rollout may have moved it
                self._current = self._maker.make_rollout(rows, self._rollouts_made, self._more_prompts)
                self._current_unit = (place.epoch, index)
                self._more_places = [before, self._more_prompts.place]
                self._rollouts_made += 1
            assert self._current is not None
            position += 1
            self._place = replace(place, position=position)
            yield self._current.micro_batch(number)

    def _own_state(self) -> dict[str, Any]:
        """With the rollout that is being used; one of which nothing was used yet will be made again."""
        place = self.place
        unit = (place.epoch, place.position // self._micro_batches)
        begun = self._current_unit == unit
        kept = begun and self._used > unit[1] * self._micro_batches
        taken_back = begun and not kept
        return {
            **super()._own_state(),
            "rollouts_made": self._rollouts_made - taken_back,
            "more_place": list(self._more_places[0 if taken_back else 1]),
            "current": self._current.state_dict() if kept and self._current is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: if the number of ranks or of micro-batches in a rollout has changed in the middle of a rollout.
        """
        super().load_state_dict(state)
        assert self._stored is not None
        own, ranks = self._stored, state["ranks"]
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

    def take_up(self) -> None:
        """Go to the place of the checkpoint that was loaded, with the rollout that was being used there."""
        state = self._stored
        super().take_up()
        if state is not None:
            self._go_on_counting(state)
            if state["current"] is not None:
                self._current = PlannedRollout.from_state_dict(state["current"])
                self._current_unit = (state["epoch"], state["position"] // state["micro_batches"])

    def begin_anew(self) -> tuple[int, int | None]:
        """Leave the place, and the rollout that was being used there; random numbers go on."""
        assert self._stored is not None
        self._go_on_counting(self._stored)
        return super().begin_anew()

    def _go_on_counting(self, state: dict[str, Any]) -> None:
        self._rollouts_made = state["rollouts_made"]
        epoch, position = state["more_place"]
        self._more_places = [(epoch, position)] * 2
