"""The parts in which a run was made: each from its start, or a resume, to its end, or the next resume."""

import json
from pathlib import Path
from typing import Any

from lit_posttrain.files.whole import write_json

FILE = "parts.json"


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """Return the parts of a run, an empty list where no file says."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        parts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"`{path}`, the list of a run's parts, cannot be read ({error}): mend it, or move it away."
        ) from error
    return parts


def next_part(folder: Path) -> int:
    """Return the number of the part that a resume makes."""
    return max(len(read_parts(folder)), 1) + 1


def begin_part(folder: Path, *, step: int, overrides: list[str], resumes: bool) -> None:
    """Record that a part begins, and that what the one before did beyond it does not count.

    Args:
        folder: of the run.
        step: optimiser steps done before.
        overrides: the options that were typed.
        resumes: whether it goes on in the folder; else the list begins anew.
    """
    parts = read_parts(folder) if resumes else []
    if parts:
        parts[-1]["last_step"] = step
    number = next_part(folder) if resumes else 1
    parts.append({"part": number, "overrides": overrides, "first_step": step, "last_step": None})
    write_json(folder / FILE, parts)


def end_part(folder: Path, *, step: int) -> None:
    """Record the last optimiser step of the part that has begun."""
    parts = read_parts(folder)
    parts[-1]["last_step"] = step
    write_json(folder / FILE, parts)
