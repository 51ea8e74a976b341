"""The loggers of a run: how they are built, how they go on when it is resumed, and how W&B's runs begin and end."""

import netrc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig

from lit_posttrain.callbacks.metrics_csv import MetricsCSV

# W&B's own names: [offline-]run-<date>_<time>-<id>
RUN_FOLDER = re.compile(r"(?:offline-)?run-(\d{8}_\d{6})-(.+)")
# Where artifacts, tables among them, wait for the upload; by default in the user's home.
DATA_DIR = "WANDB_DATA_DIR"


def make_loggers(nodes: DictConfig | None, *, resume_step: int | None) -> list[Logger]:
    """Build the loggers of the group `logger`.

    Args:
        nodes: the group, a node for each logger.
        resume_step: optimiser steps done before; what is logged for later ones replaces what is there, as far as the
            kind of logger can. None = a new run.
    """
    loggers: list[Logger] = []
    for node in (nodes or {}).values():
        if not node:
            continue
        resumable = resume_step is not None and "resume_step" in signature(get_object(node["_target_"])).parameters
        logger = instantiate(node, _convert_="all", **({"resume_step": resume_step} if resumable else {}))
        if resume_step is not None and isinstance(logger, MetricsCSV):
            logger.go_on_from(resume_step)
        loggers.append(logger)
    return loggers


def tensorboard_logger(
    *, save_dir: str, name: str = "tensorboard", resume_step: int | None = None
) -> TensorBoardLogger:
    """A `TensorBoardLogger` whose event files are all in `<save_dir>/<name>`, so that a resumed run is one curve.

    Args:
        save_dir: the run's folder.
        name: the folder in it.
        resume_step: optimiser steps done before: TensorBoard forgets later ones, which come again. None = a new run.
    """
    return TensorBoardLogger(
        save_dir=save_dir,
        name=name,
        version="",
        default_hp_metric=False,
        purge_step=None if resume_step is None else resume_step + 1,
    )


def wandb_logger(
    *,
    save_dir: str,
    project: str,
    name: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    resume_step: int | None = None,
) -> WandbLogger:
    """A `WandbLogger` that is online if a key is configured, and otherwise writes offline into `save_dir`.

    Args:
        save_dir: the run's folder.
        project: the project's name.
        name: the run's name; None = one that W&B makes up.
        group: the group's name; None = in a sweep that of its folder, otherwise none.
        job_type: what kind of job it is: fit or validate.
        resume_step: optimiser steps done before, by which the W&B run in `save_dir` goes on; None = a new run.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before wandb is imported: nothing phones home
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    mode = wandb_mode()
    if mode != "online":
        os.environ.setdefault(DATA_DIR, str(Path(save_dir).resolve() / "wandb"))
    return WandbLogger(
        save_dir=save_dir,
        project=project,
        name=name,
        group=group or sweep_name(save_dir),
        job_type=job_type,
        id=None if resume_step is None else last_run_id(save_dir),
        mode=mode,  # Lightning's `offline=True` would set WANDB_MODE for whatever runs later in this process
    )


def wandb_mode() -> str:
    """What `WANDB_MODE` says; without it, or where it says online, "online" if there is a key, else "offline"."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online":
        return "online" if key_is_configured() else "offline"
    return mode


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


def last_run_id(save_dir: str | Path) -> str | None:
    """The id of the newest W&B run in a folder, as W&B names the folders below; None where there is none."""
    names = (path.name for path in Path(save_dir, "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink())
    found = sorted(match.groups() for match in map(RUN_FOLDER.fullmatch, names) if match)
    return found[-1][1] if found else None


def sweep_name(save_dir: str | Path) -> str | None:
    """The name of the sweep's folder: of the sweep that is running, or of the one whose job is resumed."""
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).resolve().name
    parent = Path(save_dir).resolve().parent
    return parent.name if (parent / "multirun.yaml").is_file() else None  # Hydra writes it beside the jobs


@contextmanager
def own_wandb_run() -> Iterator[None]:
    """End the W&B run of a job with the job, be it by an error: the next job of the process would go on in it."""
    before, data_dir = _current_run(), os.environ.get(DATA_DIR)
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        run = _current_run()
        if run is not None and run is not before:  # one that was there before is somebody else's
            run.finish(exit_code=exit_code)
        if data_dir is None:
            os.environ.pop(DATA_DIR, None)


def _current_run() -> Any:
    wandb = sys.modules.get("wandb")  # where it was never imported there is no run
    return None if wandb is None else wandb.run


def log_summary(loggers: list[Logger], summary: dict[str, Any]) -> None:
    """Put the content of `summary.json` into the summaries of W&B runs, beside the last values that W&B keeps itself.

    A table of runs then has the columns `metrics.val/reward.best`, `steps`, `weights_sha256` and so on.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(summary)
