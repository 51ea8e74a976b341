"""What a reward function may return."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


def read_values(returned: object, *, name: str, num_rows: int) -> list[float]:
    """Check the values that a reward function returned, one per completion.

    Args:
        returned: a list, a tuple, or a 1-D tensor or array; numbers (True and False count as 1 and 0), or None for a
            completion that cannot be scored.
        name: name of the function.
        num_rows: number of completions.

    Returns:
        The values, NaN in place of None.

    Raises:
        TypeError: if it is no such sequence, or holds something else than numbers and None.
        ValueError: if the number of values is wrong, or one is not finite in 32-bit floating point.

    >>> read_values([1, True, None, 0.5], name="format", num_rows=4)
    [1.0, 1.0, nan, 0.5]
    """
    if isinstance(returned, Tensor | np.ndarray) and returned.ndim == 1:
        values = returned.tolist()
    elif isinstance(returned, (list, tuple)):
        values = list(returned)
    else:
        raise TypeError(
            f"The reward function `{name}` must return a list, a tuple, or a 1-D tensor or array, got "
            f"{_describe(returned)}: one number or None per completion."
        )
    if len(values) != num_rows:
        raise ValueError(
            f"The reward function `{name}` must return one value per completion, "
            f"got {len(values)} values for {num_rows} completions."
        )
    return [_read_value(value, name=name, row=row) for row, value in enumerate(values)]


def split_token_values(
    returned: object, *, name: str, lengths: Sequence[int] | None
) -> tuple[object, list[list[float] | None]]:
    """Take the completions apart that a reward function judged token by token.

    Args:
        returned: by the function.
        name: name of the function.
        lengths: tokens of each completion; None = not known.

    Returns:
        What `read_values` reads, with the sum in place of the numbers of a completion, and those numbers; None where
        the completion was judged as a whole.

    Raises:
        TypeError: if one of the numbers is none.
        ValueError: if there are not as many as the completion has tokens, or one is not finite.

    >>> split_token_values([1.0, [0.5, -0.25]], name="steps", lengths=[3, 2])
    ([1.0, 0.25], [None, [0.5, -0.25]])
    """
    if not isinstance(returned, list | tuple):
        return returned, []
    whole: list[Any] = list(returned)
    by_token: list[list[float] | None] = [None] * len(whole)
    for row, value in enumerate(whole):
        if isinstance(value, Tensor | np.ndarray) and value.ndim == 1:
            value = value.tolist()
        if not isinstance(value, list | tuple):
            continue
        if lengths is None or row >= len(lengths) or len(value) != lengths[row]:
            length = "an unknown number of" if lengths is None or row >= len(lengths) else lengths[row]
            raise ValueError(
                f"The reward function `{name}` must return one number per completion, or for a completion a list of "
                f"one number per token of `completion_ids`, got {len(value)} numbers for {length} tokens in row {row}."
            )
        numbers = [_read_value(number, name=name, row=row) for number in value]
        if any(math.isnan(number) for number in numbers):
            raise TypeError(
                f"The reward function `{name}` must return a number for every token of row {row}, got None for one: "
                "return None for the whole completion where it cannot be scored."
            )
        by_token[row], whole[row] = numbers, math.fsum(numbers)
    return whole, by_token


def _read_value(value: object, *, name: str, row: int) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if not isinstance(value, Real):
        raise TypeError(
            f"The reward function `{name}` must return numbers, got {_describe(value)} for row {row}: "
            "return float(...), or None where a completion cannot be scored."
        )
    number = _to_float(value)
    if not abs(number) <= _LARGEST:  # so that NaN, which compares False, is refused too
        raise ValueError(
            f"The reward function `{name}` must return values that are finite in 32-bit floating point, "
            f"got {_describe(value)} for row {row}: return None where a completion cannot be scored."
        )
    return number


def _to_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer
        return math.inf


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
