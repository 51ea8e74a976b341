"""What can be said of a configuration before anything is built."""

import inspect
from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.hints import nearest

MODES = ("fit", "validate", "predict")


def check_config(cfg: DictConfig) -> None:
    """Refuse what cannot work.

    Raises:
        ValueError: naming the option, the rule and the way out.
        FileNotFoundError: if there is no such checkpoint.
    """
    if cfg.mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got `{cfg.mode}`.{nearest(cfg.mode, list(MODES))}")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"`{missing[0]}` has no value yet: add `{missing[0]}=...` to the command line.")
    if cfg.ckpt_path is not None and not Path(cfg.ckpt_path).is_file():
        raise FileNotFoundError(
            f"there is no checkpoint `{cfg.ckpt_path}`; those of a run are in its checkpoints/ folder."
        )
    if cfg.trainer.accumulate_grad_batches < 1:
        raise ValueError(f"`trainer.accumulate_grad_batches` must be >= 1, got {cfg.trainer.accumulate_grad_batches}.")
    if cfg.val_every_steps is not None and cfg.val_every_steps < 1:
        raise ValueError(f"`val_every_steps` must be >= 1 or null, got {cfg.val_every_steps}.")
    if cfg.trainer.get("precision") in ("16-true", "16"):
        raise ValueError("`trainer.precision=16-true` ends in NaN with AdamW: use 32-true, bf16-mixed or 16-mixed.")
    for group in ("algo", "data", "model", "reward"):
        check_arguments(cfg[group], group)


def check_arguments(node: DictConfig, group: str) -> None:
    """Refuse keys that the target's constructor does not know, before anything nested in it is built."""
    known = list(inspect.signature(get_object(node["_target_"])).parameters)
    for key in map(str, node):
        if key not in known and not key.startswith("_"):
            raise ValueError(
                f"there is no option `{group}.{key}`.{nearest(key, known)} "
                f"`{node['_target_']}` takes: {', '.join(known)}."
            )
