"""Going on with a fit exactly where a checkpoint was written, whatever Lightning was doing there.

Lightning's loops guess from their counters where a stored fit stood. They guess wrong where a checkpoint was written
before the validation of its step, at the end of an epoch, inside an optimiser step, or by a fit that had itself been
resumed. Here a checkpoint says where it was written. The counters are put into one form that the loops read in one way,
and what was still to be done for the last step is done when training starts: the other checkpoint callbacks, the
validation, the end of the epoch.
"""

import logging
import os
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from lit_posttrain.batching import PassLoader
from lit_posttrain.modules.standing import Stage, Standing, standing_of

log = logging.getLogger(__name__)


class ExactResume(Callback):
    """Writes into every checkpoint where the fit stands, and makes another fit go on from there.

    The modules of this library bring it along. In another module it does the same, as far as the training loader knows
    its place (`PassLoader`, as the DataModules of this library make them).

    Args:
        allow_changed_data: whether the fit may go on where the training data, their order or the batch size are not
            those of the checkpoint. It begins a new pass over the data then, and says what was left out.
    """

    def __init__(self, *, allow_changed_data: bool = False) -> None:
        self.allow_changed_data = allow_changed_data
        self._pending: Standing | None = None  # where the checkpoint's fit stood, until it is taken up
        self._loader_state: dict[str, Any] | None = None  # of that checkpoint, until there is a loader
        self._path: str | None = None
        self._validated_step: int | None = None  # optimiser steps done at the last validation of this fit
        self._updating = 0  # the batch, counted over all epochs, whose optimiser step has begun last

    def inside_update(self, trainer: Trainer) -> bool:
        """Tell whether weights, optimiser and counters are of different steps at the moment."""
        batch: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        return batch.processed < batch.ready == self._updating

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Remember that from here on, until the batch is done, the weights are not those that the counters speak of."""
        batch: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        self._updating = batch.ready

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that the weights of the current step have been validated."""
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where the fit stands."""
        checkpoint["standing"] = asdict(self._pending or self._standing(trainer))
        if self._loader_state is not None:
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = [self._loader_state]

    def _standing(self, trainer: Trainer) -> Standing:
        loader = trainer.train_dataloader
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        unfinished = loader.unfinished if isinstance(loader, PassLoader) else 0
        stage = Stage.BETWEEN if unfinished else self._stage(trainer)
        logs = stage == Stage.BATCH_END and trainer.training and trainer._logger_connector.should_update_logs
        return Standing(
            step=trainer.global_step,
            epoch=max(0, trainer.fit_loop.epoch_progress.current.ready - 1),
            batches=batches.processed - unfinished,
            accumulate=trainer.accumulate_grad_batches,
            stage=stage.value,
            inside_update=self.inside_update(trainer),
            stopping=trainer.should_stop and trainer.training,
            callback_metrics=_numbers(trainer.callback_metrics),
            row=_numbers(trainer._logger_connector.metrics["log"]) if logs else {},
            checkpoints={
                each.state_key: [each._last_global_step_saved, each._defer_save_until_validation]
                for each in _model_checkpoints(trainer)
            },
            weights_of=_who_replaced_the_weights(trainer),
        )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the loops of a checkpoint, which Lightning is about to load, into a form that it reads in one way.

        Raises:
            ValueError: if a fit cannot go on from it exactly.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._pending = standing = standing_of(checkpoint)
        self._path = None if trainer.ckpt_path is None else os.path.realpath(trainer.ckpt_path)
        fit_loop = checkpoint["loops"]["fit_loop"]
        loaders = fit_loop["state_dict"].pop("combined_loader", [])  # Lightning restores them only sometimes
        self._loader_state = loaders[0] if loaders else None
        inside = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        _set(fit_loop["epoch_progress"], {name: standing.epoch + more for name, more in inside.items()})
        for loop in ("epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
            _set(fit_loop[loop], dict.fromkeys(inside, 0))
            fit_loop[loop]["is_last_batch"] = False
        steps = standing.step
        if standing.stage != Stage.OVER and 0 <= trainer.max_steps <= steps:
            steps = trainer.max_steps - 1  # or Lightning would leave out what is still to be done for the last step
        fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] = steps
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = standing.step
        if isinstance(trainer.train_dataloader, PassLoader):  # where weights are sharded a checkpoint comes late
            self.load_place(trainer, trainer.train_dataloader)

    def load_place(self, trainer: Trainer, loader: PassLoader) -> None:
        """Tell a loader its place, where a checkpoint has one for it.

        Raises:
            ValueError: if the data have changed since, and may not.
        """
        state, self._loader_state = self._loader_state, None
        if state is None:
            return
        loader.load_state_dict(state)
        changes = loader.changes()
        if not trainer.strategy.reduce_boolean_decision(bool(changes), all=False):
            return
        named = "; ".join(
            f"`{name}`: {was} -> {now}" if was else f"other {name}" for name, (was, now) in changes.items()
        )
        if not self.allow_changed_data:
            raise ValueError(
                f"the training data are not those of the checkpoint ({named or 'on another process'}), so that rows "
                "would be skipped and others repeated in silence. Resume with the same data, batch size and seed; or "
                "set `allow_changed_data` to begin a new pass over the data."
            )
        used, known = loader.begin_anew()
        left_out = "its other batches are left out" if known is None else f"the other {known - used} are left out"
        log.warning(
            "the training data have changed (%s): a new pass over them begins. Of the pass that was interrupted %s "
            "batches were used, which may come again; %s",
            named,
            used,
            left_out,
        )
        assert self._pending is not None
        self._pending = replace(self._pending, epoch=self._pending.epoch + 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what was still to be done for the last step, and let Lightning train on."""
        self._updating = 0
        standing, self._pending = self._pending, None
        if standing is None:
            return
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = standing.step
        loader, fetcher = trainer.train_dataloader, fit_loop._data_fetcher
        assert fetcher is not None
        used = 0
        if isinstance(loader, PassLoader):
            self.load_place(trainer, loader)
            loader.take_up()
            used = loader.place.position
        iter(fetcher)  # anew, now that the length of the epoch is known
        total = standing.batches
        if trainer.accumulate_grad_batches != standing.accumulate:
            total = total // standing.accumulate * trainer.accumulate_grad_batches
        _count(epoch_loop.batch_progress, total, used)
        epoch_is_over = used >= min(fetcher.length or torch.inf, fit_loop.max_batches)
        epoch_loop.batch_progress.is_last_batch = epoch_is_over
        epoch_loop.val_loop.restarting = False
        trainer.should_stop = standing.stopping
        metrics = {name: torch.tensor(value) for name, value in standing.callback_metrics.items()}
        trainer._logger_connector._callback_metrics.update(metrics)
        self._finish_checkpoints(trainer, standing, used)
        self._finish_step(trainer, standing)
        epoch_is_over |= trainer.should_stop
        if used > 0 and not epoch_is_over:  # the loop adds the last step to its count when it goes on
            epoch_loop._batches_that_stepped = standing.step - 1
            epoch_loop.reset_restart_stage()
            return
        if used == 0:
            _count(fit_loop.epoch_progress, standing.epoch)
        elif standing.stage in (Stage.EPOCH_END, Stage.OVER):
            _count(fit_loop.epoch_progress, standing.epoch + 1)
        else:
            fit_loop.on_advance_end()
        fit_loop.on_iteration_done()
        epoch_loop.on_iteration_done()

    def _stage(self, trainer: Trainer) -> Stage:
        if trainer.state.fn != TrainerFn.FITTING or not (trainer.training or trainer.validating):
            return Stage.OVER
        if trainer.sanity_checking:
            return Stage.BETWEEN
        if trainer.validating:
            return Stage.VALIDATION_END if self._validated_step == trainer.global_step else Stage.BATCH_END
        epoch: Any = trainer.fit_loop.epoch_progress.current
        batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        if 0 < epoch.ready == epoch.processed:
            return Stage.EPOCH_END
        return Stage.BATCH_END if batch.processed > batch.completed else Stage.BETWEEN

    def _finish_checkpoints(self, trainer: Trainer, standing: Standing, used: int) -> None:
        """Let the checkpoint callbacks have their turn that came behind the one that wrote the checkpoint."""
        callbacks, module = _model_checkpoints(trainer), trainer.lightning_module
        fit_loop: Any = trainer.fit_loop
        for callback in callbacks:
            saved, waits = standing.checkpoints.get(callback.state_key, [0, False])
            callback._last_global_step_saved = standing.step if self._was_written_by(callback) else saved
            callback._defer_save_until_validation = waits
        # meanwhile everything looks as it does in these hooks, for what they save has to say so again
        if standing.stage == Stage.BATCH_END:
            fit_loop.epoch_loop.batch_progress.current.completed -= 1
            for callback in callbacks:
                callback.on_train_batch_end(trainer, module, None, None, used - 1)
            fit_loop.epoch_loop.batch_progress.current.completed += 1
        elif standing.stage == Stage.VALIDATION_END:
            self._validated_step, trainer.validating = standing.step, True
            for callback in callbacks:
                callback.on_validation_end(trainer, module)
            trainer.training = True
        elif standing.stage == Stage.EPOCH_END:
            fit_loop.epoch_progress.current.processed += 1
            for callback in callbacks:
                callback.on_train_epoch_end(trainer, module)
            fit_loop.epoch_progress.current.processed -= 1

    def _finish_step(self, trainer: Trainer, standing: Standing) -> None:
        """The validation of the last step where it is due and has not been made, and loggers' count of the steps."""
        epoch_loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        epoch_loop._batches_that_stepped = standing.step
        if standing.stage not in (Stage.BATCH_END, Stage.VALIDATION_END):
            return
        epoch_loop._batches_that_stepped -= 1
        if standing.stage == Stage.BATCH_END and standing.row:
            for logger in trainer.loggers:
                logger.log_metrics(standing.row, step=epoch_loop._batches_that_stepped)
        epoch_loop._skip_next_val = standing.stage == Stage.VALIDATION_END
        assert fetcher is not None
        epoch_loop.on_advance_end(fetcher)

    def _was_written_by(self, callback: ModelCheckpoint) -> bool:
        known = (callback.best_model_path, callback.last_model_path, *callback.best_k_models)
        return self._path in [os.path.realpath(path) for path in known if path]


def _count(progress: Any, total: int, current: int | None = None) -> None:
    """Give all counters of a progress of Lightning's the same number, those of this fit another one if there is one."""
    for tracker, number in ((progress.total, total), (progress.current, total if current is None else current)):
        tracker.ready = tracker.started = tracker.processed = tracker.completed = number


def _set(progress: dict[str, Any], numbers: dict[str, int]) -> None:
    """Give counters of this fit and of all fits the same numbers."""
    for tracker in ("total", "current"):
        progress[tracker].update(numbers)


def _numbers(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _who_replaced_the_weights(trainer: Trainer) -> str | None:
    """The callback that ends a fit with an average of its weights, where the fit is over."""
    if trainer.training or trainer.validating:
        return None
    averaging = (WeightAveraging, StochasticWeightAveraging)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((type(callback).__name__ for callback in callbacks if isinstance(callback, averaging)), None)
