"""What can be said of a configuration before anything is built."""

import importlib.util
import inspect
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.options.hints import GIVEN_TO_TRAINER, nearest
from lit_posttrain.app.options.schema import Argument, arguments, find

TENSORBOARD = "lit_posttrain.app.loggers.tensorboard_logger"
# What the types of arguments are called, and whose instances values have to be.
KINDS: dict[str | None, tuple[str, tuple[type, ...]]] = {
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("text", (str, int, float)),
}
MODES = ("fit", "validate", "predict")


def check_config(cfg: DictConfig) -> None:
    """Refuse what cannot work, without an import of what would be built.

    Raises:
        ValueError: naming the option, the rule and the way out.
        FileNotFoundError: if there is no such checkpoint.
        ModuleNotFoundError: if the package of a logger is missing.
    """
    if cfg.mode not in MODES:
        hint = nearest(str(cfg.mode), list(MODES))
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got `{cfg.mode}`.{hint}")
    unused = () if "rewards" in cfg.algo else ("reward.",)
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith(unused))
    if missing:
        names, values = ", ".join(f"`{name}`" for name in missing), " ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{names} must be given: add `{values}` to the command line.")
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise FileNotFoundError(
            f"there is no checkpoint `{cfg.ckpt_path}`; those of a run are in its checkpoints/ folder."
        )
    _check_plain(cfg)
    for name in sorted(set(GIVEN_TO_TRAINER) & set(cfg.trainer)):
        raise ValueError(f"`trainer.{name}` is taken: use {GIVEN_TO_TRAINER[name]}.")
    check_strategy(cfg.trainer.get("strategy", "auto"))
    check_arguments(cfg, "")
    check_loggers(cfg.logger)
    _check_steps(cfg)


def _check_plain(cfg: DictConfig) -> None:
    """Refuse wrong values of options that no class takes."""
    for name, least in (("seed", 0), ("threads", 1), ("val_every_steps", 1)):
        if cfg[name] is None and name != "seed":
            continue
        check_value(name, cfg[name], Argument(frozenset({"int"})))
        if name == "seed" and not 0 <= cfg.seed < 2**32:
            raise ValueError(f"`seed` must be from 0 to 2^32 - 1, got {cfg.seed}.")
        if cfg[name] < least:
            raise ValueError(f"`{name}` must be >= {least} or null, got {cfg[name]}.")
    for name in ("overwrite", "allow_changed_data"):
        check_value(name, cfg[name], Argument(frozenset({"bool"})))
    if cfg.monitor.mode not in ("min", "max"):
        raise ValueError(f"`monitor.mode` must be min or max, got `{cfg.monitor.mode}`.")


def _check_steps(cfg: DictConfig) -> None:
    """Refuse an optimiser, a schedule and a number of steps that do not go together."""
    for name in sorted({"lr", "eps", "weight_decay"} & set(cfg.optim)):
        check_value(f"optim.{name}", cfg.optim[name], Argument(frozenset({"float"})))
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


def check_arguments(node: DictConfig, path: str, fields: dict[str, Argument] | None = None) -> None:
    """Refuse keys that a target does not take and values of the wrong kind, in a node and in all that it holds.

    Args:
        node: the configuration, or a part of it.
        path: its dotted name, empty for the whole.
        fields: what it may hold where it names no target.

    Raises:
        ValueError: naming the option and what there is.
    """
    takes = _taken(node["_target_"], path) if "_target_" in node else fields
    for key in map(str, node):
        name = f"{path}.{key}".lstrip(".")
        if takes is not None and key[0] != "_":
            if key not in takes:
                raise ValueError(
                    f"there is no option `{name}`.{nearest(key, list(takes))} `{node.get('_target_', path)}` takes: "
                    f"{', '.join(takes)}."
                )
            if OmegaConf.is_missing(node, key):
                continue  # and so it is not used
            check_value(name, node[key], takes[key])
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        if not isinstance(node[key], DictConfig):
            continue  # what is interpolated is checked where it stands
        of_key = takes.get(key) if takes is not None else None
        check_arguments(node[key], name, arguments(of_key.fields) if of_key is not None and of_key.fields else None)


def _taken(target: str, path: str) -> dict[str, Argument] | None:
    """What a target takes, None where that is anything."""
    if find(target) is not None:
        return arguments(target)
    try:
        parameters = inspect.signature(get_object(target)).parameters
    except (ImportError, ValueError) as error:
        raise ValueError(f"`{path}._target_` must name what can be imported, got `{target}`: {error}") from error
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if anything else dict.fromkeys(parameters, Argument())


def check_value(name: str, value: Any, argument: Argument) -> None:
    """Refuse a value of another kind than an argument has: `no` is text to Hydra, and text counts as true.

    Args:
        name: of the option.
        value: as it was given.
        argument: what it is given for; one that may be of several kinds is left alone.

    Raises:
        ValueError: naming the option and the kind.
    """
    types = argument.types - {"None"}
    if value is None and "None" in argument.types:
        return
    shown = "null" if value is None else f"`{value}`"
    if argument.choices and not types and str(value) not in argument.choices:
        names = ", ".join(argument.choices)
        raise ValueError(f"`{name}` must be one of {names}, got {shown}.{nearest(str(value), list(argument.choices))}")
    if argument.has_options and not isinstance(value, DictConfig):
        group = name.replace(".", "/")
        way = f": `{group}=default` chooses them" if files("lit_posttrain.conf").joinpath(group).is_dir() else ""
        raise ValueError(f"`{name}` must have options of its own, got {shown}{way}.")
    kind = next(iter(types)) if len(types) == 1 and not argument.choices else None
    if kind in KINDS:
        called, allowed = KINDS[kind]
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
            raise ValueError(f"`{name}` must be {called}, got {shown}.")
