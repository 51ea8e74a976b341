"""What can be said of a configuration before anything is built."""

import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.options.hints import nearest

TENSORBOARD = "lit_posttrain.app.loggers.tensorboard_logger"
MODES = ("fit", "validate", "predict")
# Arguments of the Trainer that have a place of their own in the configuration.
GIVEN_TO_TRAINER = {
    "callbacks": "the group `callbacks`, as in `+callbacks.mine._target_=package.Mine`",
    "default_root_dir": "`hydra.run.dir`",
    "logger": "the group `logger`",
    "val_check_interval": "`val_every_steps`, which counts optimiser steps",
}


def check_config(cfg: DictConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: naming the option, the rule and the way out.
        FileNotFoundError: if there is no such checkpoint.
        ModuleNotFoundError: if the package of a logger is missing.
    """
    if cfg.mode not in MODES:
        hint = nearest(str(cfg.mode), list(MODES))
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got `{cfg.mode}`.{hint}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        names, values = ", ".join(f"`{name}`" for name in missing), " ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{names} must be given: add `{values}` to the command line.")
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise FileNotFoundError(
            f"there is no checkpoint `{cfg.ckpt_path}`; those of a run are in its checkpoints/ folder."
        )
    check_kind("seed", cfg.seed, 0)
    if not 0 <= cfg.seed < 2**32:
        raise ValueError(f"`seed` must be from 0 to 2^32 - 1, got {cfg.seed}.")
    if cfg.monitor.mode not in ("min", "max"):
        raise ValueError(f"`monitor.mode` must be min or max, got `{cfg.monitor.mode}`.")
    if cfg.threads is not None:
        check_kind("threads", cfg.threads, 1)
        if cfg.threads < 1:
            raise ValueError(f"`threads` must be >= 1 or null, got {cfg.threads}.")
    if cfg.val_every_steps is not None:
        check_kind("val_every_steps", cfg.val_every_steps, 50)
        if cfg.val_every_steps < 1:
            raise ValueError(f"`val_every_steps` must be >= 1 or null, got {cfg.val_every_steps}.")
    check_arguments(cfg, "")
    check_loggers(cfg.logger)
    for name in sorted(set(GIVEN_TO_TRAINER) & set(cfg.trainer)):
        raise ValueError(f"`trainer.{name}` is taken: use {GIVEN_TO_TRAINER[name]}.")
    check_strategy(cfg.trainer.get("strategy", "auto"))
    for name, default in (("max_steps", -1), ("accumulate_grad_batches", 1)):
        check_kind(f"trainer.{name}", cfg.trainer.get(name, default), default)
    for name in sorted({"lr", "eps", "weight_decay"} & set(cfg.optim)):
        check_kind(f"optim.{name}", cfg.optim[name], 0.1)
        if cfg.optim[name] < 0:
            raise ValueError(f"`optim.{name}` must be >= 0, got {cfg.optim[name]}.")
    betas = cfg.optim.get("betas", (0.9, 0.95))
    if not isinstance(betas, Sequence) or not all(isinstance(b, int | float) and 0 <= b < 1 for b in betas):
        raise ValueError(f"`optim.betas` must be a list of numbers from 0 to below 1, as [0.9,0.95], got `{betas}`.")
    if cfg.scheduler.get("num_training_steps", 1) < 1:
        raise ValueError(
            f"`trainer.max_steps` must be given with a schedule that ends, got {cfg.trainer.get('max_steps', -1)}: "
            "use `scheduler=constant` for a run without an end."
        )
    if cfg.trainer.accumulate_grad_batches < 1:
        raise ValueError(f"`trainer.accumulate_grad_batches` must be >= 1, got {cfg.trainer.accumulate_grad_batches}.")
    if cfg.trainer.get("precision") in ("16-true", "16"):
        raise ValueError("`trainer.precision=16-true` ends in NaN with AdamW: use 32-true, bf16-mixed or 16-mixed.")


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


def check_strategy(strategy: str | DictConfig) -> None:
    """Refuse what deals weights out over processes in a way that does not work here.

    Args:
        strategy: a name that Lightning knows, or a node with a target.

    Raises:
        ValueError: naming `trainer=fsdp`.
    """
    node = {"_target_": strategy} if isinstance(strategy, str) else strategy
    name = str(node.get("_target_", ""))
    if name.startswith("fsdp") or name.endswith(".FSDPStrategy"):
        raise ValueError(
            f"`trainer.strategy={name}` is FSDP1, whose weights cannot be made whole while completions are sampled: "
            "use FSDP2, `trainer=fsdp`."
        )
    if name.endswith(".ModelParallelStrategy") and node.get("save_distributed_checkpoint", True):
        raise ValueError(
            "`trainer.strategy.save_distributed_checkpoint` must be false: a run's checkpoints are single files, which "
            "any number of processes can go on from."
        )


def check_arguments(node: DictConfig, path: str) -> None:
    """Refuse keys that a target does not take and values of the wrong kind, in a node and in all that it holds.

    Args:
        node: the configuration, or a part of it.
        path: its dotted name, empty for the whole.

    Raises:
        ValueError: naming the option and what there is.
    """
    if "_target_" in node:
        _check_target(node, path)
    for key in map(str, node):
        if OmegaConf.is_interpolation(node, key):
            continue  # it is checked where it stands
        if isinstance(node[key], DictConfig):
            check_arguments(node[key], f"{path}.{key}".lstrip("."))


def _check_target(node: DictConfig, path: str) -> None:
    try:
        target = get_object(node["_target_"])
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"`{path}._target_` must name what can be imported, got `{node['_target_']}`: {error}"
        ) from error
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in map(str, node):
        if key.startswith("_"):
            continue
        if key not in parameters:
            raise ValueError(
                f"there is no option `{path}.{key}`.{nearest(key, list(parameters))} "
                f"`{node['_target_']}` takes: {', '.join(parameters)}."
            )
        if node[key] is None and type(None) in get_args(parameters[key].annotation):
            continue
        if target.__module__.startswith("lit_posttrain."):  # others may take more kinds than their default has
            check_kind(f"{path}.{key}", node[key], _example(parameters[key]))


def _example(parameter: inspect.Parameter) -> Any:
    """A value of the kind that an argument has: its default, or where that is null what the annotation says."""
    if parameter.default is not None:
        return parameter.default
    kinds = [kind for kind in get_args(parameter.annotation) if kind is not type(None)]
    return next((example for kind, example in ((bool, True), (int, 1), (float, 1.0)) if kinds == [kind]), None)


def check_kind(name: str, value: Any, default: Any) -> None:
    """Refuse a value where a default of another kind stands: `no` is text to Hydra, and text counts as true.

    Raises:
        ValueError: naming the option and the kind.
    """
    shown = "null" if value is None else f"`{value}`"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be true or false, got {shown}.")
    elif isinstance(default, int) and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"`{name}` must be a whole number, got {shown}.")
    elif isinstance(default, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"`{name}` must be a number, got {shown}.")
