"""The first command on a GPU, without one: every kind of run on a device that minds where tensors are."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.device import second_device
from tests.device.jobs import CPU, JOBS, SECOND, WITH_ADAPTER

ROOT = Path(__file__).resolve().parents[2]
EVERY = {**JOBS, **WITH_ADAPTER}

pytestmark = pytest.mark.skipif(not second_device.has_compiler(), reason="the device has to be compiled")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """The folder of all jobs; done by a process of their own, which cannot get rid of the device."""
    folder = tmp_path_factory.mktemp("device")
    second_device.build()
    with (folder / "output").open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.device", str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=600,
        )
    assert done.returncode == 0, (folder / "output").read_text()[-3000:]
    return folder


def result(folder: Path, name: str, device: str) -> dict[str, Any]:
    found = torch.load(folder / f"{name}-{device}.pt", weights_only=False)
    assert "error" not in found, found["error"]
    return found


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("name", EVERY)
def test_a_run_is_that_on_the_cpu(results, name):
    """To what other kernels of attention round off; what is drawn is the same."""
    got, want = result(results, name, SECOND), result(results, name, CPU)
    assert got["faults"] == []
    assert len(got["steps"]) == len(want["steps"]) > 0
    for metrics, expected in zip(got["steps"], want["steps"], strict=True):
        assert without_times(metrics) == pytest.approx(without_times(expected), rel=1e-4, abs=1e-4)
    assert got["validated"] == pytest.approx(want["validated"], rel=1e-4, abs=1e-4)
    for weight, tensor in want["weights"].items():
        torch.testing.assert_close(got["weights"][weight], tensor, atol=5e-4, rtol=0, msg=weight)


@pytest.mark.parametrize("name", [name for name, job in EVERY.items() if "resume" in job.also])
def test_a_run_goes_on_exactly(results, name):
    found = result(results, name, SECOND)
    for weight, tensor in found["weights"].items():
        assert torch.equal(found["resumed"][weight], tensor), weight


@pytest.mark.parametrize("name", [name for name, job in EVERY.items() if "predict" in job.also])
def test_predictions_are_those_of_the_cpu(results, name):
    got, want = (result(results, name, device)["predicted"] for device in (SECOND, CPU))
    assert [[row.keys() for row in batch] for batch in got] == [[row.keys() for row in batch] for batch in want]
    for mine, theirs in zip(chain(*got), chain(*want), strict=True):
        for column, value in theirs.items():
            assert mine[column] == (pytest.approx(value, abs=1e-3) if isinstance(value, float) else value)


def test_what_the_device_refuses(results):
    """It is no use if it lets everything pass."""
    found = json.loads((results / "refusals.json").read_text())
    assert len(found["said"]) == 7
    assert "no float64" in found["said"].pop()
    assert found["noted"] == found["said"]
    assert found["noted_of_what_is_allowed"] == []
