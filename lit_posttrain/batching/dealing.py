"""How the prompts of a batch lie on the ranks, and how they come together again."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

T = TypeVar("T")
_NOTHING = object()


def in_prompt_order(shares: Sequence[Sequence[T]]) -> list[T]:
    """What was made of a batch's prompts, in the order of the batch.

    Args:
        shares: one entry for each prompt of a rank; rank r has the prompts r, r + world size, ... of the batch.

    >>> in_prompt_order([["a", "c", "e"], ["b", "d"]])
    ['a', 'b', 'c', 'd', 'e']
    """
    turns = zip_longest(*shares, fillvalue=_NOTHING)
    return [each for turn in turns for each in turn if each is not _NOTHING]  # type: ignore[misc]
