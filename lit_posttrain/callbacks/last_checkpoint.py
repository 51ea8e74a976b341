"""The checkpoint to go on from."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException


@runtime_checkable
class KnowsItsSteps(Protocol):
    """A module that can tell whether its weights and Lightning's counters speak of the same step."""

    between_steps: bool


class LastCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint: of every n-th optimiser step, of the last one, and of the one before an interruption.

    The checkpoint of the last step is written before callbacks end the fit, such as one that puts the average of the
    weights in their place: the fit can go on with more steps as if it had not been over. On an interruption the last
    step that is whole is saved; on several processes only where all of them are interrupted at the same place, as by
    SIGTERM, since they have to save together.

    Args:
        dirpath: its folder.
        filename: without the extension.
        every_n_train_steps: optimiser steps from one to the next.
    """

    def __init__(self, dirpath: str | Path, *, filename: str = "last", every_n_train_steps: int = 25) -> None:
        super().__init__(
            dirpath,
            filename,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._first_step: int | None = None  # optimiser steps that were done when this fit began to train

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember where training began: before it there is nothing to save."""
        if self._first_step is None:
            self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every n-th step and the last one."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:
            self._save_unless_saved(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, where it is the end of the last epoch or a callback has ended the fit."""
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if trainer.should_stop or epochs.processed == trainer.max_epochs:
            self._save_unless_saved(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last step that is whole, where that can be done."""
        begun = self._first_step is not None and trainer.global_step > self._first_step
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        whole = isinstance(pl_module, KnowsItsSteps) and pl_module.between_steps
        if begun and together and whole:
            self._save_unless_saved(trainer)

    def _save_unless_saved(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
