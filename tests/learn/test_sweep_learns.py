"""The sweep over algorithms with one seed: scores, table, picture and time: pytest -m learn."""

import subprocess
import time

import pytest

from tests.learn.training_run import ROOT, command, table

pytestmark = pytest.mark.learn


def test_algorithms_with_one_seed(tmp_path):
    started = time.monotonic()
    sweep = ["-cd", str(ROOT / "sweeps"), "-cn", "algorithms", "seed=0", "logger=csv", "hydra.sweep.dir=sweep"]
    subprocess.run(command(*sweep), cwd=tmp_path, check=True)
    assert time.monotonic() - started < 600  # seconds on two cores
    jobs = {row["algo"]: row for row in table(tmp_path / "sweep" / "comparison.csv")}
    assert set(jobs) == {"ppo", "grpo", "rloo", "dpo"}
    assert {job["metric"] for job in jobs.values()} == {"val/optimal_sampled"}
    for algo in ("ppo", "grpo", "rloo"):
        assert float(jobs[algo]["last"]) >= 0.75, algo
    assert float(jobs["dpo"]["last"]) >= float(jobs["dpo"]["first"]) + 0.15
    assert (tmp_path / "sweep" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
