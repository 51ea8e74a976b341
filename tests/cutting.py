"""Runs that are killed right after the n-th checkpoint that they write, as often as one likes, and gone on with.

A kill is played in one process: the folder is kept as it was at that moment, the run unwinds, and whatever it wrote on
its way out is thrown away again.
"""

import copy
import csv
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.core.global_hydra import GlobalHydra
from lightning import Trainer
from omegaconf import DictConfig

from lit_posttrain.app.run import run
from lit_posttrain.models.weights import tensors_sha256
from tests.composing import compose_train

GENERATED = ["data.path.num_validation=4", "data.val_batch_size=4", "algo.sampling.max_new_tokens=8"]
PROMPTS = [*GENERATED, "data.path.num_prompts=10", "data.batch_size=4", "algo.validation.num_samples=2"]
PAIRS = ["data.path.num_pairs=20", "data.batch_size=8", "data.path.num_validation=4", "data.val_batch_size=4"]
VALIDATED_PROMPTS = [
    "data.val_prompts.path.num_validation=4",
    "data.val_prompts.val_batch_size=4",
    "algo.sampling.max_new_tokens=8",
    "algo.validation.num_samples=2",
]

# An epoch has three rollouts or three optimiser steps.
ALGORITHMS: dict[str, list[str]] = {
    "grpo": [
        "algo=grpo",
        *PROMPTS,
        "algo.group_size=2",
        "algo.rollouts.num_minibatches=2",
        "algo.kl_coef=0.05",
        "algo.scale=none",
    ],
    "ppo": [
        "algo=ppo",
        *PROMPTS,
        "algo.group_size=2",
        "algo.rollouts.num_epochs=2",
        "algo.kl_target=0.5",
        "algo.target_kl=0.5",
    ],
    "rloo": ["algo=rloo", *PROMPTS, "algo.group_size=2"],
    "reinforce_pp": ["algo=reinforce_pp", *PROMPTS, "algo.rollouts.num_minibatches=2"],
    "sft": [
        *("algo=sft", "data.path.num_demonstrations=20", "data.batch_size=8", "data.path.num_validation=4"),
        *("data.val_batch_size=4", *VALIDATED_PROMPTS),
    ],
    "reward_model": ["algo=reward_model", *PAIRS],
    "dpo": ["algo=dpo", *PAIRS, *VALIDATED_PROMPTS],
}
QUIET = ["logger=csv", "+trainer.enable_progress_bar=false"]


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_after(saves: int, folder: Path) -> Iterator[None]:
    """Within, a run ends right after it has saved so many checkpoints, and `folder` stays as it was then."""
    save, kept = Trainer.save_checkpoint, folder.with_name(f"{folder.name}.kept")
    done = 0

    def save_and_die(trainer: Trainer, *args: Any, **options: Any) -> None:
        nonlocal done
        save(trainer, *args, **options)
        done += 1
        if done == saves:
            if trainer.is_global_zero:
                shutil.copytree(folder, kept)
            raise Killed

    Trainer.save_checkpoint = save_and_die
    try:
        yield
    except Killed:
        wait_for_one_another()
        if rank() == 0:
            shutil.rmtree(folder)
            kept.rename(folder)
        wait_for_one_another()
    finally:
        Trainer.save_checkpoint = save


def in_parts(start: Callable[[Path | None], Any], folder: Path, cuts: Sequence[int], *, checkpoint: Path) -> None:
    """Run in as many parts as there are cuts, and one more to the end.

    Args:
        start: begins the run, or goes on with it from a checkpoint.
        folder: all that the run writes.
        cuts: of each part, after how many saves it is killed.
        checkpoint: which the next part goes on from.
    """
    for saves in cuts:
        with killed_after(saves, folder):
            start(checkpoint if checkpoint.is_file() else None)
            return  # it was over before
    start(checkpoint if checkpoint.is_file() else None)


def command(folder: Path, *options: str, quiet: bool = True) -> Callable[[Path | None], Any]:
    """What the command line does, without the cost of starting it."""

    def start(checkpoint: Path | None) -> Any:
        folder.mkdir(parents=True, exist_ok=True)  # as Hydra does
        cfg = copy.deepcopy(_composed(*QUIET[: 1 + quiet], *options))
        cfg.run_dir, cfg.ckpt_path = str(folder), checkpoint and str(checkpoint)
        return run(cfg)

    return start


@functools.cache
def _composed(*options: str) -> DictConfig:
    """Composing takes longer than some of the runs."""
    GlobalHydra.instance().clear()
    return compose_train(*options)


def results(folder: Path) -> dict[str, Any]:
    """All that a run of the command line leaves and that has to be the same however often it was killed."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = {name: values for name, values in summary["metrics"].items() if not is_timing(name)}
    with (folder / "metrics.csv").open() as file:
        rows = [{n: v for n, v in row.items() if not is_timing(n)} for row in csv.DictReader(file)]
    completions = folder / "completions.jsonl"
    best = folder / "checkpoints" / "best.ckpt"
    return {
        "weights": summary["weights_sha256"],
        "steps": summary["steps"],
        "summary": metrics,
        "metrics.csv": rows,
        "completions.jsonl": completions.read_text() if completions.is_file() else None,
        "best.ckpt": weights_of(best) if best.is_file() else None,
        "last.ckpt": weights_of(folder / "checkpoints" / "last.ckpt"),
        "files": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        **{name: sha256(folder / name / "model.safetensors") for name in ("export", "export_best")},
    }


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def wait_for_one_another() -> None:
    if dist.is_initialized():
        dist.barrier()


def is_timing(name: str) -> bool:
    return name.startswith(("time/", "throughput/tokens_per_s"))


def weights_of(checkpoint: Path) -> str:
    return tensors_sha256(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
