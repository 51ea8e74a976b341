"""Several runs in a row, each from what one before has exported."""

import logging
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lit_posttrain.app.folder.claim import OF_A_PIPELINE, claim_pipeline
from lit_posttrain.app.lifeline import ended_at_once
from lit_posttrain.app.options.overrides import quote
from lit_posttrain.app.pipeline.config import planned
from lit_posttrain.app.pipeline.folder import StageFolder, origin_of
from lit_posttrain.app.pipeline.gate import Gate, Verdict
from lit_posttrain.app.pipeline.plan import Stage
from lit_posttrain.app.pipeline.process import run_stage
from lit_posttrain.files.whole import write_json
from lit_posttrain.reports.stages import StageRow, print_stages

log = logging.getLogger(__name__)


def run_pipeline(cfg: DictConfig) -> None:
    """Run the stages of `cfg.pipeline`, each as a process of its own, in folders below that of the pipeline.

    A stage that is done, with the same configuration and from the same weights, is not run again; one that was killed
    goes on from its last checkpoint. `pipeline.json` says at any time how far it is.

    Raises:
        ValueError: if an option is wrong, before the first stage; the message names the stage.
        RuntimeError: if a stage fails or does not pass its gate.
        SystemExit: if Ctrl-C ended it, with the status that shells expect.
    """
    config = HydraConfig.get()
    if config.mode is RunMode.MULTIRUN:
        raise ValueError("a pipeline cannot be swept: a job is one run, a pipeline several.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "a pipeline starts as one process: its stages launch their own, as with `trainer=ddp trainer.devices=2`."
        )
    name, folder = config.runtime.choices["pipeline"], Path(config.runtime.output_dir).resolve()
    lock = claim_pipeline(folder, name).descriptor
    assert lock is not None
    stages, configs = map(list, zip(*planned(cfg), strict=True))
    place = shlex.quote(f"hydra.run.dir={quote(str(folder))}")
    again = f"the same command with {place} goes on where it stopped"
    with ended_at_once(f"; {again}"):  # it takes seconds, so not before the configurations are right
        from lit_posttrain.app.pipeline.preflight import preflight
    preflight(stages, configs, folder)
    rows: list[StageRow] = [StageRow(stage.name, str(folder / stage.name)) for stage in stages]
    log.info("%s stages, in %s; if it is stopped, %s", len(stages), folder, again)
    for number, stage in enumerate(stages):
        log.info("stage %s of %s: %s", number + 1, len(stages), stage.name)
        rows[number].status = "running"
        _write(folder, name, rows)
        try:
            _run(stage, configs[number], folder, rows[number], lock=lock)
        except (KeyboardInterrupt, SystemExit) as stop:
            rows[number].status = "interrupted"
            log.error("interrupted in stage %s; %s", stage.name, again)
            if isinstance(stop, KeyboardInterrupt):
                sys.exit(128 + signal.SIGINT)
            raise
        except RuntimeError as error:
            raise RuntimeError(f"{error} Then {again}: stages that are done are not repeated.") from error
        finally:
            _write(folder, name, rows)
    print_stages(rows)
    log.info("everything is in %s", folder)


def _run(stage: Stage, config: dict[str, Any], folder: Path, row: StageRow, *, lock: int) -> None:
    """Run a stage unless it is done, and judge it.

    Args:
        stage: what to run.
        config: its configuration, by which it is known again.
        folder: of the pipeline.
        row: to be filled in.
        lock: of the folder.

    Raises:
        RuntimeError: if it fails or does not pass its gate.
    """
    own, origin = StageFolder(folder / stage.name), origin_of(stage, config, folder)
    if own.is_done(origin):
        log.info("%s is done and unchanged; it is not run again", own.path)
        row.reused = True
    else:
        overrides = stage.filled({other: str(StageFolder(folder / other).export) for other in stage.inputs})
        gate = [] if stage.gate is None else [f"gate={quote(stage.gate.metric)}"]
        command = [*_config_source(), *overrides, *gate, f"hydra.run.dir={quote(str(own.path))}"]
        checkpoint = own.prepare(origin, command)
        if checkpoint is not None:
            log.info("going on from %s", checkpoint)
            command.append(f"ckpt_path={quote(str(checkpoint))}")
        log.info("python train.py %s", shlex.join(command))
        row.status = "failed"
        status = run_stage(command, lock=lock)
        if status != 0:
            raise RuntimeError(
                f"stage `{stage.name}` failed with exit status {status}; what it said is above and in {own.path}. "
                f"Mend what it names; an option of this stage alone is written `stage.{stage.name}.<option>=...`."
            )
    summary = own.summary()
    row.take(summary)
    if stage.gate is not None:
        row.status = "stopped"
        verdict = _judged(stage, stage.gate, summary)
        row.gate = asdict(verdict)
        if not verdict.passed:
            where = f"pipeline.stages.{stage.name}.gate"
            raise RuntimeError(
                f"stage `{stage.name}` does not pass its gate: {verdict}. Its curves are in {own.path}/metrics.csv. "
                f"Train it longer or otherwise (`stage.{stage.name}.trainer.max_steps=...`), or ask for something else "
                f"(`{where}.{verdict.rule}=...`, `{where}=null` for nothing)."
            )
    row.status = "done"


def _judged(stage: Stage, gate: Gate, summary: dict[str, Any]) -> Verdict:
    try:
        return gate.judge(summary["metrics"])
    except KeyError as error:
        where = f"pipeline.stages.{stage.name}.gate"
        raise RuntimeError(
            f"the gate of stage `{stage.name}` cannot be judged: {error.args[0]} Name another metric "
            f"(`{where}.metric=...`) or none (`{where}=null`), or give it data to validate on."
        ) from error


def _config_source() -> list[str]:
    """Where another primary configuration comes from, as the command line of the pipeline said."""
    config = HydraConfig.get()
    given = [source.path for source in config.runtime.config_sources if source.provider == "command-line"]
    folders = [word for path in given for word in ("-cd", path.removeprefix("file://"))]
    return [*folders, *([] if config.job.config_name == "train" else ["-cn", config.job.config_name])]


def _write(folder: Path, name: str, rows: list[StageRow]) -> None:
    status = next((row.status for row in rows if row.status != "done"), "done")
    write_json(folder / OF_A_PIPELINE, {"pipeline": name, "status": status, "stages": [asdict(row) for row in rows]})
