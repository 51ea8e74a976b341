"""The resolved configuration: in the folder of a run, and in its loggers."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf


class ConfigFile(Callback):
    """Writes `config.yaml` when training starts: a resume that is refused leaves that of the first run alone.

    Loggers that keep hyperparameters get the configuration too, in a validation of its own as well.

    Args:
        cfg: the configuration of the run.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self._logged = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand it to the loggers; the first validation comes before training, and some loggers write it then."""
        self._log(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, on one process."""
        self._log(trainer)
        if trainer.is_global_zero:
            OmegaConf.save(self.cfg, Path(self.cfg.run_dir) / "config.yaml", resolve=True)

    def _log(self, trainer: Trainer) -> None:
        if self._logged:
            return
        self._logged = True
        values: Any = OmegaConf.to_container(self.cfg, resolve=True)
        for logger in trainer.loggers:
            logger.log_hyperparams(values)
