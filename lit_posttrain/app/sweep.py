"""What every multirun leaves: `comparison.csv` and a printed table; a failed job does not end it."""

import json
import logging
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.errors import told
from lit_posttrain.files.whole import write_json
from lit_posttrain.reports.comparison import Job, print_comparison, write_comparison
from lit_posttrain.reports.curves import draw_curves

log = logging.getLogger(__name__)


class SweepComparison(Callback):
    """Keeps a record of every job of a multirun in `<sweep>/.jobs/`, and compares them.

    The records are files because a launcher may run jobs in processes of their own. Hydra ends a sweep at the first job
    that failed: such a job is recorded, and then passed on as one that returned NaN, which a sweeper that optimises
    takes for a bad value. `comparison.csv` is written after every job, so that a sweep that is killed leaves one too.

    Args:
        curves: validation metrics to draw in `comparison.png`, against tokens and against time; none = no picture.
        by: the option whose values are the lines of the picture, with mean and range over all other options.
    """

    def __init__(self, curves: Sequence[str] = (), by: str = "algo") -> None:
        self.folder: Path | None = None  # of the sweep; None = a single run
        self.curves = list(curves)
        self.by = by

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Begin with no records: the folder may be that of an earlier sweep."""
        self.folder = Path(config.hydra.sweep.dir).absolute()
        shutil.rmtree(self.folder / ".jobs", ignore_errors=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Record the job, in the process that ran it."""
        if self.folder is None:
            return
        job = _describe(config, job_return)
        write_json(self.folder / ".jobs" / f"{job.number}.json", asdict(job))
        write_comparison(_recorded(self.folder), self.folder / "comparison.csv")
        if job.error is not None:
            log.error("job %s failed: %s; its log is in %s", job.number, job.error, job.folder)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, math.nan

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the comparison.

        Raises:
            SystemExit: with status 1 if a job failed.
        """
        if self.folder is None:
            return
        jobs = _recorded(self.folder)
        write_comparison(jobs, self.folder / "comparison.csv")
        print_comparison(jobs)
        picture = self.folder / "comparison.png"
        if self.curves and draw_curves(jobs, picture, metrics=self.curves, by=self.by):
            log.info("drawn in %s", picture)
        failed = sum(job.error is not None for job in jobs)
        log.info("%s of %s jobs failed; compared in %s", failed, len(jobs), self.folder / "comparison.csv")
        if failed:
            sys.exit(1)  # Hydra turns any other exception of a callback into a warning


def _recorded(folder: Path) -> list[Job]:
    return [Job(**json.loads(path.read_text(encoding="utf-8"))) for path in (folder / ".jobs").glob("*.json")]


def _describe(config: DictConfig, job_return: JobReturn) -> Job:
    """The record of a job that has just ended."""
    error = None
    try:
        _ = job_return.return_value  # raises what the job raised
    except Exception as raised:
        error = told(raised)
    folder = Path(config.hydra.runtime.output_dir)
    metric = OmegaConf.select(config, "monitor.metric")
    result = {} if error is not None else _result(folder, OmegaConf.select(config, "mode"), metric)
    overrides = dict(override.lstrip("+~").partition("=")[::2] for override in job_return.overrides or [])
    return Job(config.hydra.job.num, str(folder), overrides, metric, error=error, **result)


def _result(folder: Path, mode: str | None, metric: str | None) -> dict[str, Any]:
    """What the job wrote; the folder may have files of an earlier job, of which those of this mode were replaced."""
    file = folder / ("validation.json" if mode == "validate" else "summary.json")
    if mode not in ("fit", "validate") or not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if mode == "validate":
        return dict.fromkeys(("first", "last", "best"), content.get(metric))
    scores = content["metrics"].get(metric, {})
    scores = {name: scores.get(name) for name in ("first", "last", "best")}
    return {**scores, "steps": content["steps"], "wall_s": content["wall_s"]}
