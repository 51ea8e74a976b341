"""Where the training and the validation rows come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_posttrain.data.row_hub import load_split
from lit_posttrain.data.rows import Rows, Source, has_splits, load_rows

RowFunction = Callable[[str], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class RowSources:
    """A source of training rows and at most one way to get validation rows.

    Args:
        path: anything that `load_rows` takes, or a function that makes the rows of "train" and of "validation".
        val_path: another source, for validation; a data set on the Hub is read with the same `split` and `subset`.
        val_fraction: the fraction of the training rows to hold out, from 0 to below 1.
        val_size: how many validation rows: drawn from `val_path`, `val_split` or what the function makes; without these
            held out from the training rows. None takes all there are, 0 none.
        split: the training split of a data set on the Hub.
        val_split: its validation split.
        subset: its configuration.
        seed: which rows are held out or drawn.

    Raises:
        ValueError: if a number is out of its range, or options exclude one another.
    """

    path: Source | RowFunction
    val_path: Source | None = None
    val_fraction: float = 0.0
    val_size: int | None = None
    split: str = "train"
    val_split: str | None = None
    subset: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.val_fraction < 1.0:
            raise ValueError(
                f"`val_fraction` must be from 0 to below 1, got {self.val_fraction}; `val_size` is a number of rows."
            )
        if self.val_size is not None and (not isinstance(self.val_size, int) or self.val_size < 0):
            raise ValueError(
                f"`val_size` must be a number of rows >= 0, got {self.val_size}; `val_fraction` is a fraction."
            )
        given = {"val_path": self.val_path, "val_split": self.val_split, "val_fraction": self.val_fraction or None}
        names = [f"`{name}`" for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(
                f"give at most one of `val_path`, `val_split` and `val_fraction`, got {' and '.join(names)}."
            )
        if self.val_fraction and self.val_size is not None:
            raise ValueError(f"give `val_fraction` or `val_size`, got {self.val_fraction} and {self.val_size}.")
        if names and callable(self.path):
            raise ValueError(
                f"{names[0]} must not be given with a function as `path`: it makes its own validation rows."
            )
        if self.val_split == self.split:
            raise ValueError(f"`val_split` must differ from `split`, got {self.split!r} for both: nothing is held out.")

    def download(self) -> None:
        """Fetch what is on the Hub into the local cache."""
        for source, split in ((self.path, self.split), (self.path, self.val_split), (self.val_path, self.split)):
            if isinstance(source, str | Path) and split is not None and has_splits(source):
                load_split(str(source), split=split, subset=self.subset)

    def read(self) -> tuple[Rows, Rows]:
        """The training rows and the validation rows, the latter perhaps none.

        Raises:
            ValueError: if no training row is left, or there are fewer validation rows than `val_size`.
        """
        train = self._read_training()
        validation = self._read_validation()
        if validation is not None:
            return train, self._draw(validation)
        rest, held_out = self._hold_out(train)
        if len(rest) == 0:
            raise ValueError(
                f"no training row is left of {len(train)} when {len(held_out)} are held out for validation: "
                "lower `val_size` or `val_fraction`."
            )
        return rest, held_out

    def _read_training(self) -> Rows:
        if callable(self.path):
            return load_rows(self.path("train"))
        return load_rows(self.path, split=self.split, subset=self.subset)

    def _read_validation(self) -> Rows | None:
        """The rows of a source of their own; None where validation rows can only be held out."""
        if callable(self.path):
            made = [] if self.val_size == 0 else self.path("validation")
            return load_rows(made) if len(made) > 0 else Rows([])
        if self.val_split is not None:
            return load_rows(self.path, split=self.val_split, subset=self.subset)
        if self.val_path is None:
            return None
        if isinstance(self.val_path, str | Path) and has_splits(self.val_path):
            return load_rows(self.val_path, split=self.split, subset=self.subset)
        return load_rows(self.val_path)

    def _draw(self, validation: Rows) -> Rows:
        if self.val_size is None:
            return validation
        if self.val_size > len(validation):
            raise ValueError(
                f"`val_size` must be at most the number of validation rows, {len(validation)}, got {self.val_size}."
            )
        return validation.split(self.val_size, seed=self.seed)[1]

    def _hold_out(self, train: Rows) -> tuple[Rows, Rows]:
        size = self.val_fraction if self.val_size is None else self.val_size
        if size > len(train):
            raise ValueError(f"`val_size` must be below the number of rows, {len(train)}, got {size}.")
        return train.split(size, seed=self.seed)
