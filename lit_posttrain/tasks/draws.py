"""Random choices that stay the same on every platform and Python version.

They use `Random.random()` alone: its sequence is promised for a seed, those of `choice` and `sample` are not.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


def draw_index(rng: Random, count: int) -> int:
    """Draw an index below `count`, each equally likely."""
    return int(rng.random() * count)


def draw_distinct(rng: Random, items: Sequence[Item], count: int) -> list[Item]:
    """Draw `count` of the items without repetition, in random order."""
    pool = list(items)
    for index in range(count):
        other = index + draw_index(rng, len(pool) - index)
        pool[index], pool[other] = pool[other], pool[index]
    return pool[:count]
