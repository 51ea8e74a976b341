"""Several reward functions with weights, called alike and checked alike."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from lit_posttrain.rewards.arguments import read_parameters
from lit_posttrain.rewards.precision import own_precision
from lit_posttrain.rewards.values import read_values, split_token_values

RewardFunction = Callable[..., Sequence[float | Sequence[float] | None] | Tensor]


class Scores(NamedTuple):
    """What reward functions say of B completions.

    Attributes:
        values: of each function, [B, F], fp32 on the CPU; NaN where it returned None.
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
            Scores, [B, F], fp32 on the CPU; NaN where a function returned None.

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
        _check_lengths(prompts, completions, columns)
        available = {"prompts": prompts, "completions": completions, **columns}
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
            scores: [B, F], NaN where a function could not score.

        Returns:
            Rewards, [B]; NaN where no function of non-zero weight scored.

        Raises:
            ValueError: if `scores` has not one column per function.
        """
        if scores.dim() != 2 or scores.shape[1] != len(self.functions):
            raise ValueError(
                f"`scores` must have the shape [B, {len(self.functions)}], got {list(scores.shape)}: "
                f"one column for each of {self.names}."
            )
        weights = torch.tensor(self.weights, dtype=scores.dtype, device=scores.device)
        counts = ~scores.isnan() & (weights != 0)  # [B, F]
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


def _check_lengths(prompts: Sequence, completions: Sequence, columns: Mapping[str, Sequence]) -> None:
    for name in ("prompts", "completions"):
        if name in columns:
            raise ValueError(
                f"`columns` must not hold `{name}`: reward functions get the {name} by that name. Rename it."
            )
    for name, values in {"prompts": prompts, **columns}.items():
        if len(values) != len(completions):
            raise ValueError(
                f"`{name}` must hold one entry per completion, got {len(values)} for {len(completions)} completions."
            )


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
