"""Prompts beside the training order, for rollouts that need more of them than their batch."""

from collections.abc import Callable, Iterator
from typing import Any

SIDE_EPOCHS = 1 << 20  # numbers of passes that the training order never reaches


class SideStream:
    """An endless stream of prompt batches: pass after pass over the training prompts, in orders of their own.

    Args:
        open_pass: the batches of a pass from a position on: (epoch, position) to an iterator.

    Attributes:
        place: pass and position of the next batch; set it to go on from there.
    """

    def __init__(self, open_pass: Callable[[int, int], Iterator[list[dict[str, Any]]]]) -> None:
        self._open_pass = open_pass
        self._place = (0, 0)
        self._batches: Iterator[list[dict[str, Any]]] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Pass and position of the next batch."""
        return self._place

    @place.setter
    def place(self, place: tuple[int, int]) -> None:
        if place != self._place:
            self._place, self._batches = place, None

    def __call__(self) -> list[dict[str, Any]]:
        """The next batch, this rank's part of it.

        Raises:
            ValueError: if a pass has no batch.
        """
        for _ in range(2):
            epoch, position = self._place
            if self._batches is None:
                self._batches = self._open_pass(SIDE_EPOCHS + epoch, position)
            rows = next(self._batches, None)
            if rows is not None:
                self._place = (epoch, position + 1)
                return rows
            self._place, self._batches = (epoch + 1, 0), None
        raise ValueError("there are no prompts to sample more groups from: the training prompt loader is empty.")
