"""Seeded runs of what learns from given rows, judged by their own summaries: pytest -n0 -m learn."""

import pytest

from tests.learn.training_run import run

pytestmark = pytest.mark.learn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demonstrations_teach_a_fresh_model_the_way(tmp_path, seed):
    success = run(tmp_path, "algo=sft", "model=tiny_random", "logger=csv", f"seed={seed}")["metrics"]["val/success"]
    assert success["first"] == 0
    assert success["last"] >= 0.90


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_preferences_make_paths_shorter(tmp_path, seed):
    metrics = run(tmp_path, "algo=dpo", "model=tiny", "logger=csv", f"seed={seed}")["metrics"]
    assert metrics["val/optimal_sampled"]["last"] >= metrics["val/optimal_sampled"]["first"] + 0.15
    assert metrics["val/success"]["last"] >= 0.93
