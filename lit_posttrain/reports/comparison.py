"""The jobs of a sweep side by side: `comparison.csv`, and a table in the terminal."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_posttrain.files.whole import whole_file

RESULT = ("metric", "first", "last", "best", "steps", "wall_s", "error")  # columns after those of the options
WIDE = 200  # characters of a line where nobody's terminal sets the limit


@dataclass(frozen=True)
class Job:
    """A job of a sweep that has ended.

    Args:
        number: its place in the sweep, from 0.
        folder: where its files are.
        overrides: the options that it was given, as written on a command line.
        metric: the name of the metric that it is judged by.
        first: the metric before training, None = not measured; `last` and `best` alike.
        last: the metric at the end.
        best: the best value of the metric.
        steps: optimiser steps done.
        wall_s: seconds of the fit.
        error: why it failed, None = it did not.
    """

    number: int
    folder: str
    overrides: dict[str, str] = field(default_factory=dict)
    metric: str | None = None
    first: float | None = None
    last: float | None = None
    best: float | None = None
    steps: int | None = None
    wall_s: float | None = None
    error: str | None = None

    @property
    def status(self) -> str:
        """`ok` or `failed`."""
        return "ok" if self.error is None else "failed"


def varied(jobs: Sequence[Job]) -> list[str]:
    """The options in which the jobs differ, in the order in which they were given.

    >>> varied([Job(0, "0", {"seed": "0", "logger": "csv"}), Job(1, "1", {"seed": "1", "logger": "csv"})])
    ['seed']
    """
    names = dict.fromkeys(name for job in jobs for name in job.overrides)
    return [name for name in names if len({job.overrides.get(name) for job in jobs}) > 1]


def write_comparison(jobs: Sequence[Job], path: Path) -> None:
    """Write a row for each job, in their order; the file is there whole or not at all.

    Args:
        jobs: in any order.
        path: of the CSV.
    """
    names = varied(jobs)
    with whole_file(path) as file:
        rows = csv.writer(file)
        rows.writerow(["job", "folder", "status", *names, *RESULT])
        for job in sorted(jobs, key=lambda job: job.number):
            options = [job.overrides.get(name) for name in names]
            result = [getattr(job, name) for name in RESULT]
            rows.writerow([job.number, job.folder, job.status, *options, *result])


def print_comparison(jobs: Sequence[Job], console: Console | None = None) -> None:
    """Print the table, and below it the errors, which are too long for a column.

    Args:
        jobs: in any order.
        console: where to print; None = stdout.
    """
    console = console or Console(width=None if sys.stdout.isatty() else WIDE)
    names = varied(jobs)
    metrics = list(dict.fromkeys(job.metric for job in jobs if job.metric))
    table = Table(title=" / ".join(metrics) or None, title_justify="left")
    for name in ("job", "status", *names):
        table.add_column(Text(name), overflow="fold")
    for name in ("first", "last", "best"):
        table.add_column(name, justify="right")
    ordered = sorted(jobs, key=lambda job: job.number)
    for job in ordered:
        options = [job.overrides.get(name, "") for name in names]
        scores = ["" if score is None else f"{score:.4g}" for score in (job.first, job.last, job.best)]
        # as Text: the brackets of a list would be taken for markup
        table.add_row(*(Text(cell) for cell in (str(job.number), job.status, *options, *scores)))
    console.print(table)
    for job in ordered:
        if job.error is not None:
            console.print(Text(f"job {job.number} failed: {job.error}\n  see {job.folder}"), soft_wrap=True)
