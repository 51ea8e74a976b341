"""Prompts, and optimiser steps of encoded rows, as dataloaders for any number of ranks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

from lit_posttrain.batching import PassLoader, StepPart, digest_of
from lit_posttrain.batching.passes import Passes
from lit_posttrain.data.sources.mixing import permutation
from lit_posttrain.data.step_plan import StepPlan


@dataclass(frozen=True)
class Batching:
    """Which rows make an optimiser step or a validation batch.

    Args:
        batch_size: rows of an optimiser step, over all ranks.
        val_batch_size: rows of a validation batch, over all ranks.
        packing: whether rows share sequences of the model's input.
        shuffle: whether each epoch has an order of its own.
        seed: of that order.

    Raises:
        ValueError: if a size is out of its range.
    """

    batch_size: int
    val_batch_size: int
    packing: bool = False
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, size in (("batch_size", self.batch_size), ("val_batch_size", self.val_batch_size)):
            if size < 1:
                raise ValueError(f"`{name}` must be >= 1, got {size}.")


@dataclass(eq=False, repr=False)
class PromptLoader:
    """This rank's share of each batch of prompts, as lists of rows.

    A plain iterable and no `torch.utils.data.DataLoader`: there Lightning would put in a sampler of its own, which
    deals prompts out by rank before they are batched. Here batch `i` is the same set of prompts on any number of ranks,
    and rank r gets its rows r, r + world_size, ... The order is a function of the seed and the epoch alone.

    Args:
        rows: one dictionary per prompt.
        batch_size: prompts in a batch, over all ranks; the last batch of an epoch may be smaller.
        shuffle: whether each epoch has an order of its own.
        seed: of the order.
        rank: which share, from 0 to `world_size` - 1.
        world_size: into how many shares a batch is dealt. With fewer prompts in a batch than ranks some are empty.

    Raises:
        ValueError: if a number is out of its range.

    >>> rows = [{"prompt": letter} for letter in "abcde"]
    >>> [[row["prompt"] for row in batch] for batch in PromptLoader(rows, batch_size=3, shuffle=False, seed=0)]
    [['a', 'b', 'c'], ['d', 'e']]
    >>> second = PromptLoader(rows, batch_size=3, shuffle=False, seed=0, rank=1, world_size=2)
    >>> [[row["prompt"] for row in batch] for batch in second]
    [['b'], ['e']]
    """

    rows: Sequence[dict[str, Any]]
    _: KW_ONLY
    batch_size: int
    shuffle: bool
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {self.batch_size}: it counts the prompts of a batch.")
        if self.world_size < 1:
            raise ValueError(f"`world_size` must be >= 1, got {self.world_size}.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"`rank` must be from 0 to `world_size` - 1 = {self.world_size - 1}, got {self.rank}.")
        self.epoch = 0

    def __len__(self) -> int:
        """Batches in an epoch, the same on all ranks."""
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self.batches()

    @property
    def sampler(self) -> PromptLoader:
        """The loader itself: Lightning calls `set_epoch` on the `sampler` of a loader when an epoch begins."""
        return self

    @property
    def batch_sampler(self) -> PromptLoader:
        """The loader itself: Lightning expects this of whatever has a `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass; a pass that has begun keeps its own."""
        self.epoch = epoch

    def identity(self) -> dict[str, Any]:
        """What contents and order of the batches depend on: rows by their digest, and the arguments."""
        return {"rows": self._digest, "batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed}

    @cached_property
    def _digest(self) -> str:
        return f"{len(self.rows)} rows with digest {digest_of(list(self.rows)).hex()}"

    def shared_out(self, *, rank: int, world_size: int) -> PromptLoader:
        """The same batches, shared out to so many ranks."""
        other = copy.copy(self)
        other.rank, other.world_size = rank, world_size
        return other

    def batches(self, start: int = 0) -> Iterator[list[dict[str, Any]]]:
        """The batches of the current epoch from batch `start` on, so that a resumed run goes on where it stopped.

        Args:
            start: how many batches to leave out, from 0 to `len(self)`.

        Returns:
            An iterator over this rank's rows of each batch; copies, so that what a reward function does to a row does
            not come back in the next epoch.

        Raises:
            ValueError: if `start` is out of its range.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"`start` must be from 0 to the number of batches, {len(self)}, got {start}.")
        count = len(self.rows)
        order = permutation(count, seed=self.seed, epoch=self.epoch) if self.shuffle else list(range(count))
        firsts = range(start * self.batch_size, count, self.batch_size)
        batches = (order[first : first + self.batch_size][self.rank :: self.world_size] for first in firsts)
        return ([copy.deepcopy(self.rows[index]) for index in batch] for batch in batches)


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
