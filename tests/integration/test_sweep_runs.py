"""Real sweeps, one job after the other and side by side: the same numbers, each those of the job's own summary."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from lit_posttrain.app.cli import main

ROOT = Path(__file__).resolve().parents[2]
# `grpo_lr` with two learning rates of which one fails.
SWEEP = ["-cd", str(ROOT / "sweeps"), "-cn", "grpo_lr", "hydra.sweep.dir=sweep", "optim.lr=-1,1e-3", "seed=1"]
SMALL = [
    "logger=csv",
    "trainer.max_steps=2",
    "data.batch_size=4",
    "data.path.num_prompts=16",
    "data.path.num_validation=8",
    "algo.group_size=4",
    "algo.sampling.max_new_tokens=16",
]
ERROR = "ValueError: `optim.lr` must be >= 0, got -1."


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    """The folder of a sweep without a launcher of its own, in this process."""
    folder = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", *SWEEP, *SMALL])
        with pytest.raises(SystemExit) as stop:
            main()
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    assert stop.value.code == 1
    return folder / "sweep"


def assert_compared(sweep: Path) -> dict:
    """The failed job is there, and the other has the numbers of its summary, which is returned."""
    with (sweep / "comparison.csv").open(newline="") as file:
        failed, ok = csv.DictReader(file)
    assert (failed["job"], failed["status"], failed["optim.lr"], failed["error"]) == ("0", "failed", "-1", ERROR)
    assert (ok["job"], ok["status"], ok["optim.lr"], ok["error"]) == ("1", "ok", "0.001", "")
    summary = json.loads((sweep / "1" / "summary.json").read_text())
    assert {name: float(ok[name]) for name in ("first", "last", "best")} == summary["metrics"]["val/reward"]
    assert (int(ok["steps"]), float(ok["wall_s"]), summary["seed"]) == (2, summary["wall_s"], 1)
    return summary


def test_one_after_the_other(serial):
    scores = assert_compared(serial)["metrics"]["val/reward"]
    assert scores["first"] != scores["last"]


@pytest.mark.learn
def test_side_by_side(serial, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = [sys.executable, str(ROOT / "train.py"), *SWEEP, *SMALL]
    command += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"job 0 failed: {ERROR}" in done.stdout
    summary = assert_compared(tmp_path / "sweep")
    assert summary["device"].endswith("1 threads)")
    assert summary["weights_sha256"] == assert_compared(serial)["weights_sha256"]
