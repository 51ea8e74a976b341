"""Orders of rows, and which rows of several sources make an epoch; functions of a seed and an epoch alone."""

import random
from collections.abc import Sequence


def permutation(count: int, *, seed: int, epoch: int = 0) -> list[int]:
    """The numbers 0 to `count` - 1 in a random order that is a function of (`count`, `seed`, `epoch`).

    Neither the global random state nor the number of processes plays a part, so a resumed run and a run on more
    devices see the same order. Sorting by `random()` instead of `shuffle()` because Python promises only the former
    to stay the same in later versions.

    Args:
        count: how many numbers, >= 0.
        seed: any integer.
        epoch: the pass over the data that the order is for.

    Returns:
        A list of length `count`.

    >>> permutation(5, seed=0)
    [0, 3, 4, 1, 2]
    >>> permutation(5, seed=0) == permutation(5, seed=0, epoch=1)
    False
    """
    generator = random.Random(f"{seed}/{epoch}")
    return sorted(range(count), key=lambda _: generator.random())


def epoch_rows(sizes: Sequence[int], weights: Sequence[float], *, shuffle: bool, seed: int, epoch: int) -> list[int]:
    """The rows of an epoch, in its order; a function of the arguments alone.

    A source of n rows with weight w gives round(w * n) rows to an epoch, at least one. It goes through all of its rows,
    in an order of that pass, before one comes again: with weight 1/2 two epochs see each row once.

    Args:
        sizes: rows of each source.
        weights: how often the rows of each source come in an epoch, on average.
        shuffle: without it every epoch is the same, and each source gives its first rows.
        seed: of all orders.
        epoch: which one.

    Returns:
        Row numbers; those of a source come behind those of the sources before it.

    >>> epoch_rows([4, 2], [0.5, 2.0], shuffle=False, seed=0, epoch=0)
    [0, 1, 4, 5, 4, 5]
    >>> [sorted(epoch_rows([4], [0.5], shuffle=True, seed=0, epoch=epoch)) for epoch in (0, 1)]
    [[0, 3], [1, 2]]
    """
    chosen, first = [], 0
    for number, (size, count) in enumerate(zip(sizes, epoch_counts(sizes, weights), strict=True)):
        start = epoch * count if shuffle else 0
        orders: dict[int, list[int]] = {}
        rows = []
        for position in range(start, start + count):
            turn, place = divmod(position, size)
            if turn not in orders:
                orders[turn] = permutation(size, seed=seed + number, epoch=turn) if shuffle else list(range(size))
            rows.append(first + orders[turn][place])
        chosen += sorted(rows) if shuffle else rows
        first += size
    if not shuffle:
        return chosen
    return [chosen[index] for index in permutation(len(chosen), seed=seed, epoch=epoch)]


def epoch_counts(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many rows each source gives to an epoch."""
    return [max(1, round(weight * size)) for size, weight in zip(sizes, weights, strict=True)]
