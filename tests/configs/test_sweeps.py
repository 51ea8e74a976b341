"""Sweeps: what is composed, what every multirun leaves, and what a failed job does."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from lit_posttrain.app import run
from lit_posttrain.app.options.checks import check_config
from lit_posttrain.app.options.hints import explain_composition_error
from lit_posttrain.app.sweep import SweepComparison
from lit_posttrain.reports import curves

# Hydra makes a warning of what a callback raises.
pytestmark = pytest.mark.filterwarnings("error:Callback SweepComparison")

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


@pytest.fixture
def jobs(monkeypatch):
    """Instead of a fit: a summary whose best reward is the learning rate, and an error where that is negative."""
    done = []

    def fake(cfg):
        done.append((cfg.optim.lr, cfg.seed))
        if cfg.optim.lr < 0:
            raise ValueError(f"`lr` must be [0, 1], got {cfg.optim.lr}.")
        check_config(cfg)
        if cfg.optim.lr == 0:
            raise KeyboardInterrupt
        scores = {"val/reward": {"first": 0.25, "last": 0.5, "best": cfg.optim.lr}}
        summary = {"steps": cfg.trainer.max_steps, "wall_s": 1.5, "metrics": scores}
        Path(cfg.run_dir, "summary.json").write_text(json.dumps(summary))
        validated = f"step,val/optimal_sampled,throughput/tokens,time/train_s\n0,0.5,0,0\n20,0.7,{100 + cfg.seed},3\n"
        Path(cfg.run_dir, "metrics.csv").write_text(validated)
        Path(cfg.run_dir, "validation.json").write_text(json.dumps({"val/reward": 0.75}))
        return cfg.optim.lr

    monkeypatch.setattr(run, "run", fake)
    return done


def rows(folder: str) -> list[dict[str, str]]:
    with Path(folder, "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# The files in sweeps/.


@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_a_sweep_extends_train(command_line, name):
    _, train, _ = command_line("--cfg", "job")
    status, job, errors = command_line("-cd", str(SWEEPS), "-cn", name, "--cfg", "job")
    assert status == 0, errors
    cfg = OmegaConf.create(job)
    assert set(cfg) == set(OmegaConf.create(train))
    assert cfg.trainer.devices == 1
    hydra = yaml.safe_load(command_line("-cd", str(SWEEPS), "-cn", name, "--cfg", "hydra")[1])["hydra"]
    assert hydra["mode"] == "MULTIRUN"
    for option in hydra["sweeper"]["params"]:
        assert OmegaConf.select(cfg, option) is not None or option in hydra["runtime"]["choices"], option
    assert hydra["callbacks"]["comparison"]["_target_"] == "lit_posttrain.app.sweep.SweepComparison"


def test_grpo_lr_is_learning_rate_times_seed(command_line, jobs):
    status, _, errors = command_line("-cd", str(SWEEPS), "-cn", "grpo_lr", "hydra.sweep.dir=sweep")
    assert status == 0, errors
    assert jobs == [(lr, seed) for lr in (1e-4, 3e-4, 6e-4) for seed in (0, 1)]
    compared = rows("sweep")
    assert [(row["optim.lr"], row["seed"], float(row["best"])) for row in compared] == [
        (lr, seed, float(lr)) for lr in ("0.0001", "0.0003", "0.0006") for seed in "01"
    ]


def test_a_swept_option_is_overridden(command_line, jobs):
    sweep = ["-cd", str(SWEEPS), "-cn", "grpo_lr"]
    status, _, errors = command_line(*sweep, "optim.lr=1e-4", "seed=3,4", "trainer.max_steps=5", "hydra.sweep.dir=s")
    assert (status, jobs) == (0, [(1e-4, 3), (1e-4, 4)]), errors
    assert [(row["seed"], row["steps"]) for row in rows("s")] == [("3", "5"), ("4", "5")]
    assert "optim.lr" not in rows("s")[0]


def test_algorithms_are_drawn_with_the_seeds_in_one_line(command_line, jobs, monkeypatch):
    drawn, draw = {}, curves._draw
    monkeypatch.setattr(curves, "_draw", lambda panel, kind, of: draw(panel, kind, drawn.setdefault(kind, of)))
    sweep = ["-cd", str(SWEEPS), "-cn", "algorithms", "hydra.sweep.dir=sweep"]
    status, printed, errors = command_line(*sweep, "algo=grpo", "seed=0,2")
    assert status == 0, errors
    assert [(row["seed"], row["metric"]) for row in rows("sweep")] == [(seed, "val/optimal_sampled") for seed in "02"]
    band = curves.Band(x=[0.0, 101.0], mean=[0.5, 0.7], low=[0.5, 0.7], high=[0.5, 0.7], runs=2)
    assert drawn == {"grpo": band}
    assert "comparison.png" in printed
    assert Path("sweep", "comparison.png").is_file()


# Every multirun.


def test_a_failed_job_is_reported_and_does_not_stop_the_rest(command_line, jobs, tmp_path):
    status, printed, _ = command_line("-m", "optim.lr=-1,1e-4", "seed=0,1", "hydra.sweep.dir=sweep")
    assert status == 1
    assert jobs == [(-1, 0), (-1, 1), (1e-4, 0), (1e-4, 1)]
    error = "ValueError: `lr` must be [0, 1], got -1. On the command line: `optim.lr`."
    common = {"metric": "val/reward"}
    nothing = dict.fromkeys(("first", "last", "best", "steps", "wall_s"), "")
    measured = {"first": "0.25", "last": "0.5", "best": "0.0001", "steps": "120", "wall_s": "1.5"}
    assert rows("sweep") == [
        {"job": str(number), "folder": str(tmp_path / "sweep" / str(number)), "status": status, "error": said}
        | {"optim.lr": lr, "seed": seed}
        | common
        | result
        for number, (lr, seed, status, said, result) in enumerate(
            [
                ("-1", "0", "failed", error, nothing),
                ("-1", "1", "failed", error, nothing),
                ("0.0001", "0", "ok", "", measured),
                ("0.0001", "1", "ok", "", measured),
            ]
        )
    ]
    assert f"job 1 failed: {error}\n  see {tmp_path / 'sweep' / '1'}\n" in printed
    assert f"2 of 4 jobs failed; compared in {tmp_path / 'sweep' / 'comparison.csv'}" in printed
    assert "Traceback (most recent call last)" in (tmp_path / "sweep" / "1" / "train.log").read_text()


def test_ctrl_c_ends_the_whole_sweep_and_what_was_done_is_compared(command_line, jobs):
    assert command_line("-m", "optim.lr=1e-4,0,2e-4", "hydra.sweep.dir=sweep")[0] == 130
    assert [lr for lr, _ in jobs] == [1e-4, 0]
    assert [row["job"] for row in rows("sweep")] == ["0"]


@pytest.mark.parametrize("mistake", ["algo=grpo,nosuch", "algo.groupsize=4,8"])
def test_what_cannot_be_composed_ends_a_sweep_before_its_first_job(command_line, jobs, mistake):
    status, _, errors = command_line("-m", "seed=0,1", mistake)
    assert (status, jobs) == (1, [])
    assert "there is no" in errors


def test_a_reused_folder_forgets_the_jobs_of_the_sweep_before(command_line, jobs):
    assert command_line("-m", "seed=0,1", "hydra.sweep.dir=sweep")[0] == 0
    assert command_line("-m", "optim.lr=-1", "hydra.sweep.dir=sweep", "overwrite=true")[0] == 1
    assert [(row["status"], row["best"]) for row in rows("sweep")] == [("failed", "")]


@pytest.mark.parametrize(("mode", "score"), [("validate", "0.75"), ("predict", "")])
def test_other_modes_have_their_own_score(command_line, jobs, mode, score):
    assert command_line("-m", f"mode={mode}", "seed=0,1", "hydra.sweep.dir=sweep")[0] == 0
    assert [(row["status"], row["last"], row["steps"]) for row in rows("sweep")] == [("ok", score, "")] * 2


def test_a_single_run_is_not_compared(command_line, jobs, tmp_path):
    assert command_line("hydra.run.dir=run")[0] == 0
    status, _, errors = command_line("hydra.run.dir=run", "optim.lr=-1", "overwrite=true")
    assert (status, "error: ValueError: `optim.lr` must be >= 0, got -1.\n" in errors) == (1, True)
    assert [path.name for path in tmp_path.rglob("comparison.csv")] == []


def test_a_sweeper_that_optimizes_gets_nan_for_a_failed_job(tmp_path):
    config = OmegaConf.create(
        {"hydra": {"sweep": {"dir": str(tmp_path)}, "job": {"num": 0}, "runtime": {"output_dir": str(tmp_path / "0")}}}
    )
    returned = JobReturn(overrides=["+a=b=c", "~d"], status=JobStatus.FAILED)
    returned.return_value = KeyError("no column")
    callback = SweepComparison()
    callback.on_multirun_start(config)
    callback.on_job_end(config, returned)
    assert str(returned.return_value) == "nan"
    record = json.loads((tmp_path / ".jobs" / "0.json").read_text())
    assert record["error"] == "KeyError: no column"
    assert record["overrides"] == {"a": "b=c", "d": ""}


@pytest.fixture
def no_handler():
    """SIGTERM as it is in a new process."""
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.usefixtures("no_handler")
def test_sigterm_unwinds_unless_another_handler_takes_it(command_line, monkeypatch):
    reached = []

    def run_until_terminated(cfg):
        taken = signal.signal(signal.SIGTERM, lambda *signalled: reached.append(taken(*signalled)))
        os.kill(os.getpid(), signal.SIGTERM)  # as while Lightning fits: its handler calls the one before
        signal.signal(signal.SIGTERM, taken)
        reached.append("went on")
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("not terminated")

    monkeypatch.setattr(run, "run", run_until_terminated)
    status, _, _ = command_line("-m", "seed=0,1")
    assert (status, reached) == (143, [None, "went on"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_launcher_that_is_not_installed():
    said = explain_composition_error("Could not find 'hydra/launcher/joblib'\n\tbasic", [])
    assert "pip install 'lit-posttrain[sweep]'" in said
