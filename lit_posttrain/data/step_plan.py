"""Which rows make which optimiser step, and which of them go through the model together."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import torch

from lit_posttrain.batching import StepPart, digest_of, first_fit_decreasing
from lit_posttrain.data.sources.mixing import epoch_counts, epoch_rows


@dataclass(eq=False, repr=False)
class StepPlan:
    """Deals encoded rows into optimiser steps, ranks and micro-batches.

    The rows of a step are a function of the seed and the epoch; they are sorted by length and dealt out, rank r gets
    the r-th, the (r + world_size)-th, ..., and its rows are cut into micro-batches, so that little padding is computed.
    With `packing` a rank's rows first share sequences no longer than the step's longest row, and these are cut into
    micro-batches. Nothing has to divide anything: where a rank has no row a masked one takes part. The normaliser is
    that of the whole step, known on every rank since every rank has all rows.

    Args:
        sources: the encoded rows of each source.
        collate: makes a batch of rows; of none one that counts for nothing. Told `pack_ids` too where rows share
            sequences.
        batch_size: rows in a step, over all ranks; the last step of an epoch may be smaller.
        micro_batches: into how many a rank's rows are cut.
        weights: how often the rows of each source come in an epoch; none = once.
        shuffle: whether each epoch has an order of its own.
        seed: of these orders.
        complete: given all rows of a step, what is to stand in their place; the first micro-batch of a step then brings
            all of this rank's along.
        packing: whether rows share sequences; those that `collate` packs by itself are no matter of this.
        rank: which share, from 0 to `world_size` - 1.
        world_size: into how many shares a step is dealt.

    Raises:
        ValueError: if a number is out of its range, or there are no rows.
    """

    sources: Sequence[Sequence[Any]]
    _: KW_ONLY
    collate: Callable[..., Any]
    batch_size: int
    micro_batches: int = 1
    weights: Sequence[float] = ()
    shuffle: bool = True
    seed: int = 0
    complete: Callable[[Sequence[Any]], Sequence[Any]] | None = None
    packing: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batches", "world_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}.")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"`rank` must be from 0 to `world_size` - 1 = {self.world_size - 1}, got {self.rank}.")
        self.sizes = [len(source) for source in self.sources]
        if not self.sizes or 0 in self.sizes:
            raise ValueError("there are no rows to make steps of: every source must have at least one.")
        self.examples = list(chain(*self.sources))
        self.weights = list(self.weights) or [1.0] * len(self.sizes)

    @property
    def num_rows(self) -> int:
        """Rows of all sources, each once."""
        return len(self.examples)

    @property
    def num_steps(self) -> int:
        """Optimiser steps in an epoch, the same on all ranks."""
        return math.ceil(sum(epoch_counts(self.sizes, self.weights)) / self.batch_size)

    @property
    def num_batches(self) -> int:
        """Units of a pass over the rows: its optimiser steps."""
        return self.num_steps

    def batches(self, epoch: int, start: int) -> Iterator[StepPart[Any]]:
        """The micro-batches of an epoch on this rank from optimiser step `start` on."""
        return self.parts(epoch, start * self.micro_batches)

    def identity(self) -> dict[str, Any]:
        """What rows and order of the steps depend on; into how many micro-batches they are cut changes nothing."""
        return {
            "rows": self._rows,
            "batch_size": self.batch_size,
            "weights": self.weights,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    @cached_property
    def _rows(self) -> str:
        sizes = " + ".join(map(str, self.sizes))
        return f"{sizes} rows with digest {digest_of(self.examples).hex()}"

    def state_dict(self, epoch: int, count: int) -> dict[str, Any]:
        """Nothing: the identity says all."""
        return {}

    def compare(self, state: dict[str, Any]) -> bool:
        """The identity has been compared."""
        return True

    def dealt(self, *, micro_batches: int, rank: int, world_size: int) -> StepPlan:
        """The same steps, cut into so many micro-batches and shared out to so many ranks."""
        other = copy.copy(self)
        other.micro_batches, other.rank, other.world_size = micro_batches, rank, world_size
        return other

    def parts(self, epoch: int, start: int = 0) -> Iterator[StepPart[Any]]:
        """The micro-batches of an epoch on this rank from number `start` on."""
        order = epoch_rows(self.sizes, self.weights, shuffle=self.shuffle, seed=self.seed, epoch=epoch)
        step, part = divmod(start, self.micro_batches)
        for first in range(step * self.batch_size, len(order), self.batch_size):
            numbers = order[first : first + self.batch_size]
            rows: Sequence[Any] = [self.examples[index] for index in numbers]
            rows = rows if self.complete is None else self.complete(rows)
            normalizer = torch.tensor(float(max(1, sum(row.num_terms for row in rows))))
            by_length = sorted(range(len(rows)), key=lambda index: rows[index].length)
            own = by_length[self.rank :: self.world_size]
            sequences = [[index] for index in own]
            if self.packing:
                packed = first_fit_decreasing(
                    [rows[index].length for index in own], capacity=rows[by_length[-1]].length
                )
                sequences = [[own[place] for place in sequence] for sequence in packed]
            cuts = [len(sequences) * cut // self.micro_batches for cut in range(self.micro_batches + 1)]
            parts = [sequences[begin:end] for begin, end in pairwise(cuts)]
            whole_step = [] if self.complete is None or part > 0 else [self._batch(rows, each) for each in parts]
            for number in range(part, self.micro_batches):
                own_numbers = torch.tensor([numbers[index] for index in chain(*parts[number])] or [-1])
                ahead = whole_step if number == 0 else []
                yield StepPart(self._batch(rows, parts[number]), normalizer, own_numbers, ahead)
            part = 0

    def _batch(self, rows: Sequence[Any], sequences: Sequence[Sequence[int]]) -> Any:
        chosen = [rows[index] for index in chain(*sequences)]
        if len(chosen) == len(sequences):
            return self.collate(chosen)
        return self.collate(chosen, pack_ids=[place for place, each in enumerate(sequences) for _ in each])
