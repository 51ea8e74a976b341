"""One table of all metrics with one row for each optimiser step."""

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_posttrain.files.whole import whole_file

FLUSH_EVERY_S = 5.0


class MetricsCSV(Logger):
    """Writes `metrics.csv`: a row is what was measured after so many optimiser steps, in the order of the steps.

    Lightning's own `CSVLogger` gives every call a row of its own and deletes the file when a run is resumed. Here a row
    is found by its step: values of one step come together, and a resumed run goes on in the table of the first, with no
    row missing or doubled. The file is replaced whole and at once, so that it is never half-written.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: dict[int, dict[str, Any]] = {}
        self._flushed_at = time.monotonic()
        self._changed = False  # since the file was written

    @property
    def name(self) -> str:
        """Return the kind of this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Return an empty version, since a run has one table."""
        return ""

    @property
    def root_dir(self) -> str:
        """The folder of the table."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Leave hyperparameters out, since the run's config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Put the values into the row of their step."""
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values:
            row = self._rows.setdefault(step or 0, {})
            self._changed |= row != row | values
            row.update(values)

    def go_on_from(self, step: int) -> None:
        """Take up what the file holds, but for later steps, which a run that resumes at `step` makes again."""
        if self.path.is_file():
            self._rows = {row: values for row, values in _read(self.path).items() if row <= step}

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Write the table, so that it has all that a checkpoint has seen."""
        self.flush()

    @rank_zero_only
    def save(self) -> None:
        """Write the table now and then: Lightning asks for it at every step."""
        if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write the table if it has changed."""
        self._flushed_at = time.monotonic()
        if not self._changed:
            return
        columns = sorted({name for values in self._rows.values() for name in values})
        with whole_file(self.path) as file:
            writer = csv.DictWriter(file, ["step", *columns])
            writer.writeheader()
            writer.writerows({"step": step, **self._rows[step]} for step in sorted(self._rows))
        self._changed = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are left when the run ends."""
        self.flush()


def _read(path: Path) -> dict[int, dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): {name: v for name, v in row.items() if name != "step" and v != ""} for row in rows}
