"""The resolved configuration in the folder of a run."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf


class ConfigFile(Callback):
    """Writes `config.yaml` when training starts: a resume that is refused leaves that of the first run alone.

    Args:
        cfg: the configuration of the run.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, on one process."""
        if trainer.is_global_zero:
            OmegaConf.save(self.cfg, Path(self.cfg.run_dir) / "config.yaml", resolve=True)
