"""Rows out of local files: JSON lines, one JSON list, CSV, Parquet.

Each reader returns the rows and, of files with a row in a line, the line of each (from 1, as editors count). Whatever
is wrong with a file is an error that says where.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_posttrain.data.hints import did_you_mean

NumberedRows = tuple[list[dict[str, Any]], list[int] | None]  # None where rows have no lines, but an index


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        ValueError: if the file is empty, or not UTF-8 (with the line of the first wrong byte).
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: the file must be UTF-8 text, got byte 0x{error.object[error.start]:02x} ({error.reason}): "
            "save it again as UTF-8."
        ) from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty; at least one row is needed.")
    return text


def parse_json(text: str, *, path: Path, first_line: int) -> Any:
    """The JSON value in `text`, which begins on line `first_line` of the file.

    Raises:
        ValueError: if it is no JSON, with line, column and reason.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}:{line}: broken JSON at column {error.colno}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, brackets nested too deeply
        raise ValueError(f"{path}:{first_line}: JSON that cannot be read: {error}.") from error


def read_jsonl(path: Path) -> NumberedRows:
    """One JSON object per line; blank lines only at the end.

    Raises:
        ValueError: if a line is blank, broken, or holds something other than an object.
    """
    rows = []
    # Not `splitlines`: it also splits at U+2028 and the like, which may stand inside a JSON string.
    for number, line in enumerate(read_text(path).rstrip().split("\n"), start=1):
        if not line.strip():
            raise ValueError(f"{path}:{number}: a blank line between rows; each line must hold one JSON object.")
        row = parse_json(line, path=path, first_line=number)
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}:{number}: each line must hold one JSON object {{...}}, got {type(row).__name__}; "
                "a file that holds one list of objects must be named .json."
            )
        rows.append(row)
    return rows, list(range(1, len(rows) + 1))


def read_json(path: Path) -> NumberedRows:
    """A file that holds one list of objects, or one object per line.

    Raises:
        ValueError: if it is broken, or an entry is something other than an object.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        return read_jsonl(path)
    rows = parse_json(text, path=path, first_line=1)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {path}: must be a JSON object {{...}}, got {type(row).__name__}.")
    return rows, None


def read_csv(path: Path) -> NumberedRows:
    """Comma-separated values with a header line; every value is text.

    Raises:
        ValueError: if a column name occurs twice, or a row has another number of fields than the header.
    """
    text = read_text(path).rstrip("\r\n")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, numbers = [], []
    header: list[str] = []
    line = 1
    try:
        for fields in reader:
            if not header:
                header = fields
                if repeated := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
                    raise ValueError(f"{path}:1: column names must differ, got `{repeated[0]}` more than once.")
            elif len(fields) != len(header):
                raise ValueError(
                    f"{path}:{line}: the header has {len(header)} fields, this row {len(fields)}; "
                    'a value with commas, quotes or line breaks must stand in "double quotes".'
                )
            else:
                rows.append(dict(zip(header, fields, strict=True)))
                numbers.append(line)
            line = reader.line_num + 1  # a quoted value may run over several lines: where the next row begins
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: broken CSV: {error}.") from error
    return rows, numbers


def read_parquet(path: Path) -> NumberedRows:
    """A Parquet file.

    Raises:
        ValueError: if it is none.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist(), None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {error}") from error


READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def read_file(source: str | Path) -> NumberedRows:
    """The rows of a file of any kind that `READERS` names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its kind is unknown or it is empty or broken, with the line.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        folder = path.absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"`{source}` was not found: there is no folder {folder}.")
        hint = did_you_mean(path.name, (entry.name for entry in folder.iterdir()))
        raise FileNotFoundError(f"`{source}` was not found: there is no file {path.absolute()}.{hint}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{source}: the extension must be one of {', '.join(READERS)}, got {path.suffix!r}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{source}: the file is empty; at least one row is needed.")
    return reader(path)
