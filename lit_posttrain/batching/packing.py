"""Which rows share a sequence, so that little of it is padding."""

from collections.abc import Sequence


def first_fit_decreasing(lengths: Sequence[int], *, capacity: int) -> list[list[int]]:
    """Put rows into as few sequences as a simple rule finds: the longest row first, each where it first fits.

    The rule needs at most 11/9 of the fewest possible sequences, and one more. Rows of equal length keep their order.

    Args:
        lengths: tokens of each row.
        capacity: tokens of a sequence.

    Returns:
        For each sequence the numbers of its rows.

    Raises:
        ValueError: if a row is longer than a sequence.

    >>> first_fit_decreasing([2, 6, 3, 5], capacity=8)
    [[1, 0], [3, 2]]
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(
            f"a row of {max(lengths)} tokens does not fit into a sequence of `capacity` = {capacity}: no row is cut."
        )
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((index for index, left in enumerate(room) if left >= lengths[row]), len(room))
        if place == len(room):
            sequences.append([])
            room.append(capacity)
        sequences[place].append(row)
        room[place] -= lengths[row]
    return sequences


def pack_numbers(lengths: Sequence[int]) -> list[int]:
    """For each row the number of its sequence, where none is longer than the longest row.

    Args:
        lengths: tokens of each row, at least one.

    >>> pack_numbers([2, 6, 3, 4])
    [1, 0, 2, 1]
    """
    numbers = [0] * len(lengths)
    for number, rows in enumerate(first_fit_decreasing(lengths, capacity=max(lengths))):
        for row in rows:
            numbers[row] = number
    return numbers
