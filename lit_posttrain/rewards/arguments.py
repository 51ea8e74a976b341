"""Which columns a reward function gets."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


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
