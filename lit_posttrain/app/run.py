"""From a configuration to a finished run: objects, Trainer, summary, export."""

import json
import logging
import time
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.algos.policy_module import PolicyModule
from lit_posttrain.app.checks import check_config
from lit_posttrain.app.summary import describe_run, write_json
from lit_posttrain.callbacks.metrics_csv import MetricsCSV
from lit_posttrain.callbacks.metrics_history import MetricsHistory

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float | None:
    """Do what the configuration says.

    Returns:
        The best value of the watched metric, for a sweeper; None where there is none.
    """
    check_config(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    module: PolicyModule = instantiate(cfg.algo, _convert_="all")
    module.check_policy()
    datamodule: LightningDataModule = instantiate(cfg.data, _convert_="all")
    datamodule.setup("fit")  # whatever is wrong with the data is said before weights are loaded

    folder = Path(cfg.run_dir)
    history = MetricsHistory()
    trainer = make_trainer(cfg, history)
    if cfg.mode == "validate":
        trainer.validate(module, datamodule=datamodule, ckpt_path=cfg.ckpt_path, verbose=False)
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        log.info("\n".join(f"{name:24} {value:.4f}" for name, value in scores.items()))
        write_json(folder / "validation.json", scores)
    elif cfg.mode == "predict":
        predict(trainer, module, datamodule, cfg)
    else:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        started = time.time()
        trainer.fit(module, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
        if trainer.enable_validation and trainer.global_step != history.last_validation_step:
            trainer.validate(module, datamodule=datamodule, verbose=False)  # so that `last` is of the last weights
        if trainer.is_global_zero:
            finish(cfg, trainer, module, history, wall_s=time.time() - started)
    return history.metrics.get(cfg.watch.metric, {}).get("best")


def make_trainer(cfg: DictConfig, history: MetricsHistory) -> Trainer:
    """The Trainer of the configuration, with its callbacks and loggers; steps become batches here."""
    callbacks: list[Callback] = [history]
    callbacks += [instantiate(callback, _convert_="all") for callback in (cfg.callbacks or {}).values() if callback]
    loggers: list[Logger] = [instantiate(each, _convert_="all") for each in (cfg.logger or {}).values() if each]
    if cfg.mode == "fit" and cfg.ckpt_path is not None:
        step = torch.load(cfg.ckpt_path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        for table in loggers:
            if isinstance(table, MetricsCSV):
                table.go_on_from(step)
    val_every_steps = cfg.val_every_steps or max(1, cfg.trainer.max_steps)
    return instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=cfg.run_dir,
        val_check_interval=val_every_steps * cfg.trainer.accumulate_grad_batches,
        _convert_="all",
    )


def predict(trainer: Trainer, module: PolicyModule, datamodule: LightningDataModule, cfg: DictConfig) -> None:
    """Complete the prompts and write `predictions.jsonl`."""
    batches = trainer.predict(module, datamodule=datamodule, ckpt_path=cfg.ckpt_path)
    path = Path(cfg.run_dir) / "predictions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for rows in batches or []:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    log.info("predictions: %s", path)


def finish(cfg: DictConfig, trainer: Trainer, module: PolicyModule, history: MetricsHistory, *, wall_s: float) -> None:
    """Write `summary.json`, `export/` with the last weights and `export_best/` with the best by the watched metric."""
    folder = Path(cfg.run_dir)
    module.save_pretrained(folder / "export")
    summary = describe_run(cfg, trainer, module, history, wall_s=wall_s)
    write_json(folder / "summary.json", summary)
    watching = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    for best in watching:
        if best.best_model_path:
            checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            module.load_state_dict(checkpoint["state_dict"])
            module.save_pretrained(folder / "export_best")
    for name, values in summary["metrics"].items():
        if name.startswith("val/"):
            log.info("%-24s %.3f -> %.3f (best %.3f)", name, values["first"], values["last"], values["best"])
    log.info("%s steps in %.0f s; everything is in %s", summary["steps"], wall_s, folder)
