"""The row of a step in `metrics.csv`, before a checkpoint of that step can be saved."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_posttrain.callbacks.metrics_csv import MetricsCSV


class StepRow(Callback):
    """Hands the metrics of an optimiser step to the table at the end of its last batch.

    Lightning does so too, but after the callbacks, of which one saves the checkpoint: a run that is killed in between
    and resumed would never write that row. Lightning puts checkpoint callbacks behind all others; other callbacks that
    log at the end of a batch belong before this one.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row of a step, as Lightning is about to do."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        tables = [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
        if not tables or not trainer._logger_connector.should_update_logs:
            return
        logged = trainer._logger_connector.metrics["log"]
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in logged.items()}
        for table in tables:
            table.log_metrics(values, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the table to the disk before the checkpoint."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.flush()
