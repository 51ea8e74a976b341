"""The loggers of a run, and how they go on when it is resumed."""

import importlib.util
from inspect import signature

from hydra.utils import get_object, instantiate
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig

from lit_posttrain.callbacks.metrics_csv import MetricsCSV

TENSORBOARD = "lit_posttrain.app.loggers.tensorboard_logger"


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


def check_loggers(nodes: DictConfig | None) -> None:
    """Refuse a logger whose package is missing, before anything long begins.

    Raises:
        ModuleNotFoundError: saying what to install.
    """
    for name, node in (nodes or {}).items():
        if node and node.get("_target_") == TENSORBOARD and importlib.util.find_spec("tensorboard") is None:
            raise ModuleNotFoundError(
                f"`logger.{name!s}` needs the package tensorboard, which is not installed: `pip install tensorboard`, "
                "or use `logger=csv`."
            )


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
