"""Rows of data, whatever they come from: a file, a data set on the Hugging Face Hub, or memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_posttrain.data.sources.files import READERS, read_file
from lit_posttrain.data.sources.hub import load_split
from lit_posttrain.data.sources.mixing import permutation

Source = str | Path | Sequence[Mapping[str, Any]]


@dataclass
class Rows:
    """Rows that know where they came from.

    Attributes:
        rows: a dictionary per row.
        source: the file or data set; empty for rows made in memory.
        numbers: the line (from 1) or the index (from 0) of each row in its source; None for 0, 1, 2, ...
        by_line: whether `numbers` are lines.

    >>> rows = Rows([{"prompt": "a"}, {"prompt": "b"}], source="prompts.jsonl", numbers=[1, 2], by_line=True)
    >>> rows.where(1), rows[1]
    ('prompts.jsonl:2', {'prompt': 'b'})
    """

    rows: list[dict[str, Any]] = field(repr=False)
    source: str = ""
    numbers: Sequence[int] | None = field(default=None, repr=False)
    by_line: bool = False

    @property
    def name(self) -> str:
        """What the rows are called in messages."""
        return self.source or "the rows given"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def where(self, index: int) -> str:
        """Where row `index` is to be found, for an error message."""
        number = index if self.numbers is None else self.numbers[index]
        if self.by_line:
            return f"{self.source}:{number}"
        return f"row {number} of {self.source}" if self.source else f"row {number}"

    def columns(self) -> list[str]:
        """The names that occur in any row, in the order of their first occurrence."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def select(self, indices: Iterable[int]) -> Rows:
        """These rows in this order, still knowing where they came from."""
        chosen = list(indices)
        numbers = chosen if self.numbers is None else [self.numbers[index] for index in chosen]
        return Rows([self.rows[index] for index in chosen], self.source, numbers, self.by_line)

    def split(self, held_out: int | float, *, seed: int) -> tuple[Rows, Rows]:
        """Hold out rows at random, the same ones for the same seed.

        Args:
            held_out: how many rows (an integer), or which fraction of them (a float from 0 to 1; at least one row
                unless it is 0).
            seed: which rows.

        Returns:
            The rows that remain and the rows held out, both in the order of the source.

        Raises:
            ValueError: if `held_out` is more than there is, or negative.
        """
        count = len(self)
        if isinstance(held_out, float):
            if not 0.0 <= held_out <= 1.0:
                raise ValueError(f"`held_out` must be a fraction from 0 to 1 or a number of rows, got {held_out}.")
            held_out = max(1, round(held_out * count)) if held_out > 0 else 0
        if not 0 <= held_out <= count:
            raise ValueError(f"`held_out` must be from 0 to the number of rows, {count}, got {held_out}.")
        order = permutation(count, seed=seed)
        return self.select(sorted(order[held_out:])), self.select(sorted(order[:held_out]))


def load_rows(source: Source, *, split: str = "train", subset: str | None = None) -> Rows:
    """Read all rows of a source.

    Args:
        source: a file (.jsonl; .json with one object per line or one list; .csv; .parquet), a folder of such files,
            the name of a data set on the Hugging Face Hub, or the rows themselves.
        split: which split of a data set or folder; also a part such as "train[:100]". A file has no splits.
        subset: the configuration of a data set on the Hub, such as "main"; of no meaning to a file, which may be a copy
            of one.

    Raises:
        FileNotFoundError: if there is no such file, or the Hub cannot be reached and the data set is not cached.
        TypeError: if the source is neither a path nor a list, or a row in memory is no mapping.
        ValueError: if there are no rows, or something is wrong with them (with file and line).

    >>> load_rows([{"prompt": "2 + 2 ="}]).where(0)
    'row 0'
    """
    if isinstance(source, str | Path) and has_splits(source):
        dataset = load_split(str(source), split=split, subset=subset)
        rows = Rows(dataset.to_list(), f"{source} ({split})")
    else:
        if split != "train":
            raise ValueError(
                f"`split` is for data sets of the Hugging Face Hub, got {split!r} with "
                f"{source if isinstance(source, str | Path) else 'rows in memory'}: a file has no splits; "
                "for validation give another file (`val_path`) or hold rows out (`val_fraction`)."
            )
        if isinstance(source, str | Path):
            made, lines = read_file(source)
            rows = Rows(made, str(source), lines, by_line=lines is not None)
        else:
            rows = _copy_rows(source)
    if len(rows) == 0:
        raise ValueError(f"{rows.source or 'the list given'}: there are no rows; at least one is needed.")
    return rows


def has_splits(source: str | Path) -> bool:
    """Whether `source` is a folder or a data set on the Hub, rather than a file."""
    path = Path(source).expanduser()
    if path.is_dir():
        return True
    # A name on the Hub has at most one slash; a `Path`, and what begins like one, is meant to be a file.
    looks_like_path = isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    return not (path.is_file() or path.suffix.lower() in READERS or looks_like_path)


def _copy_rows(source: Sequence[Mapping[str, Any]]) -> Rows:
    if not isinstance(source, Iterable):
        raise TypeError(f"the source of rows must be a path, a name or a list of mappings, got {source!r}.")
    rows = []
    for index, row in enumerate(source):
        if not isinstance(row, Mapping):
            raise TypeError(f"row {index} must be a mapping from column to value, got {type(row).__name__}.")
        rows.append(dict(row))
    return Rows(rows)
