"""What a run leaves in its folder, told apart from what anybody else has there."""

import glob
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from lit_posttrain.models.export import OUTDATED

RESULTS = ("config.yaml", "parts.json", "metrics.csv", "completions.jsonl", "summary.json")
EXPORTS = ("export", "export_best")
EXPORTED = re.compile(rf"{OUTDATED.pattern}|config\.json|vocab\.(json|txt)|merges\.txt")
OF_A_SWEEP = ("comparison.csv", "comparison.png", "multirun.yaml", "optimization_results.yaml")
LOGS = re.compile(r"train(_ddp_process_\d+)?\.log")
EVENTS = re.compile(r"events\.out\.tfevents\..+|hparams\.yaml")


def is_of_run(checkpoint: str | Path, folder: Path) -> bool:
    """Whether a checkpoint lies in the folder of a run."""
    return folder.resolve() in Path(checkpoint).resolve().parents


def results_in(folder: Path) -> list[str]:
    """The names in a folder that a run writes when it trains; what begins before and fails leaves none of them."""
    folders = [
        name for name in ("checkpoints", *EXPORTS) if (folder / name).is_dir() and any((folder / name).iterdir())
    ]
    return [*(name for name in RESULTS if (folder / name).exists()), *folders]


def sweep_in(folder: Path) -> list[str]:
    """The names in a folder that a sweep writes."""
    return [name for name in (".jobs", *OF_A_SWEEP) if (folder / name).exists()]


def remove_run(folder: Path) -> None:
    """Remove what a run has left that trained, and nothing else; W&B keeps runs apart by itself."""
    for checkpoint in _checkpoints(folder):
        checkpoint.unlink()
    for name in EXPORTS:
        _remove_names(folder / name, EXPORTED)
    _remove_names(folder / "tensorboard", EVENTS)
    _remove_names(folder, LOGS)
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    for name in ("checkpoints", "tensorboard", *EXPORTS):
        with suppress(OSError):  # not there, or something else is in it
            (folder / name).rmdir()


def remove_sweep(folder: Path) -> None:
    """Remove what a sweep has left, the runs of its jobs included, and nothing else."""
    for lock in list(folder.rglob(".lock")):
        if lock.parent != folder:
            remove_run(lock.parent)
            lock.unlink()
            with suppress(OSError):
                lock.parent.rmdir()
    shutil.rmtree(folder / ".jobs", ignore_errors=True)
    for name in OF_A_SWEEP:
        (folder / name).unlink(missing_ok=True)


def _remove_names(folder: Path, names: re.Pattern[str]) -> None:
    if folder.is_dir():
        for entry in list(folder.iterdir()):
            if names.fullmatch(entry.name) and entry.is_file():
                entry.unlink()


def _checkpoints(folder: Path) -> set[Path]:
    """The checkpoints that the callbacks of a run have written, as its configuration names them."""
    found = _named(folder / "checkpoints", "last") | _named(folder / "checkpoints", "best")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        callbacks = [callback for callback in content["callbacks"].values() if callback]
    except (OSError, KeyError, AttributeError, TypeError, YAMLError):  # there is none, or it is of something else
        return found
    for callback in callbacks:
        if str(callback.get("_target_")).endswith(".ModelCheckpoint"):
            place = Path(callback.get("dirpath") or folder / "checkpoints").resolve()
            if place.is_relative_to(folder.resolve()):
                inserted = callback.get("auto_insert_metric_name", True)
                found |= _named(place, callback.get("filename") or "{epoch}-{step}", inserted=inserted)
    return found


def _named(folder: Path, name: str, *, inserted: bool = True) -> set[Path]:
    """The checkpoints of a name in which `{metric:format}` stands for a value, and for `metric=` where inserted."""
    pattern = re.sub(r"\{([^{}:]*)[^{}]*\}", r"\1=*" if inserted else "*", glob.escape(name))
    return {*folder.glob(f"{pattern}.ckpt"), *folder.glob(f"{pattern}-v[0-9]*.ckpt")}
