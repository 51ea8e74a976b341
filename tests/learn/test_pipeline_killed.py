"""A pipeline killed at a random moment and started again ends with the same weights: pytest -m learn."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.learn.training_run import command, stages

pytestmark = pytest.mark.learn

MOMENTS = 5
ROAD = [
    "pipeline=rlhf",
    "logger=csv",
    "val_every_steps=null",
    "callbacks.last_checkpoint.every_n_train_steps=5",
    "stage.sft.trainer.max_steps=150",
    "stage.sft.data.path.num_demonstrations=2000",
    "stage.rm.trainer.max_steps=100",
    "stage.rm.data.path.num_pairs=2000",
    "stage.ppo.trainer.max_steps=25",
    "stage.ppo.data.path.num_prompts=256",
    "pipeline.stages.rm.gate=null",
    "pipeline.stages.ppo.gate=null",
]


def road(folder: Path) -> list[str]:
    return command(*ROAD, f"hydra.run.dir={folder}")


def digests(folder: Path) -> dict[str, str]:
    return {name: row["weights_sha256"] for name, row in stages(folder).items()}


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[dict[str, str], float]:
    """The digests of the stages of a pipeline that nobody killed, and how many seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    subprocess.run(road(folder / "road"), cwd=folder, check=True)
    return digests(folder / "road"), time.monotonic() - started


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_and_started_again(whole, tmp_path, moment):
    expected, seconds = whole
    process = subprocess.Popen(road(tmp_path / "road"), cwd=tmp_path)
    time.sleep(seconds * 0.9 * (moment + random.random()) / MOMENTS)  # anywhere in a fifth of the road
    # now the pipeline alone, whose stage has to notice, now all, as by a loss of power
    for pid in [process.pid, *(children(process.pid) if moment % 2 else [])]:
        subprocess.run(["kill", "-KILL", str(pid)])  # a stage may have just ended
    assert process.wait() == -signal.SIGKILL
    subprocess.run(road(tmp_path / "road"), cwd=tmp_path, check=True)
    assert digests(tmp_path / "road") == expected
