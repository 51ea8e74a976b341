"""Seeded runs of the command line on the embedded task, judged by their own summaries: pytest -m learn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.learn

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *overrides: str) -> dict:
    """Run train.py in a folder of its own and return the summary."""
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={tmp_path}/run", *overrides]
    subprocess.run(command, cwd=tmp_path, check=True)
    return json.loads((tmp_path / "run" / "summary.json").read_text())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_on_the_grid(tmp_path, seed):
    metrics = run(tmp_path, f"seed={seed}")["metrics"]
    sampled, success = metrics["val/optimal_sampled"], metrics["val/success"]
    assert sampled["first"] <= 0.60
    assert sampled["last"] >= 0.80
    assert success["last"] >= 0.93
    assert success["last"] >= success["first"]
