"""Some completions as a table in Weights & Biases, which grows with the run."""

import json
import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.callbacks.completion_rows import completion_rows
from lit_posttrain.callbacks.records import RecordsRollouts

SHOWN_INCREMENTS = 100  # W&B shows the latest 100 increments of a table
INCREMENTS = 50
ROLLOUTS_BETWEEN = 10  # where the length of the run is not known


class CompletionsTable(Callback):
    """Adds rows to an incremental `wandb.Table` every few rollouts.

    A row has prompt, completion, each reward, advantage, length and step of a completion of the first process, spread
    evenly over its part of the rollout. Nothing happens unless the Trainer has a `WandbLogger`, and wandb is imported
    only then. The rows are also part of a checkpoint, so that the table of a resumed run is whole where W&B itself
    could not resume: when it is offline, and in another W&B run.

    Args:
        key: the name of the table.
        every_n_rollouts: rollouts from one addition to the next, from the first one on; None = so many that about 50
            additions are spread over the run.
        rows: completions of each of these rollouts.
    """

    def __init__(self, key: str = "completions", *, every_n_rollouts: int | None = None, rows: int = 8) -> None:
        if every_n_rollouts is not None and every_n_rollouts < 1:
            raise ValueError(f"`every_n_rollouts` must be >= 1 or None, got {every_n_rollouts}.")
        if rows < 1:
            raise ValueError(f"`rows` must be >= 1, got {rows}: it counts completions of a rollout.")
        self.key = key
        self.every_n_rollouts = every_n_rollouts
        self.rows = rows
        self._every = 1
        self._table: Any = None
        self._columns: list[str] = []
        self._kept: list[list[Any]] = []
        self._seen: int | None = None  # index of the last rollout
        self._loaded = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a table, with the rows of the checkpoint where there is one, and find out how often to add rows.

        With sharded weights no checkpoint is loaded at `on_fit_start`.
        """
        if not self._loaded:
            self._columns, self._kept, self._seen = [], [], None
        self._table, self._loaded = None, False
        if self.every_n_rollouts is not None:
            self._every = self.every_n_rollouts
        elif isinstance(pl_module, RecordsRollouts):
            rollouts = trainer.estimated_stepping_batches / pl_module.steps_per_rollout
            self._every = math.ceil(rollouts / INCREMENTS) if math.isfinite(rollouts) else ROLLOUTS_BETWEEN

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add rows of the rollout that the batch belongs to, once."""
        logger = next((each for each in trainer.loggers if isinstance(each, WandbLogger)), None)
        if logger is None or not trainer.is_global_zero or not isinstance(pl_module, RecordsRollouts):
            return
        record = pl_module.last_rollout
        if record is None or record.index == self._seen:
            return
        self._seen = record.index
        if record.index % self._every or record.scored.completions is None:
            return
        count = len(record.scored.completions.rows)
        shown = min(self.rows, count)
        rows = [_flat(row) for row in completion_rows(record, (i * count // shown for i in range(shown)))]
        self._add(logger, rows, step=record.step)

    def _add(self, logger: WandbLogger, rows: list[dict[str, Any]], *, step: int) -> None:
        import wandb

        columns = list(rows[0])
        if columns != self._columns:  # other reward functions than before the resume
            self._table, self._columns, self._kept = None, columns, []
        if self._table is None:
            # A run that W&B resumes has the rows already and goes on behind them.
            known = [] if getattr(logger.experiment, "resumed", False) else self._kept
            self._table = wandb.Table(columns=columns, data=[list(row) for row in known], log_mode="INCREMENTAL")
        values = [list(row.values()) for row in rows]
        for row in values:
            self._table.add_data(*row)
        self._kept = [*self._kept, *values][-SHOWN_INCREMENTS * self.rows :]
        logger.log_metrics({self.key: self._table}, step=step)

    def state_dict(self) -> dict[str, Any]:
        """The rows in the table, at most as many as W&B shows, and the last rollout that was looked at."""
        return {"columns": self._columns, "rows": self._kept, "rollout": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the rows that the checkpoint knows of."""
        self._columns, self._kept, self._seen = state_dict["columns"], state_dict["rows"], state_dict["rollout"]
        self._loaded = True


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Flatten a row to one value in a column: rewards side by side, chat messages as JSON."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "rewards":
            flat |= {f"reward/{function}": score for function, score in value.items()}
        else:
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
    return flat
