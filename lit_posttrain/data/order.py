"""Random orders that depend on a seed and an epoch, and on nothing else."""

import random


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
