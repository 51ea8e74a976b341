"""From a configuration to a finished run: objects, Trainer, summary, export."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from lit_posttrain.app.callbacks import ConfigFile, EndTogether, MonitoredMetric
from lit_posttrain.app.folder.files import is_of_run
from lit_posttrain.app.loggers import log_summary, make_loggers, own_wandb_run
from lit_posttrain.app.options.changed import changed_options
from lit_posttrain.app.options.checks import check_config
from lit_posttrain.app.summary import describe_run
from lit_posttrain.batching import interleave_ranks
from lit_posttrain.callbacks.metrics_csv import MetricsCSV
from lit_posttrain.callbacks.metrics_history import MetricsHistory
from lit_posttrain.callbacks.run_clock import RunClock
from lit_posttrain.callbacks.step_row import StepRow
from lit_posttrain.data import PreferenceDataModule, PromptDataModule
from lit_posttrain.files import checkpoints
from lit_posttrain.files.checkpoints import DamagedCheckpointError
from lit_posttrain.files.whole import whole_file, write_json
from lit_posttrain.modules.post_training import PostTrainingModule

log = logging.getLogger(__name__)

NEVER = sys.maxsize  # optimiser steps to the next validation


@own_wandb_run()
def run(cfg: DictConfig) -> float | None:
    """Do what the configuration says.

    Returns:
        The best value of the monitored metric, for a sweeper; None where there is none.
    """
    check_config(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    module, datamodule = prepare(cfg)

    folder = Path(cfg.run_dir)
    history = MetricsHistory(cfg.monitor.metric, cfg.monitor.mode)
    trainer = make_trainer(cfg, history)
    if cfg.mode == "validate":
        trainer.validate(module, datamodule=datamodule, ckpt_path=cfg.ckpt_path, weights_only=True, verbose=False)
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if not scores:
            raise ValueError(
                "there is nothing to validate on: hold rows out with `data.val_fraction=0.1`, or give them with "
                "`data.val_path=`."
            )
        if trainer.is_global_zero:
            log.info("\n".join(f"{name:24} {value:.4f}" for name, value in scores.items()))
            write_json(folder / "validation.json", scores)
    elif cfg.mode == "predict":
        predict(trainer, module, datamodule, cfg)
    else:
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)  # there already where Hydra runs the job
        trainer.fit(module, datamodule=datamodule, ckpt_path=cfg.ckpt_path, weights_only=True)
        if trainer.enable_validation and trainer.global_step != history.last_validation_step:
            # so that `last` is of the last weights
            trainer.validate(module, datamodule=datamodule, weights_only=True, verbose=False)
        finish(cfg, trainer, module, history)
    return history.metrics.get(cfg.monitor.metric, {}).get("best")


def prepare(cfg: DictConfig) -> tuple[PostTrainingModule, LightningDataModule]:
    """Module and data, looked at as far as they can be without weights, so that what is wrong is said before."""
    module: PostTrainingModule = instantiate(cfg.algo, _convert_="all")
    module.exact_resume.allow_changed_data = cfg.allow_changed_data
    module.check_model()
    if cfg.ckpt_path is not None:
        module.check_checkpoint(read_checkpoint(cfg.ckpt_path))
        changed = changed_options(cfg.ckpt_path, cfg) if cfg.mode == "fit" else []
        if changed:
            log.warning("going on with other options than the run began with:\n  %s", "\n  ".join(changed))
    datamodule = make_data(cfg)
    datamodule.setup("fit")
    if isinstance(datamodule, PromptDataModule):
        datamodule.encode(module.tokenizer)
    return module, datamodule


def make_data(cfg: DictConfig) -> LightningDataModule:
    """The data of a configuration, preferences in the view that it asks for."""
    datamodule: LightningDataModule = instantiate(cfg.data, _convert_="all")
    return datamodule.viewed() if isinstance(datamodule, PreferenceDataModule) else datamodule


def make_trainer(cfg: DictConfig, history: MetricsHistory) -> Trainer:
    """The Trainer of the configuration, with its callbacks and loggers; steps become batches here."""
    callbacks: list[Callback] = [history, MonitoredMetric("monitor.metric", cfg.monitor.metric)]
    if cfg.gate is not None:
        callbacks.append(MonitoredMetric("gate", cfg.gate))
    resumes = cfg.mode == "fit" and cfg.ckpt_path is not None
    in_its_folder = resumes and is_of_run(cfg.ckpt_path, Path(cfg.run_dir))
    callbacks += [ConfigFile(cfg, resumes=in_its_folder), EndTogether(), RunClock()]
    callbacks += [instantiate(callback, _convert_="all") for callback in (cfg.callbacks or {}).values() if callback]
    if not cfg.trainer.get("enable_progress_bar", True):
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    callbacks.append(StepRow())  # behind those that log at the end of a batch
    resume_step = read_checkpoint(cfg.ckpt_path)["global_step"] if resumes else None
    loggers = [] if cfg.mode == "predict" else make_loggers(cfg.logger, resume_step=resume_step)
    if cfg.mode == "validate":  # its scores have a file of their own, and the folder may be that of a run
        loggers = [logger for logger in loggers if not isinstance(logger, MetricsCSV | TensorBoardLogger)]
    max_steps = cfg.trainer.get("max_steps", -1)
    val_every_steps = cfg.val_every_steps or (max_steps if max_steps > 0 else NEVER)
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=cfg.run_dir,
        val_check_interval=val_every_steps * cfg.trainer.accumulate_grad_batches,
        _convert_="all",
    )


def read_checkpoint(ckpt_path: str) -> dict[str, Any]:
    """A checkpoint, its tensors not read from the disk yet.

    Raises:
        ValueError: if the file is damaged, or no checkpoint of a run.
    """
    try:
        return checkpoints.read_checkpoint(ckpt_path)
    except DamagedCheckpointError:
        raise
    except ValueError as error:
        raise ValueError(
            f"`ckpt_path` must be a checkpoint that a run wrote, got `{ckpt_path}`. "
            "To start from exported weights: `model=local model.path=<run>/export`."
        ) from error


def predict(trainer: Trainer, module: PostTrainingModule, datamodule: LightningDataModule, cfg: DictConfig) -> None:
    """Complete the prompts and write `predictions.jsonl`, in the order of the prompts."""
    ranks: list[Any] = [
        trainer.predict(module, datamodule=datamodule, ckpt_path=cfg.ckpt_path, weights_only=True) or []
    ]
    if trainer.world_size > 1:
        ranks, own = [None] * trainer.world_size, ranks[0]
        dist.all_gather_object(ranks, own)
    if trainer.is_global_zero:
        path = Path(cfg.run_dir) / "predictions.jsonl"
        with whole_file(path) as file:
            for shares in zip(*ranks, strict=True):  # of one batch
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in interleave_ranks(shares))
        log.info("predictions: %s", path)


def finish(cfg: DictConfig, trainer: Trainer, module: PostTrainingModule, history: MetricsHistory) -> None:
    """Write `export/` with the last weights, `export_best/` with those best by the monitored metric, `summary.json`.

    All processes take part, since each may hold a part of the weights only.
    """
    folder = Path(cfg.run_dir)
    summary = describe_run(cfg, trainer, module, history)
    module.save_pretrained(folder / "export")
    best = best_checkpoint(trainer, cfg.monitor.metric, last=history.metrics.get(cfg.monitor.metric, {}).get("last"))
    lost = export_best(module, best, folder / "export_best")
    if not trainer.is_global_zero:
        return
    write_json(folder / "summary.json", summary)
    log_summary(trainer.loggers, summary)
    for name, values in summary["metrics"].items():
        if name.startswith("val/"):
            log.info("%-24s %.3f -> %.3f (best %.3f)", name, values["first"], values["last"], values["best"])
    log.info("%s steps in %.0f s; everything is in %s", summary["steps"], summary["wall_s"], folder)
    if lost is not None:
        raise RuntimeError(f"the run is done and `{folder}/export` is written, `export_best` is not: {lost}") from lost


def export_best(module: PostTrainingModule, best: str | None, folder: Path) -> Exception | None:
    """Write the weights of a checkpoint as an export, those that the module has where there is none.

    Returns:
        Why it could not be, if the checkpoint is damaged or gone: what else a run leaves does not depend on it.
    """
    if best is not None:
        try:
            module.load_state_dict(checkpoints.read_checkpoint(best)["state_dict"])
        except (DamagedCheckpointError, FileNotFoundError) as error:
            return error
    module.save_pretrained(folder)
    return None


def best_checkpoint(trainer: Trainer, metric: str, *, last: float | None) -> str | None:
    """The checkpoint whose weights are better than the last ones, None where the last are the best.

    Args:
        trainer: after a fit; one of its checkpoint callbacks may monitor the metric.
        metric: the name of the metric.
        last: its value at the end, which may have been measured after the last checkpoint.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.monitor != metric or callback.best_model_score is None:
            continue  # a run that goes on in another folder knows the path of its best, and has no score
        best = float(callback.best_model_score)
        if last is None or (last < best if callback.mode == "max" else last > best):
            return callback.best_model_path
    return None
