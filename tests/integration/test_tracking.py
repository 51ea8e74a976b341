"""Weights & Biases and TensorBoard, read back from the files that a run leaves."""

import csv
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_posttrain.app.cli import main
from lit_posttrain.app.run import run
from tests.composing import compose_train
from tests.wandb_files import OfflineRun, read_runs

SMALL = [
    "+trainer.enable_progress_bar=false",
    "data.batch_size=3",
    "data.path.num_prompts=12",
    "data.path.num_validation=2",
    "algo.group_size=4",
    "algo.rollouts.num_minibatches=2",
    "algo.validation.num_samples=1",
    "algo.sampling.max_new_tokens=6",
    "callbacks.completions_table.rows=5",
    "val_every_steps=3",
]


@pytest.fixture(scope="module", autouse=True)
def no_account():
    """Nothing of Weights & Biases in the environment: runs are offline because there is no key."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", os.devnull)
        yield


def train(folder: Path, *overrides: str) -> None:
    """A run with all three loggers, in this process."""
    folder.mkdir(exist_ok=True)
    cfg = compose_train(*SMALL, *overrides, run_dir=folder)
    with open_dict(cfg):
        cfg.logger.tensorboard = compose_train("logger=tensorboard", run_dir=folder).logger.tensorboard
    run(cfg)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """A run of 8 steps that stopped after 5, in the middle of its third rollout; 12 steps have been planned."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder, "trainer.max_steps=5", "callbacks.last_checkpoint.every_n_train_steps=1")
    train(folder, "trainer.max_steps=8", f"ckpt_path={folder}/checkpoints/last.ckpt")
    return folder


def table_of_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """`metrics.csv` by step."""
    with (folder / "metrics.csv").open() as file:
        return {
            int(row["step"]): {name: float(value) for name, value in row.items() if name != "step" and value}
            for row in csv.DictReader(file)
        }


def assert_same(got: dict[int, dict[str, float]], want: dict[int, dict[str, float]], **tolerance: float) -> None:
    assert {step: sorted(row) for step, row in got.items()} == {step: sorted(row) for step, row in want.items()}
    for step, row in want.items():
        assert got[step] == pytest.approx(row, nan_ok=True, **tolerance), step


def test_every_metric_is_there_at_its_step(resumed):
    first, second = read_runs(resumed)
    want = table_of_metrics(resumed)
    assert set(want) == set(range(9))
    assert [step for step, row in want.items() if "val/reward" in row] == [0, 3, 5, 6, 8]
    assert {"val/reward", "train/loss", "reward/mean", "time/update_s"} <= set(want[0]) & set(
        want[6]
    )  # all at one step
    both = first.metrics()
    for step, row in second.metrics().items():
        # timings of a step that both parts have differ
        both[step] = {**both.get(step, {}), **row}
    assert_same(both, want)
    for part in (first, second):  # W&B's own step never went back, which would drop what is logged
        own = [row["_step"] for row in part.history]
        assert own == sorted(set(own))


def test_a_resumed_run_has_the_same_id(resumed):
    first, second = read_runs(resumed)
    assert first.id == second.id != ""
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert min(second.metrics()) == 4  # what a kill behind the checkpoint would have left out comes again
    assert wandb.run is None


def test_what_is_not_that_run_is_another_one(resumed, tmp_path):
    """Going on in another folder, and a new run in a folder that has one."""
    train(tmp_path, "trainer.max_steps=8", "val_every_steps=null", f"ckpt_path={resumed}/checkpoints/last.ckpt")
    train(tmp_path, "trainer.max_steps=1", "val_every_steps=null")
    ids = [part.id for part in [*read_runs(tmp_path), read_runs(resumed)[0]]]
    assert len(set(ids)) == len(ids) == 3


def test_the_resolved_configuration(resumed):
    first, second = read_runs(resumed)
    want = OmegaConf.to_container(OmegaConf.load(resumed / "config.yaml"))
    assert {name: first.config[name] for name in want} == want  # what the run began with
    assert second.config["trainer"] == {**want["trainer"], "max_steps": 8}
    assert want["algo"]["group_size"] == 4
    assert want["run_dir"] == str(resumed)
    assert (second.project, second.job_type, second.group) == ("lit_posttrain", "fit", "")


def test_the_summary(resumed):
    _, second = read_runs(resumed)
    want = json.loads((resumed / "summary.json").read_text())
    for name, value in want.items():
        assert second.summary[name] == value, name
    assert set(second.summary["metrics"]["val/reward"]) == {"first", "last", "best"}
    assert second.summary["val/reward"] == want["metrics"]["val/reward"]["last"]


def test_the_table_of_completions_grows_and_survives_a_resume(resumed):
    first, second = (part.table("completions") for part in read_runs(resumed))
    assert [[row["rollout"] for row in rows] for rows in first] == [[0] * 5, [1] * 5, [2] * 5]
    # the rows so far come again: W&B cannot continue an offline table
    assert second[0] == [row for rows in first for row in rows] + second[0][-5:]
    assert [[row["rollout"] for row in rows] for rows in second] == [[0] * 5 + [1] * 5 + [2] * 5 + [3] * 5]
    lines = [json.loads(line) for line in (resumed / "completions.jsonl").read_text().splitlines()]
    for row in second[0]:
        want = [line for line in lines if line["rollout"] == row["rollout"] and line["completion"] == row["completion"]]
        scores = {name.removeprefix("reward/"): value for name, value in row.items() if name.startswith("reward/")}
        plain = {name: value for name, value in row.items() if not name.startswith("reward/")}
        assert {**plain, "rewards": scores} in want
    assert {"prompt", "reward", "advantage", "length", "step", "truncated"} <= set(second[0][0])
    assert len({row["prompt"] for row in second[0][:5]}) > 1  # of several prompts


def test_everything_is_in_the_folder_of_the_run(resumed):
    for part in read_runs(resumed):
        assert part.artifacts
        assert all(path.is_relative_to(resumed) and path.is_file() for path in part.artifacts)
    assert "WANDB_DATA_DIR" not in os.environ
    assert "WANDB_MODE" not in os.environ


def test_tensorboard_has_the_same_metrics_at_the_same_steps(resumed):
    events = EventAccumulator(str(resumed / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    got: dict[int, dict[str, float]] = {}
    for name in set(events.Tags()["scalars"]) - {"epoch"}:
        for event in events.Scalars(name):
            got.setdefault(event.step, {})[name] = event.value
    assert_same(got, table_of_metrics(resumed), rel=1e-6)
    assert "group_size" in (resumed / "tensorboard" / "hparams.yaml").read_text()


def test_tensorboard_forgets_what_comes_again(resumed):
    """Steps that a killed run made after its last checkpoint are not there twice."""
    from lit_posttrain.app.loggers import tensorboard_logger

    folder = resumed.parent / "killed"
    for resume_step, steps in ((None, range(6)), (2, range(3, 5))):
        logger = tensorboard_logger(save_dir=str(folder), resume_step=resume_step)
        for step in steps:
            logger.log_metrics({"a": step + 0.5 * (resume_step or 0)}, step=step)
        logger.finalize("success")
        logger.experiment.close()
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 4.0),
        (4, 5.0),
    ]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> list[list[OfflineRun]]:
    """Three jobs in one process, the second of which fails after its W&B run began; the runs of each."""
    folder = tmp_path_factory.mktemp("sweep")
    jobs = ["monitor.metric=val/reward,val/nothing,val/success", "hydra.sweep.dir=my_sweep", "trainer.max_steps=1"]
    handlers, level = list(logging.root.handlers), logging.root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", "-m", *SMALL, *jobs])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit):
            main()
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    return [read_runs(folder / "my_sweep" / str(number)) for number in range(3)]


def test_every_job_of_a_sweep_is_a_run_of_one_group(sweep):
    assert [len(runs) for runs in sweep] == [1, 1, 1]
    jobs = [job for (job,) in sweep]
    assert len({job.id for job in jobs}) == 3
    assert {job.group for job in jobs} == {"my_sweep"}
    assert [job.exit_code for job in jobs] == [0, 1, 0]
    assert [job.config["monitor"]["metric"] for job in jobs] == ["val/reward", "val/nothing", "val/success"]
    assert [set(job.metrics()) for job in jobs] == [{0, 1}, {0}, {0, 1}]
    for job in jobs:
        assert all(path.is_relative_to(job.folder.parents[1]) for path in job.artifacts)
    assert wandb.run is None


def test_a_resumed_job_stays_in_its_group(sweep):
    folder = sweep[0][0].folder.parents[1]
    train(folder, "trainer.max_steps=2", f"ckpt_path={folder}/checkpoints/last.ckpt")
    first, second = read_runs(folder)
    assert (second.id, second.group) == (first.id, "my_sweep")


def test_without_a_key_there_is_no_prompt_and_no_error_reporting(tmp_path):
    """In a process of its own, with nobody to answer and a home that must stay empty."""
    program = """
import sys
from pathlib import Path
from lit_posttrain.app.loggers import wandb_logger
logger = wandb_logger(save_dir=sys.argv[1], project="p")
assert "wandb" not in sys.modules
logger.log_metrics({"a": 1.0}, step=3)
print(logger.experiment.offline, logger.experiment.settings.mode)
for file in Path("/proc").glob("[0-9]*/cmdline"):
    try:
        command = file.read_bytes().split(b"\\0")
    except OSError:
        continue
    if command[0].endswith(b"wandb-core"):
        parents = (file.parent / "stat").read_text().rsplit(")", 1)[1].split()[1]
        import os
        if int(parents) == os.getpid():
            print(b"--no-observability" in command)
"""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        env={**kept, "HOME": str(tmp_path / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split()
    assert printed[:2] == ["True", "offline"]
    assert printed[2:] == ["True"] or not Path("/proc/self/cmdline").is_file()
    left = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    cache = tmp_path / "home" / ".cache"
    assert {path.parent for path in left} <= {cache / "wandb" / "logs", cache / "matplotlib"}  # debug logs, fonts found
    (part,) = read_runs(tmp_path / "run")
    assert part.metrics() == {3: {"a": 1.0}}
    assert not math.isnan(part.exit_code)
