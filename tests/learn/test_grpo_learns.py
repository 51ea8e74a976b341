"""Seeded runs of the command line on the embedded task, judged by their own summaries: pytest -m learn."""

import pytest

from tests.learn.training_run import run

pytestmark = pytest.mark.learn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_on_the_grid(tmp_path, seed):
    metrics = run(tmp_path, f"seed={seed}")["metrics"]
    sampled, success = metrics["val/optimal_sampled"], metrics["val/success"]
    assert sampled["first"] <= 0.60
    assert sampled["last"] >= 0.80
    assert success["last"] >= 0.93
    assert success["last"] >= success["first"]
