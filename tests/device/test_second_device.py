"""The first command on a GPU, without one: every kind of run on a device that minds where tensors are."""

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


REFUSALS = """
import torch
from tests.device import second_device
second_device.connect()
here, there, error = torch.ones(3, device="second"), torch.ones(3), []
torch.use_deterministic_algorithms(True)
second_device.refuse_float64(True)
for refused in (
    lambda: here + there,
    lambda: torch.cat([here, torch.tensor(1.0)[None]]),
    lambda: torch.stack([here[0], torch.tensor(1.0)]),
    lambda: here.masked_fill_(there > 0, 0),
    lambda: torch.randn(3, device="second"),
    lambda: here.cumsum(0),
    lambda: here.double(),
):
    try:
        refused()
    except (RuntimeError, TypeError) as refusal:
        error.append(str(refusal).splitlines()[0])
assert len(error) == 7, error
assert "no float64" in error.pop()
assert second_device.faults() == error, (second_device.faults(), error)
second_device.forget_faults()
(2 - here + torch.tensor(1.0))[torch.tensor([0, 2])].long().cumsum(0).sum().item()
assert second_device.faults() == []
"""


def test_what_the_device_refuses():
    """It is no use if it lets everything pass."""
    second_device.build()
    done = subprocess.run([sys.executable, "-c", REFUSALS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
