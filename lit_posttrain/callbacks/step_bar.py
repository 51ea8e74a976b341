"""A progress bar that counts optimiser steps, whatever they are made of."""

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class StepProgressBar(TQDMProgressBar):
    """Shows the optimiser steps of the whole run, so that the time that is left is that of the run.

    Lightning's own bar counts the micro-batches of an epoch against a total in steps. A run that is resumed begins
    where it stopped.
    """

    def init_train_tqdm(self) -> Tqdm:
        """Make a bar from the steps that are done to those that will be."""
        total = self.trainer.estimated_stepping_batches
        bar = super().init_train_tqdm()
        bar.initial = bar.n = self.trainer.global_step
        bar.total = int(total) if math.isfinite(total) else None
        bar.refresh()
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Keep the bar of the run when an epoch begins."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on when an optimiser step is done."""
        bar = self.train_progress_bar
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not bar.disable:
            bar.n = trainer.global_step
            bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            bar.refresh()
