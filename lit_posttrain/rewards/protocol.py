"""What a reward function is asked for, what it may return, and several of them with weights."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

RewardFunction = Callable[..., Any]  # gives numbers, None, or lists of numbers: `read_values` checks them


class Scores(NamedTuple):
    """What reward functions say of B completions.

    Attributes:
        values: of each function, (B, F), fp32 on the CPU; NaN where it returned None.
        token_rewards: the part of each completion's reward that was given token by token: the weighted sum over the
            functions that did so, as many numbers as it has tokens; empty where none did.
    """

    values: Tensor
    token_rewards: list[list[float]]


class RewardFunctions:
    """One or several reward functions and their weights.

    A reward function has the signature that the ecosystem uses: `reward(prompts, completions, **columns)`, called by
    keyword with one entry per completion in every list, and returns as many numbers, None where a completion cannot be
    scored. The columns are those of the data, and `completion_ids` and `truncated`. A function with a `**` parameter
    gets all of them, another only those it names.

    In place of a number it may return a list of numbers, one for each token of the completion's `completion_ids` (the
    EOS is one of them): the reward of each token. PPO uses them; everywhere else their sum is the completion's reward.

    Args:
        functions: a callable or several.
        weights: one finite number per function, not all 0; None weighs each by 1. A function of weight 0 is scored
            and reported but never counts.

    Raises:
        ValueError: if there is no function, a signature cannot be called by keyword, or the weights do not fit.
        TypeError: if a function is not callable, or a weight is no number.

    >>> def length(completions): return [float(len(text)) for text in completions]
    >>> def polite(completions): return [1.0 if "please" in text else None for text in completions]
    >>> rewards = RewardFunctions([length, polite], weights=[0.1, 1.0])
    >>> scores = rewards(["a", "b"], ["please go", "go"], {})
    >>> scores
    tensor([[9., 1.],
            [2., nan]])
    >>> rewards.total(scores)
    tensor([1.9000, 0.2000])
    """

    def __init__(
        self, functions: RewardFunction | Sequence[RewardFunction], *, weights: Sequence[float] | None = None
    ) -> None:
        self.functions = _check_functions(functions)
        self.names = _unique_names(self.functions)
        self.weights = _check_weights(weights, names=self.names)
        self._parameters = [
            read_parameters(function, name=name) for function, name in zip(self.functions, self.names, strict=True)
        ]

    def __call__(self, prompts: Sequence, completions: Sequence, columns: Mapping[str, Sequence]) -> Tensor:
        """Score every completion by every function.

        Args:
            prompts: B texts or lists of chat messages.
            completions: B texts or lists of chat messages.
            columns: B entries by name of the column.

        Returns:
            Scores, (B, F), fp32 on the CPU; NaN where a function returned None.

        Raises:
            ValueError: if the lists differ in length, a column takes the name of an argument, a function requires a
                column that is missing, or it returned a wrong number of values, NaN or an infinity.
            TypeError: if a function returned something that is no list, tuple or 1-D tensor of numbers.
            RuntimeError: if a function raised an exception, which is chained.
        """
        return self.scores(prompts, completions, columns).values

    def scores(self, prompts: Sequence, completions: Sequence, columns: Mapping[str, Sequence]) -> Scores:
        """Score every completion by every function, and keep what was given token by token; otherwise as a call.

        Raises:
            ValueError: also if there are not as many numbers as tokens, or no `completion_ids` to count those.
        """
        for name in ("prompts", "completions"):
            if name in columns:
                raise ValueError(
                    f"`columns` must not hold `{name}`: reward functions get the {name} by that name. Rename it."
                )
        available = {"prompts": prompts, "completions": completions, **columns}
        for name, given in available.items():
            if len(given) != len(completions):
                raise ValueError(
                    f"`{name}` must hold one entry per completion, got {len(given)} for {len(completions)} completions."
                )
        lengths = [len(ids) for ids in columns["completion_ids"]] if "completion_ids" in columns else None
        token_rewards: list[list[float]] = [[] for _ in completions]
        scores = []
        for function, name, weight, parameters in zip(
            self.functions, self.names, self.weights, self._parameters, strict=True
        ):
            arguments = parameters.select(available, name=name)
            try:
                with own_precision():
                    returned = function(**arguments)
            except Exception as error:
                raise RuntimeError(_describe_failure(error, name, prompts, completions)) from error
            whole, by_token = split_token_values(returned, name=name, lengths=lengths)
            scores.append(read_values(whole, name=name, num_rows=len(completions)))
            for row, numbers in enumerate(by_token):
                if numbers is not None and weight != 0:
                    weighted = [weight * number for number in numbers]
                    before = token_rewards[row] or [0.0] * len(weighted)
                    token_rewards[row] = [a + b for a, b in zip(before, weighted, strict=True)]
        return Scores(torch.tensor(scores, dtype=torch.float32).T.contiguous(), token_rewards)

    def total(self, scores: Tensor) -> Tensor:
        """Add up the weighted scores of the functions that could score, without rescaling for those that could not.

        Args:
            scores: (B, F), NaN where a function could not score.

        Returns:
            Rewards, (B,); NaN where no function of non-zero weight scored.

        Raises:
            ValueError: if `scores` has not one column per function.
        """
        if scores.dim() != 2 or scores.shape[1] != len(self.functions):
            raise ValueError(
                f"`scores` must have the shape (B, {len(self.functions)}), got {tuple(scores.shape)}: "
                f"one column for each of {self.names}."
            )
        weights = torch.tensor(self.weights, dtype=scores.dtype, device=scores.device)
        counts = ~scores.isnan() & (weights != 0)  # (B, F)
        weighted = torch.where(counts, scores * weights, 0.0)
        return weighted.sum(dim=1).masked_fill(~counts.any(dim=1), math.nan)


def _check_functions(functions: RewardFunction | Sequence[RewardFunction]) -> list[RewardFunction]:
    if callable(functions):
        return [functions]
    if isinstance(functions, str) or not isinstance(functions, Sequence):
        raise TypeError(
            f"`functions` must be a callable or a sequence of callables, got {functions!r}: "
            "`load_rewards` makes callables of paths like 'file.py:function'."
        )
    if not functions:
        raise ValueError("`functions` must hold at least one reward function, got none.")
    for position, function in enumerate(functions):
        if not callable(function):
            raise TypeError(
                f"`functions` must hold callables, got {function!r} at position {position}: "
                "`load_rewards` makes callables of paths like 'file.py:function'."
            )
    return list(functions)


def _unique_names(functions: Sequence[RewardFunction]) -> list[str]:
    names: list[str] = []
    for function in functions:
        name, copies = _name(function), 1
        unique = name
        while unique in names:
            copies += 1
            unique = f"{name}_{copies}"
        names.append(unique)
    return names


def _name(function: RewardFunction) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    named = function if inspect.isroutine(function) or inspect.isclass(function) else type(function)
    return named.__name__


def _check_weights(weights: Sequence[float] | None, *, names: list[str]) -> list[float]:
    if weights is None:
        return [1.0] * len(names)
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"`weights` must be a sequence of numbers, got {weights!r}: one for each of {names}.")
    if len(weights) != len(names):
        raise ValueError(f"`weights` must hold one number for each of {names}, got {len(weights)}.")
    for name, weight in zip(names, weights, strict=True):
        if not isinstance(weight, Real):
            raise TypeError(f"`weights` must hold numbers, got {weight!r} for `{name}`.")
        if not math.isfinite(weight):
            raise ValueError(f"`weights` must be finite, got {weight} for `{name}`.")
    if not any(weights):
        raise ValueError(f"`weights` must not all be 0, got {list(weights)}: every reward would be the same.")
    return [float(weight) for weight in weights]


def _describe_failure(error: Exception, name: str, prompts: Sequence, completions: Sequence) -> str:
    firsts = ", ".join(
        f"first {kind}: {_shorten(values[0])}"
        for kind, values in (("prompt", prompts), ("completion", completions))
        if len(values)
    )
    return (
        f"The reward function `{name}` raised {type(error).__name__}: {error} "
        f"({len(completions)} completions; {firsts}). "
        "It must take any text that a model writes, and return None where it cannot score."
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


@dataclass(frozen=True)
class Parameters:
    """What a reward function asks for.

    Attributes:
        named: its parameters.
        required: those without a default.
        takes_all: it has a `**` parameter, and gets every column.
    """

    named: tuple[str, ...]
    required: tuple[str, ...]
    takes_all: bool

    def select(self, available: Mapping[str, Sequence], *, name: str) -> dict[str, list]:
        """Pick the arguments of one call.

        The lists are copies, so that a function that sorts or pops its arguments does not shift the rows of the next.

        Raises:
            ValueError: if a required parameter is not available.
        """
        missing = [parameter for parameter in self.required if parameter not in available]
        if missing:
            raise ValueError(
                f"The reward function `{name}` requires {_quote(missing)}, which no column provides; there are "
                f"{_quote(available)}. Add the column to the data, or give the parameter a default."
            )
        chosen = available if self.takes_all else [parameter for parameter in self.named if parameter in available]
        return {column: list(available[column]) for column in chosen}


def read_parameters(function: Callable, *, name: str) -> Parameters:
    """Read what a reward function asks for from its signature.

    Raises:
        ValueError: if the signature cannot be read, or a parameter is positional only.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The reward function `{name}` must have a signature that Python can read: {error}. "
            "Wrap it in a function with named parameters."
        ) from error
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ValueError(
                f"The parameters of the reward function `{name}` must be passable by keyword, "
                f"got `{parameter.name}`, which is positional only. Wrap it in a function with named parameters."
            )
    by_keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Parameters(
        named=tuple(parameter.name for parameter in by_keyword),
        required=tuple(parameter.name for parameter in by_keyword if parameter.default is parameter.empty),
        takes_all=any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters),
    )


def _quote(names: Sequence[str] | Mapping[str, Sequence]) -> str:
    return ", ".join(f"`{name}`" for name in names)


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
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = math.inf
    if not abs(number) <= _LARGEST:  # so that NaN, which compares False, is refused too
        raise ValueError(
            f"The reward function `{name}` must return values that are finite in 32-bit floating point, "
            f"got {_describe(value)} for row {row}: return None where a completion cannot be scored."
        )
    return number


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


@contextmanager
def own_precision() -> Iterator[None]:
    """Let torch compute inside as it does by itself: in float32, without autocast.

    In validation and prediction functions are called in the precision of the Trainer, in rollouts they are not; a
    network that judges shall give the same score there as here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for device_type in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
