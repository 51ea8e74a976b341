"""One source of rows or several, with their shares in an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from lit_posttrain.data.row_sources import RowFunction, RowSources
from lit_posttrain.data.rows import Rows, Source

Sources: TypeAlias = Source | RowFunction | Sequence[str | Path | RowFunction]


@dataclass(frozen=True)
class SourceList:
    """Training rows of several sources, validation rows held out of each or from elsewhere.

    Args:
        sources: each of them; the first has the validation source where there is one.
        weights: how often the rows of each come in an epoch.
    """

    sources: list[RowSources]
    weights: list[float]

    @classmethod
    def of(cls, options: RowSources, path: Sources, weights: Sequence[float] | None) -> SourceList:
        """Apply the options to every source.

        Args:
            options: with the first or only source as its `path`.
            path: a source, or a list of paths and functions.
            weights: as many as sources; None weighs all alike.

        Raises:
            ValueError: if weights do not fit, or an option has no meaning for several sources.
        """
        paths = split_sources(path)
        given = [1.0] * len(paths) if weights is None else list(weights)
        if len(given) != len(paths):
            raise ValueError(f"`weights` must be as many as the sources in `path`, {len(paths)}, got {len(given)}.")
        for weight in given:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(
                    f"`weights` must be numbers > 0, got {weight!r}: how often a source's rows come in an epoch."
                )
        if len(paths) == 1:
            return cls([options], given)
        if options.val_size is not None and options.val_path is None:
            raise ValueError(
                "`val_size` must not be given with several sources: use `val_fraction`, which is held out of each, or "
                "`val_path`."
            )
        rest = replace(options, val_path=None, val_size=None)
        return cls([options, *(replace(rest, path=each) for each in paths[1:])], given)

    def download(self) -> None:
        """Fetch what is on the Hub into the local cache."""
        for source in self.sources:
            source.download()

    def read(self) -> tuple[list[Rows], list[Rows]]:
        """The training rows of each source, and the validation rows that there are."""
        both = [source.read() for source in self.sources]
        return [train for train, _ in both], [validation for _, validation in both if len(validation) > 0]


def split_sources(path: Sources) -> list[Source | RowFunction]:
    """The sources that `path` names: those of a list of paths and functions, else itself.

    >>> split_sources(["a.jsonl", "b.jsonl"]), split_sources([{"prompt": "a"}])
    (['a.jsonl', 'b.jsonl'], [[{'prompt': 'a'}]])
    """
    if isinstance(path, str | Path | Mapping) or not isinstance(path, Sequence) or len(path) == 0:
        return [path]  # type: ignore[list-item]
    if all(isinstance(each, str | Path) or callable(each) for each in path):
        return list(path)  # type: ignore[arg-type]
    return [path]  # type: ignore[list-item]
