"""Somebody's own loader, gone through in a way that can be repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from lit_posttrain.batching.digest import digest_of
from lit_posttrain.functional.random import stable_hash


@runtime_checkable
class KnowsItsEpoch(Protocol):
    """A loader or sampler whose order depends on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""


class Read(NamedTuple):
    """What was read of a pass: how many batches, and the digest of all of them."""

    epoch: int
    number: int
    digest: bytes


class ReplayedPasses:
    """The passes over a loader of which nothing is known, such as a stock `DataLoader` or a stream.

    What the loader draws from the global random numbers when it is opened, the order of a shuffling `DataLoader`, is
    made a function of the seed and the pass. To go on inside a pass its beginning is read again, and has to be what it
    was: of such data what was read is all that can be compared.

    Args:
        loader: may go on for ever.
        seed: of the orders.
        world_size: processes that the loader shares its data out to.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int, world_size: int = 1) -> None:
        self._loader = loader
        self._seed = seed
        self._world_size = world_size
        self._epoch = -1  # the pass that is being read
        self._digests: list[bytes] = []  # of its first 1, 2, 3, ... batches
        self._before: Read | None = None  # the pass before
        self._compared: tuple[int, int, Iterator[Any]] | None = None  # a pass that is open behind what was compared

    @property
    def num_batches(self) -> int | None:
        """The loader's length; a `DataLoader` over a stream says only when it is asked that it has none."""
        try:
            return len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def identity(self) -> dict[str, Any]:
        """Among how many the data are shared out; what they are is found out by `compare`."""
        return {"world_size": self._world_size}

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of a pass from number `start` on."""
        compared, self._compared = self._compared, None
        if compared is not None and compared[:2] == (epoch, start):
            return compared[2]
        return islice(self._reading(epoch), start, None)

    def batches_aside(self, epoch: int, start: int) -> Iterator[Any]:
        """The same of a pass beside the ones that are counted."""
        return islice(self._open(epoch), start, None)

    def state_dict(self, epoch: int, count: int) -> dict[str, Any]:
        """The seed, and what was read to get to a place."""
        read = self._before
        if epoch != self._epoch and self._digests:
            read = Read(self._epoch, len(self._digests), self._digests[-1])
        elif epoch == self._epoch and count > 0:
            read = Read(epoch, count, self._digests[count - 1])
        return {"seed": self._seed, "read": None if read is None else list(read)}

    def compare(self, state: dict[str, Any]) -> bool:
        """Read again what was read before a checkpoint; whether it is the same."""
        self._seed = state["seed"]
        if state["read"] is None:
            return True
        read = Read(*state["read"])
        batches = self._reading(read.epoch)
        for _ in islice(batches, read.number):
            pass
        self._compared = (read.epoch, read.number, batches)
        return len(self._digests) == read.number and self._digests[-1] == read.digest

    def _reading(self, epoch: int) -> Iterator[Any]:
        if epoch != self._epoch and self._digests:
            self._before = Read(self._epoch, len(self._digests), self._digests[-1])
        self._epoch, self._digests = epoch, []
        for batch in self._open(epoch):
            self._digests.append(digest_of(self._digests[-1] if self._digests else b"", batch))
            yield batch

    def _open(self, epoch: int) -> Iterator[Any]:
        for loader in (self._loader, getattr(self._loader, "sampler", None)):  # a stock DataLoader has one
            if isinstance(loader, KnowsItsEpoch):
                loader.set_epoch(epoch)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stable_hash("prompts", self._seed, epoch))  # and no other device's
            batches = iter(self._loader)
            first = list(islice(batches, 1))
        return chain(first, batches)
