"""The stages of a pipeline side by side: rows of `pipeline.json`, and a table in the terminal."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 160  # characters of a line where nobody's terminal sets the limit


@dataclass
class StageRow:
    """A stage of a pipeline.

    Args:
        stage: its name.
        folder: where its files are.
        status: waiting, running, done, stopped (by its gate), failed or interrupted.
        reused: whether an earlier start had done it.
        steps: optimiser steps done.
        wall_s: seconds of its fit, since it was last resumed.
        weights_sha256: digest of the weights that it exported.
        gate: metric, rule, threshold, value and whether it passed; None = no gate, or not judged yet.
        metrics: the first and last value of each validation metric.
    """

    stage: str
    folder: str
    status: str = "waiting"
    reused: bool = False
    steps: int | None = None
    wall_s: float | None = None
    weights_sha256: str | None = None
    gate: dict[str, Any] | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)

    def take(self, summary: dict[str, Any]) -> None:
        """Fill the row in with what the summary of the stage's run says."""
        self.steps, self.wall_s = summary["steps"], summary["wall_s"]
        self.weights_sha256 = summary["weights_sha256"]
        self.metrics = {
            name: {"first": scores["first"], "last": scores["last"]}
            for name, scores in summary["metrics"].items()
            if name.startswith("val/")
        }


def print_stages(rows: Sequence[StageRow], console: Console | None = None) -> None:
    """Print a row for each stage.

    Args:
        rows: in their order.
        console: where to print; None = stdout.
    """
    console = console or Console(width=None if sys.stdout.isatty() else WIDE)
    table = Table(show_lines=True)
    for name in ("stage", "status", "steps", "seconds", "gate", "first -> last"):
        table.add_column(name, overflow="fold", justify="right" if name in ("steps", "seconds") else "left")
    for row in rows:
        status = f"{row.status}, not run again" if row.reused else row.status
        seconds = "" if row.wall_s is None else f"{row.wall_s:.0f}"
        scores = [f"{name} {each['first']:.3f} -> {each['last']:.3f}" for name, each in row.metrics.items()]
        cells = (row.stage, status, str(row.steps or ""), seconds, _gate(row.gate), "\n".join(scores))
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return ""
    sign = ">=" if gate["rule"] == "at_least" else "<="
    return f"{gate['metric']} {gate['value']:.3f} {sign} {gate['threshold']:.3f}"
