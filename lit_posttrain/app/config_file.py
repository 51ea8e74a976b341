"""What a run was asked for: its configuration, in its folder and its loggers, and the parts that it was made in."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.parts import begin_part, end_part
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
        """Hand it to the loggers; the first validation comes before training, and some loggers write it then."""
        self._log(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them, on one process."""
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
