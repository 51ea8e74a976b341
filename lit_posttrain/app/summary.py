"""What a run leaves to be read by people and programs."""

import importlib.metadata
import platform
import resource
import sys
from typing import Any

import torch
from lightning import Callback, Trainer
from omegaconf import DictConfig

from lit_posttrain.callbacks.metrics_history import MetricsHistory
from lit_posttrain.callbacks.progress import Progress
from lit_posttrain.callbacks.run_clock import RunClock
from lit_posttrain.models.weights import tensors_sha256
from lit_posttrain.modules.post_training import PostTrainingModule

PACKAGES = ("lit-posttrain", "torch", "lightning", "transformers", "hydra-core")


def describe_run(
    cfg: DictConfig, trainer: Trainer, module: PostTrainingModule, history: MetricsHistory
) -> dict[str, Any]:
    """The content of `summary.json`; `metrics` has first, last and best of every metric of the run.

    Times and tokens are those of all parts of a run that was resumed.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {
        "algo": cfg.names.algo,
        "model": cfg.names.model,
        "data": cfg.names.data,
        "seed": cfg.seed,
        "steps": trainer.global_step,
        "wall_s": next((round(each.seconds, 2) for each in callbacks if isinstance(each, RunClock)), None),
        "device": _device(module),
        "versions": _versions(),
        "weights_sha256": tensors_sha256(module.exported_weights()),
        "peak_memory_mb": _peak_memory_mb(module),
        "throughput": next((_throughput(each) for each in callbacks if isinstance(each, Progress)), {}),
        "metrics": dict(sorted(history.metrics.items())),
    }


def _throughput(progress: Progress) -> dict[str, float]:
    speed = progress.tokens / progress.train_s if progress.train_s > 0 else 0.0
    return {"tokens": progress.tokens, "train_s": round(progress.train_s, 2), "tokens_per_s": round(speed, 1)}


def _device(module: PostTrainingModule) -> str:
    if module.language_model.device.type == "cuda":
        return torch.cuda.get_device_name(module.language_model.device)
    return f"{module.language_model.device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "not installed"
    return versions


def _peak_memory_mb(module: PostTrainingModule) -> float:
    """Of the GPU where there is one, else of the process."""
    device = module.language_model.device
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux, bytes on macOS
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
