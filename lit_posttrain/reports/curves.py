"""One picture of a sweep: a metric against tokens and against time, a line for each kind of job."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_posttrain.files.whole import whole_file
from lit_posttrain.reports.comparison import Job

TOKENS, SECONDS = "throughput/tokens", "time/train_s"
AXES = {TOKENS: "completion tokens", SECONDS: "seconds of training"}


@dataclass(frozen=True)
class Band:
    """Several runs of one kind, validation for validation.

    Args:
        x: the mean place of each validation on the axis.
        mean: the mean value.
        low: the least value.
        high: the largest value.
        runs: how many runs there are.
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    runs: int


def read_curve(folder: Path, metric: str, axis: str) -> list[tuple[float, float]]:
    """Place on the axis and value of each validation of a run; none where it has no `metrics.csv`.

    Args:
        folder: of the run.
        metric: the name of the metric.
        axis: the column that tells the place.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(float(row[axis]), float(row[metric])) for row in rows if row.get(metric) and row.get(axis)]


def band(curves: Sequence[Sequence[tuple[float, float]]]) -> Band:
    """Mean and range over runs; of runs of unequal length the validations that all have.

    Args:
        curves: of each run, at least one.

    >>> band([[(0, 0.5), (10, 0.7)], [(0, 0.5), (20, 0.9), (30, 1.0)]])
    Band(x=[0.0, 15.0], mean=[0.5, 0.8], low=[0.5, 0.7], high=[0.5, 0.9], runs=2)
    """
    points = list(zip(*curves, strict=False))
    values = [[value for _, value in point] for point in points]
    return Band(
        x=[sum(x for x, _ in point) / len(point) for point in points],
        mean=[sum(each) / len(each) for each in values],
        low=[min(each) for each in values],
        high=[max(each) for each in values],
        runs=len(curves),
    )


def draw_curves(jobs: Sequence[Job], path: Path, *, metrics: Sequence[str], by: str) -> bool:
    """Draw the jobs that ended well: a row of panels for each metric, a column for each axis, a line for each kind.

    Args:
        jobs: in any order.
        path: of the picture; what its suffix says.
        metrics: names of validation metrics.
        by: the option whose value is the kind of a job; the others, such as the seed, make the range.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no display, and leaves pyplot's choice alone
    from matplotlib.figure import Figure

    kinds: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.number):
        if job.error is None:
            kinds.setdefault(job.overrides.get(by, ""), []).append(job)
    figure = Figure(figsize=(11, 4 * len(metrics)), layout="constrained")
    panels: Any = figure.subplots(len(metrics), len(AXES), squeeze=False, sharey="row")
    for row, metric in zip(panels, metrics, strict=True):
        for panel, (axis, label) in zip(row, AXES.items(), strict=True):
            panel.set_xlabel(label)
            panel.grid(alpha=0.3)
            for kind, members in kinds.items():
                curves = [curve for job in members if (curve := read_curve(Path(job.folder), metric, axis))]
                if curves:
                    _draw(panel, kind, band(curves))
        row[0].set_ylabel(metric)
        if row[0].lines:
            row[0].legend()
    drawn = any(panel.lines for panel in panels.flat)
    if drawn:
        with whole_file(path, binary=True) as file:
            FigureCanvasAgg(figure).print_figure(file, dpi=120, format=path.suffix[1:])
    return drawn


def _draw(panel: Any, kind: str, of: Band) -> None:
    """Draw a line with its range."""
    runs = f" ({of.runs} runs: mean, range)" if of.runs > 1 else ""
    (line,) = panel.plot(of.x, of.mean, marker="o", markersize=3, label=f"{kind}{runs}")
    if of.runs > 1:
        panel.fill_between(of.x, of.low, of.high, color=line.get_color(), alpha=0.2, linewidth=0)
