"""PPO on the embedded task with the weights dealt out over two processes: pytest -m learn."""

import pytest

from tests.learn.training_run import run

pytestmark = pytest.mark.learn


def test_ppo_on_the_grid(tmp_path):
    fsdp = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.accumulate_grad_batches=1"]
    metrics = run(tmp_path, "algo=ppo", "logger=csv", "seed=0", *fsdp)["metrics"]
    assert metrics["val/optimal_sampled"]["last"] - metrics["val/optimal_sampled"]["first"] >= 0.15
    assert metrics["val/success"]["last"] >= 0.93
