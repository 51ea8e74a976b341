"""The whole road on the embedded task: PPO sees the learned reward alone, and the true scores rise: pytest -m learn."""

import subprocess
from pathlib import Path

import pytest

from tests.learn.training_run import command, stages, table

pytestmark = pytest.mark.learn


def walk(tmp_path: Path, *arguments: str) -> dict[str, dict]:
    """Run a pipeline in a folder of its own, `road`; what it says of its stages."""
    subprocess.run(command(*arguments, "logger=csv", f"hydra.run.dir={tmp_path}/road"), cwd=tmp_path, check=True)
    return stages(tmp_path / "road")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rlhf_from_random_weights(tmp_path, seed):
    road = walk(tmp_path, "pipeline=rlhf", f"seed={seed}")
    assert road["rm"]["metrics"]["val/accuracy"]["last"] >= 0.9
    before, after = road["sft"]["metrics"], road["ppo"]["metrics"]
    assert after["val/optimal_sampled"]["last"] >= before["val/optimal_sampled"]["last"] + 0.2
    assert after["val/success"]["last"] >= before["val/success"]["last"]


def test_the_true_score_stands_beside_the_learned_one_and_the_divergence(tmp_path):
    short = [f"stage.{name}.trainer.max_steps=20" for name in ("sft", "rm", "ppo")]
    walk(tmp_path, "pipeline=rlhf", *short, *(f"pipeline.stages.{name}.gate=null" for name in ("sft", "rm", "ppo")))
    rollouts = [row for row in table(tmp_path / "road" / "ppo" / "metrics.csv") if row["reward/learned"]]
    assert len(rollouts) >= 5
    for row in rollouts:
        assert all(row[name] for name in ("rollout/optimal", "rollout/success", "policy/kl_ref_sequence"))


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_two_stages_from_random_weights(tmp_path, name):
    sampled = walk(tmp_path, f"pipeline={name}")[name]["metrics"]["val/optimal_sampled"]
    assert sampled["last"] >= sampled["first"] + 0.15
