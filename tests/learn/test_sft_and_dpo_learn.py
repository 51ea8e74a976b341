"""Seeded runs of what learns from given rows, judged by their own summaries: pytest -n0 -m learn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.learn

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *overrides: str) -> dict:
    """Run train.py in a folder of its own and return the metrics of its summary."""
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={tmp_path}/run", "logger=csv", *overrides]
    subprocess.run(command, cwd=tmp_path, check=True)
    return json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demonstrations_teach_a_fresh_model_the_way(tmp_path, seed):
    success = run(tmp_path, "algo=sft", "model=tiny_random", f"seed={seed}")["val/success"]
    assert success["first"] == 0
    assert success["last"] >= 0.90


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_preferences_make_paths_shorter(tmp_path, seed):
    metrics = run(tmp_path, "algo=dpo", "model=tiny", f"seed={seed}")
    assert metrics["val/optimal_sampled"]["last"] >= metrics["val/optimal_sampled"]["first"] + 0.15
    assert metrics["val/success"]["last"] >= 0.93
