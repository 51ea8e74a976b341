"""The whole road on the embedded task: PPO sees the learned reward alone, and the true scores rise: pytest -m learn."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.learn

ROOT = Path(__file__).resolve().parents[2]


def walk(tmp_path: Path, *arguments: str) -> list[dict]:
    """Run a pipeline in a folder of its own and return what it says of its stages."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments, "logger=csv", f"hydra.run.dir={tmp_path}/road"]
    subprocess.run(command, cwd=tmp_path, check=True)
    return json.loads((tmp_path / "road" / "pipeline.json").read_text())["stages"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rlhf_from_random_weights(tmp_path, seed):
    _, reward_model, last = walk(tmp_path, "pipeline=rlhf", f"seed={seed}")
    assert reward_model["metrics"]["val/accuracy"]["last"] >= 0.9
    sampled, success = last["metrics"]["val/optimal_sampled"], last["metrics"]["val/success"]
    assert sampled["last"] >= sampled["first"] + 0.2
    assert success["last"] >= success["first"]


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_two_stages_from_random_weights(tmp_path, name):
    _, last = walk(tmp_path, f"pipeline={name}")
    sampled = last["metrics"]["val/optimal_sampled"]
    assert sampled["last"] >= sampled["first"] + 0.15
