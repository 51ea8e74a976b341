"""The row of a step stands in metrics.csv when its checkpoint is saved."""

import csv

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_posttrain.callbacks.metrics_csv import MetricsCSV
from lit_posttrain.callbacks.step_row import StepRow


class Logging(BoringModel):
    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.log("train/loss", output["loss"])
        return output


class Kill(ModelCheckpoint):
    """Ends the process, as it were, as soon as the checkpoint of the third step is saved."""

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        if trainer.global_step == 3:
            raise SystemExit


class Switch(Callback):
    """A callback that logs at the end of a batch, before the row is written."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("time/update_s", 1.0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_kill_right_after_the_saving_of_a_checkpoint_loses_no_row(tmp_path, accumulate):
    table = MetricsCSV(tmp_path / "metrics.csv")
    trainer = Trainer(
        max_steps=5,
        accumulate_grad_batches=accumulate,
        logger=table,
        log_every_n_steps=1,
        callbacks=[Switch(), StepRow(), Kill(tmp_path, every_n_train_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    table.finalize = lambda status: None  # a killed process does not come to it
    with pytest.raises(SystemExit):
        trainer.fit(Logging())
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert all(row["train/loss"] and row["time/update_s"] for row in rows)


def test_rows_are_those_that_lightning_writes(tmp_path):
    def run(folder, *callbacks):
        trainer = Trainer(
            max_steps=6,
            accumulate_grad_batches=2,
            logger=MetricsCSV(folder / "metrics.csv"),
            log_every_n_steps=2,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.logger.log_metrics({"x": 1.0}, step=0)
        trainer.fit(Logging())
        with (folder / "metrics.csv").open() as file:
            return [row["step"] for row in csv.DictReader(file)]

    assert run(tmp_path / "with", StepRow()) == run(tmp_path / "without")
