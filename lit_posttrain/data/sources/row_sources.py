"""Where the training and the validation rows come from: one source or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from lit_posttrain.data.sources.hub import load_split
from lit_posttrain.data.sources.rows import Rows, Source, has_splits, load_rows

RowFunction: TypeAlias = Callable[[str], Sequence[Mapping[str, Any]]]
Paths: TypeAlias = Source | RowFunction | Sequence[str | Path | RowFunction]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """At most one way to get validation rows; the arguments of the DataModules have `val_` before these names.

    Args:
        path: another source; a data set on the Hub is read with the same split and subset as the training rows.
        split: the validation split of a data set on the Hub.
        fraction: the fraction of the training rows to hold out, from 0 to below 1.
        size: how many validation rows: drawn from `path`, `split` or what a function makes; without these held out from
            the training rows. None takes all there are, 0 none.

    Raises:
        ValueError: if a number is out of its range, or options exclude one another.
    """

    path: Source | None = None
    split: str | None = None
    fraction: float = 0.0
    size: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < 1.0:
            raise ValueError(
                f"`val_fraction` must be from 0 to below 1, got {self.fraction}; `val_size` is a number of rows."
            )
        if self.size is not None and (not isinstance(self.size, int) or self.size < 0):
            raise ValueError(
                f"`val_size` must be a number of rows >= 0, got {self.size}; `val_fraction` is a fraction."
            )
        if len(self.ways) > 1:
            raise ValueError(
                f"give at most one of `val_path`, `val_split` and `val_fraction`, got {' and '.join(self.ways)}."
            )
        if self.fraction and self.size is not None:
            raise ValueError(f"give `val_fraction` or `val_size`, got {self.fraction} and {self.size}.")

    @property
    def ways(self) -> list[str]:
        """The arguments given that say where validation rows come from."""
        given = {"`val_path`": self.path, "`val_split`": self.split, "`val_fraction`": self.fraction or None}
        return [name for name, value in given.items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """A source of training rows, and what is held out of it.

    Args:
        path: anything that `load_rows` takes, or a function that makes the rows of "train" and of "validation".
        split: the training split of a data set on the Hub.
        subset: its configuration.
        seed: which rows are held out or drawn.
        held_out: where the validation rows come from.

    Raises:
        ValueError: if options exclude one another.
    """

    path: Source | RowFunction
    split: str = "train"
    subset: str | None = None
    seed: int = 0
    held_out: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self) -> None:
        if self.held_out.ways and callable(self.path):
            raise ValueError(
                f"{self.held_out.ways[0]} must not be given with a function as `path`: it makes its own validation "
                "rows."
            )
        if self.held_out.split == self.split:
            raise ValueError(f"`val_split` must differ from `split`, got {self.split!r} for both: nothing is held out.")

    def download(self) -> None:
        """Fetch what is on the Hub into the local cache."""
        held_out = self.held_out
        for source, split in ((self.path, self.split), (self.path, held_out.split), (held_out.path, self.split)):
            if isinstance(source, str | Path) and split is not None and has_splits(source):
                load_split(str(source), split=split, subset=self.subset)

    def read(self) -> tuple[Rows, Rows]:
        """The training rows and the validation rows, the latter perhaps none.

        Raises:
            ValueError: if no training row is left, or there are fewer validation rows than asked for.
        """
        train = load_rows(self.path("train")) if callable(self.path) else self._load(self.path, self.split)
        validation, size = self._read_validation(), self.held_out.size
        there = train if validation is None else validation
        if size is not None and size > len(there):
            raise ValueError(
                f"`val_size` must be at most the number of rows to take them from, {len(there)}, got {size}."
            )
        if validation is not None:
            return train, validation if size is None else validation.split(size, seed=self.seed)[1]
        rest, held_out = train.split(self.held_out.fraction if size is None else size, seed=self.seed)
        if len(rest) == 0:
            raise ValueError(
                f"no training row is left of {len(train)} when {len(held_out)} are held out for validation: "
                "lower `val_size` or `val_fraction`."
            )
        return rest, held_out

    def _load(self, source: Source, split: str) -> Rows:
        return load_rows(source, split=split, subset=self.subset)

    def _read_validation(self) -> Rows | None:
        """The rows of a source of their own; None where validation rows can only be held out."""
        held_out = self.held_out
        if callable(self.path):
            made = [] if held_out.size == 0 else self.path("validation")
            return load_rows(made) if len(made) > 0 else Rows([])
        if held_out.split is not None:
            return self._load(self.path, held_out.split)
        if held_out.path is None:
            return None
        has_split = isinstance(held_out.path, str | Path) and has_splits(held_out.path)
        return self._load(held_out.path, self.split) if has_split else load_rows(held_out.path)


class RowSources:
    """Training rows of one source or several, validation rows held out of each or from elsewhere.

    Args:
        path: a source, or a list of paths and functions.
        weights: how often the rows of each come in an epoch, as many as sources; None weighs all alike.
        split: the training split of data sets on the Hub.
        subset: their configuration.
        seed: which rows are held out or drawn.
        held_out: where the validation rows come from; a `path` there is for all sources together.

    Raises:
        ValueError: if weights do not fit, or an option has no meaning for several sources.
    """

    def __init__(
        self,
        path: Paths,
        *,
        weights: Sequence[float] | None = None,
        split: str = "train",
        subset: str | None = None,
        seed: int = 0,
        held_out: HeldOut | None = None,
    ) -> None:
        paths, of_all = split_paths(path), held_out or HeldOut()
        self.weights = [1.0] * len(paths) if weights is None else list(weights)
        if len(self.weights) != len(paths):
            raise ValueError(
                f"`weights` must be as many as the sources in `path`, {len(paths)}, got {len(self.weights)}."
            )
        for weight in self.weights:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(
                    f"`weights` must be numbers > 0, got {weight!r}: how often a source's rows come in an epoch."
                )
        if len(paths) > 1 and of_all.size is not None and of_all.path is None:
            raise ValueError(
                "`val_size` must not be given with several sources: use `val_fraction`, which is held out of each, or "
                "`val_path`."
            )
        of_each = replace(of_all, path=None, size=None)
        self.sources = [
            RowSource(path=each, split=split, subset=subset, seed=seed, held_out=of_each if number else of_all)
            for number, each in enumerate(paths)
        ]

    def download(self) -> None:
        """Fetch what is on the Hub into the local cache."""
        for source in self.sources:
            source.download()

    def read(self) -> tuple[list[Rows], list[Rows]]:
        """The training rows of each source, and the validation rows that there are."""
        both = [source.read() for source in self.sources]
        return [train for train, _ in both], [validation for _, validation in both if len(validation) > 0]


def split_paths(path: Paths) -> list[Source | RowFunction]:
    """The sources that `path` names: those of a list of paths and functions, else itself.

    >>> split_paths(["a.jsonl", "b.jsonl"]), split_paths([{"prompt": "a"}])
    (['a.jsonl', 'b.jsonl'], [[{'prompt': 'a'}]])
    """
    if isinstance(path, str | Path | Mapping) or not isinstance(path, Sequence) or len(path) == 0:
        return [path]  # type: ignore[list-item]
    if all(isinstance(each, str | Path) or callable(each) for each in path):
        return list(path)  # type: ignore[arg-type]
    return [path]  # type: ignore[list-item]
