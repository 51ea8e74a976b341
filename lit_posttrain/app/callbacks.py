"""Callbacks that belong to a run from a configuration, in every mode and with every algorithm."""

import atexit
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.folder.parts import begin_part, end_part
from lit_posttrain.app.options.hints import nearest
from lit_posttrain.files.whole import write_text


class ConfigFile(Callback):
    """Writes `config.yaml` and `parts.json` when training starts: a resume that is refused leaves them alone.

    A run that resumes in its folder keeps the configuration that it began with. Loggers that keep hyperparameters get
    the configuration too, in a validation of its own as well.

    Args:
        cfg: the configuration of the run.
        resumes: whether it goes on in its folder.
    """

    def __init__(self, cfg: DictConfig, *, resumes: bool = False) -> None:
        self.cfg = cfg
        self.resumes = resumes
        self._logged = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the configuration to the loggers, which may write it at the first validation, before training."""
        self._log(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration and the beginning of a part of the run, on one process."""
        self._log(trainer)
        if trainer.is_global_zero:
            folder = Path(self.cfg.run_dir)
            if not (self.resumes and (folder / "config.yaml").is_file()):
                write_text(folder / "config.yaml", OmegaConf.to_yaml(self.cfg, resolve=True))
            typed = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
            begin_part(folder, step=trainer.global_step, overrides=typed, resumes=self.resumes)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write how far this part of the run has come."""
        if trainer.is_global_zero:
            end_part(Path(self.cfg.run_dir), step=trainer.global_step)

    def _log(self, trainer: Trainer) -> None:
        if self._logged:
            return
        self._logged = True
        values: Any = OmegaConf.to_container(self.cfg, resolve=True)
        for logger in trainer.loggers:
            logger.log_hyperparams(values)


class MonitoredMetric(Callback):
    """Ends a run before its first step where validation does not report a metric that the run is judged by.

    Without it the run would end at the first validation in training, or a pipeline behind it, hours later.

    Args:
        option: which names the metric.
        metric: the name; any but a `val/` one is not known before training and not looked for.
    """

    def __init__(self, option: str, metric: str) -> None:
        self.option = option
        self.metric = metric

    @property
    def state_key(self) -> str:
        """Give each option a key of its own, since Lightning wants the keys of callbacks to differ."""
        return self._generate_state_key(option=self.option)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look among the scores before training, where there are any.

        Raises:
            ValueError: listing the metrics there are.
        """
        names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if names and self.metric.startswith("val/") and self.metric not in names:
            raise ValueError(
                f"`{self.option}` must be a metric of this run, got `{self.metric}`.{nearest(self.metric, names)} "
                f"Validation reports: {', '.join(names)}."
            )


class EndTogether(Callback):
    """Ends all processes of a run where one of them fails or gets SIGTERM.

    Where another one than the first fails Lightning ends the first within seconds. The other way round they would wait
    in a collective for a process that is gone, with NCCL for half an hour and on a GPU each: the first one takes along
    those that it has launched, at exit, after what went wrong has been said.

    On SIGTERM one process stops at once, wherever it is. Several have to stop at the same place, where they can save
    together: they ask one another at the beginning of every optimiser step. Lightning's own handler does so within the
    signal, in the middle of whatever the others are doing, and may hang for ever; so it is replaced.
    """

    def __init__(self) -> None:
        self._several = False  # processes
        self._asked = False  # to end

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning, which has just taken it."""
        self._take_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning where no check came before training."""
        self._take_over(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning where there is no training."""
        self._take_over(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning where completions are only predicted."""
        self._take_over(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End all processes where one of them was asked to.

        Raises:
            SIGTERMException: on all of them.
        """
        asks = self._several and batch_idx % trainer.accumulate_grad_batches == 0
        if asks and trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remember to end the other processes at exit; a launched one has none to end."""
        if trainer.strategy.launcher is not None:
            atexit.register(trainer.strategy.launcher.kill, signal.SIGKILL)

    def _take_over(self, trainer: Trainer) -> None:
        self._several = trainer.world_size > 1
        signal.signal(signal.SIGTERM, self._stop)  # Lightning puts back what was there before the run

    def _stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        self._asked = True
        if not self._several:
            raise SIGTERMException
