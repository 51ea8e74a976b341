"""Options that belong together travel together: of sampling, of rollouts, of validation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

Options = TypeVar("Options")


def options(kind: type[Options], given: Options | Mapping[str, Any] | None, *, argument: str) -> Options:
    """Make options of what an argument was given.

    Args:
        kind: the class of the options.
        given: such options, a mapping of some of them, or None for their defaults.
        argument: what it is called, for errors.

    Raises:
        TypeError: if it is none of these, or the mapping has a key that is no option.
    """
    if isinstance(given, kind):
        return given
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"`{argument}` must be a `{kind.__name__}` or a mapping of {', '.join(names)}, got {type(given).__name__}."
        )
    unknown = [key for key in given or {} if key not in names]
    if unknown:
        raise TypeError(f"`{argument}` has no option `{unknown[0]}`: it has {', '.join(names)}.")
    return kind(**(given or {}))


def as_mapping(chosen: Any) -> dict[str, Any]:
    """Write options down as plain values, which `options` reads; an object, such as a function, as the default is."""
    values = {field.name: (getattr(chosen, field.name), field.default) for field in fields(chosen)}
    return {name: _plain(value) if _is_plain(value) else default for name, (value, default) in values.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(each) for each in value.values())
    return value is None or isinstance(value, bool | int | float | str | Path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler. Nothing is taken over from a model's `generation_config`.

    Args:
        max_new_tokens: the longest completion, in tokens, EOS included.
        temperature: logits are divided by it; 0 is greedy decoding.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.

    Raises:
        ValueError: if a number is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"`sampling.max_new_tokens` must be >= 1, got {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise ValueError(
                f"`sampling.temperature` must be >= 0, got {self.temperature}: logits are divided by it (0 = greedy)."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`sampling.top_p` must be in (0, 1], got {self.top_p}; 1 keeps every token.")
        if self.top_k < 0:
            raise ValueError(f"`sampling.top_k` must be >= 0, got {self.top_k}; 0 keeps every token.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken instead of a drawn one."""
        return self.temperature == 0


@dataclass(frozen=True)
class Rollouts:
    """How a rollout is made and used.

    Args:
        num_minibatches: optimiser steps in one pass over a rollout.
        num_epochs: passes over a rollout; None = as the algorithm was published, 4 for PPO and 1 for all others.
        batch_size: completions decoded together, a knob of memory and speed, in whole groups and at least one; None =
            all.
        seed: of all that is drawn in rollouts.

    Raises:
        ValueError: if a number is out of its range.
    """

    num_minibatches: int = 1
    num_epochs: int | None = None
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_minibatches", "num_epochs", "batch_size"):
            check_count(f"rollouts.{name}", getattr(self, name), optional=name != "num_minibatches")


@dataclass(frozen=True)
class Validation:
    """How a policy is judged by completions of prompts.

    Args:
        metrics: validation metrics by name: functions with the signature of a reward, or `file.py:function`; None =
            those that the DataModule brings, its attribute `scores`.
        num_samples: samples of each prompt, beside the greedy completion.
        batch_size: completions decoded together, a knob of memory and speed, in whole groups and at least one; None =
            as in rollouts, or all where there are none.

    Raises:
        ValueError: if a number is out of its range.
    """

    metrics: Mapping[str, Callable[..., Any] | str] | None = None
    num_samples: int = 4
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_count("validation.num_samples", self.num_samples)
        check_count("validation.batch_size", self.batch_size, optional=True)


def check_count(name: str, count: int | None, *, optional: bool = False) -> None:
    """Refuse a number of things below 1.

    Raises:
        ValueError: naming it.
    """
    if (count is None and not optional) or (count is not None and count < 1):
        raise ValueError(f"`{name}` must be >= 1{' or None' if optional else ''}, got {count}.")
