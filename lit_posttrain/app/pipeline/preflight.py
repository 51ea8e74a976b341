"""What would end a stage before its first step, found out before any stage is run."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig

from lit_posttrain.app.pipeline.config import compose_stage, told_of
from lit_posttrain.app.pipeline.folder import StageFolder, origin_of
from lit_posttrain.app.pipeline.plan import Stage
from lit_posttrain.app.run import make_trainer, prepare
from lit_posttrain.callbacks.metrics_history import MetricsHistory
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.supervised import SupervisedDataModule

log = logging.getLogger(__name__)


def preflight(stages: list[Stage], configs: list[dict[str, Any]], folder: Path) -> None:
    """Look over the stages that are not done, each with outlines of the exports that are not there yet.

    Args:
        stages: of a pipeline, in their order.
        configs: what makes the weights of each what they are.
        folder: of the pipeline.

    Raises:
        ValueError: if one could not begin; the message names it.
    """
    exports: dict[str, str] = {}
    done: set[str] = set()
    with TemporaryDirectory() as outlines:
        for stage, config in zip(stages, configs, strict=True):
            own = StageFolder(folder / stage.name)
            if done.issuperset(stage.inputs) and own.is_done(origin_of(stage, config, folder)):
                done.add(stage.name)
                exports[stage.name] = str(own.export)
                continue
            log.info("looking over stage %s", stage.name)
            exports[stage.name] = str(Path(outlines) / stage.name)
            with told_of(stage, exports):
                cfg = compose_stage(stage, exports)
                cfg.logger = None  # one might begin a run of its own
                if stage.gate is not None:
                    cfg.gate = stage.gate.metric
                look_over(cfg, Path(exports[stage.name]))


def _check_validation(datamodule: SupervisedDataModule | PromptDataModule, metric: str) -> None:
    loaders = datamodule.val_dataloader()
    if isinstance(loaders, list) and not loaders:
        raise ValueError(
            f"its gate asks for `{metric}`, and its data have nothing to validate on. Hold rows out "
            "(`data.val_size=...` or `data.val_fraction=0.1`), give them (`data.val_path=...`), or leave the gate out: "
            "`pipeline.stages.<name>.gate=null`."
        )


def look_over(cfg: DictConfig, outline: Path) -> None:
    """Build all that a run is made of, and read its data, but load no weights.

    Args:
        cfg: the configuration of the run.
        outline: the folder that is to stand for its export until that is there, with its config.json and tokenizer.

    Raises:
        Exception: whatever the run would end with.
    """
    module, datamodule = prepare(cfg)
    module.check_lengths(datamodule, module.export_config())
    if str(cfg.gate).startswith("val/") and isinstance(datamodule, SupervisedDataModule | PromptDataModule):
        _check_validation(datamodule, cfg.gate)
    voice = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = voice.level
    voice.setLevel(logging.WARNING)  # what the Trainer says of devices belongs to the stage
    try:
        make_trainer(cfg, MetricsHistory())
    finally:
        voice.setLevel(level)
    module.save_outline(outline)
