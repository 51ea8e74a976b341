"""GRPO that sees a learned reward alone, judged by the true score: pytest -n0 -m learn."""

import pytest

from tests.learn.training_run import run

pytestmark = pytest.mark.learn

HELD_BACK = ["trainer.max_steps=40", "algo.kl_coef=0.1"]  # with more of it the learned reward is exploited


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_true_scores_rise_with_the_learned_one(tmp_path, seed):
    for name in ("reward_model", "policy"):
        (tmp_path / name).mkdir()
    run(tmp_path / "reward_model", "algo=reward_model", "logger=csv", f"seed={seed}")
    learned = ["reward=model", f"reward.path={tmp_path}/reward_model/run/export"]
    metrics = run(tmp_path / "policy", "algo=grpo", *learned, *HELD_BACK, "logger=csv", f"seed={seed}")["metrics"]
    assert metrics["val/optimal_sampled"]["last"] >= metrics["val/optimal_sampled"]["first"] + 0.15
    assert metrics["val/success"]["last"] >= 0.93
