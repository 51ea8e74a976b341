"""What a resumed run has other than the run that it goes on with."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from lit_posttrain.app.options.overrides import leaves

# What may differ without anybody wondering: where and how long, and what only looks on.
FREE = (
    *("ckpt_path", "overwrite", "run_dir", "names", "mode", "threads", "logger", "callbacks", "monitor", "gate"),
    *("trainer.max_steps", "trainer.plugins"),
)
# Each has a group of its own.
REPEATED = ("algo.optimizer", "algo.scheduler", "algo.policy", "algo.model", "algo.rewards")
RESTORED = "optim."  # an optimiser is restored with its state, its numbers included


def changed_options(checkpoint: str | Path, cfg: DictConfig) -> list[str]:
    """A line for each option that differs from the `config.yaml` of the checkpoint's run, where there is one.

    Args:
        checkpoint: a file in the `checkpoints/` of a run.
        cfg: the configuration that is to go on from it.

    Returns:
        Lines like "optim.lr: 0.0001 -> 0.001 (the checkpoint's stays)".
    """
    path = Path(checkpoint).resolve().parent.parent / "config.yaml"
    if not path.is_file():
        return []
    try:
        stored = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`{path}`, which has the options of the checkpoint's run, cannot be read "
            f"({' '.join(str(error).split())[:200]}): mend it, or move it away to go on without comparing options."
        ) from error
    before, now = (OmegaConf.to_container(config, resolve=True) for config in (stored, cfg))
    lines = differences(before, now, but=FREE)
    return [f"{line} (the checkpoint's stays)" if line.startswith(RESTORED) else line for line in lines]


def differences(before: Any, now: Any, *, but: tuple[str, ...] = ()) -> list[str]:
    """A line for each option in which two configurations differ, as plain dictionaries.

    Args:
        before: the one.
        now: the other.
        but: options to leave out, with all that stands below them.

    >>> differences({"seed": 0, "optim": {"lr": 0.1}}, {"seed": 0, "optim": {"lr": 0.2}})
    ['optim.lr: 0.1 -> 0.2']
    """
    old, new = leaves(before), leaves(now)
    return [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not _belongs(name, but + REPEATED)
    ]


def _belongs(name: str, options: tuple[str, ...]) -> bool:
    """Whether it is one of these options or stands below one: `mode` is not the beginning of `model.path`."""
    return any(name == option or name.startswith(f"{option}.") for option in options)
