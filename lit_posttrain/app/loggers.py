"""Weights & Biases, without an account where there is none."""

import netrc
import os
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(*, save_dir: str, project: str, name: str | None = None, group: str | None = None) -> WandbLogger:
    """A `WandbLogger` that is online if a key is configured, and otherwise writes offline into `save_dir`.

    Args:
        save_dir: the run's folder.
        project: the project's name.
        name: the run's name; None = one that W&B makes up.
        group: the group's name, for the jobs of a sweep.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing phones home
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    return WandbLogger(save_dir=save_dir, project=project, name=name, group=group, offline=not key_is_configured())


def key_is_configured() -> bool:
    """Whether an API key stands in the environment or in ~/.netrc, and WANDB_MODE does not say otherwise."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].strip("/")
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
