"""SIGTERM and Ctrl-C end a run within seconds, on one process and on two, wherever it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TRAIN = str(Path(__file__).resolve().parents[2] / "train.py")
LIMIT_S = 10.0
SMALL = [
    "logger=csv",
    "hydra.run.dir=run",
    "data.path.num_prompts=64",
    "data.path.num_validation=16",
    "data.batch_size=4",
    "algo.group_size=2",
    "val_every_steps=20",
    "trainer.max_steps=100000",
    "callbacks.last_checkpoint.every_n_train_steps=10",
]

# Says where the run is: the file grows with every call.
REWARDS = '''
import hashlib, os, time

def _called():
    with open(os.environ["CALLS"], "a") as file:
        file.write("x")
    return os.path.getsize(os.environ["CALLS"])

def counted(completions, **columns):
    _called()
    return [-float(len(text)) for text in completions]

def sleeps(completions, **columns):
    if _called() > 6:
        time.sleep(1000)
    return [-float(len(text)) for text in completions]

def deaf(completions, **columns):
    """Stays in a call into C, where no handler of Python's runs."""
    if _called() > 6:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    return [-float(len(text)) for text in completions]
'''


class Run:
    """A command line whose reward counts its calls."""

    def __init__(self, folder: Path, *options: str, reward: str = "counted", env: dict[str, str] | None = None) -> None:
        (folder / "rewards.py").write_text(REWARDS)
        self.folder, self.calls = folder, folder / "calls"
        self.output = (folder / "output").open("w+")
        options = (*SMALL, "reward=custom", f"reward.path=rewards.py:{reward}", *options)
        self.process = subprocess.Popen(
            [sys.executable, TRAIN, *options],
            cwd=folder,
            env=os.environ | {"CALLS": str(self.calls), **(env or {})},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # a shell that starts the tests in the background has Ctrl-C ignored, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_for(self, reached) -> None:
        deadline = time.monotonic() + 240
        while not reached():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)

    def wait_for_calls(self, count: int) -> None:
        self.wait_for(lambda: self.calls.is_file() and self.calls.stat().st_size >= count)

    def end_by(self, number: signal.Signals) -> int:
        """Send a signal to the first process, and see how it ends and that nothing is left."""
        self.process.send_signal(number)
        try:
            code = self.process.wait(timeout=LIMIT_S)
            end = time.monotonic() + 3
            while self.processes() and time.monotonic() < end:
                time.sleep(0.05)
            assert not self.processes(), "a process of the run is still there"
        finally:
            if self.processes():
                os.killpg(self.process.pid, signal.SIGKILL)
        return code

    def processes(self) -> int:
        """How many there are of the run, without those that have ended and that nobody has come to bury."""
        listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
        lines = (line.split() for line in listed.splitlines())
        return sum(int(group) == self.process.pid and not state.startswith("Z") for group, state in lines)

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read()[-3000:]

    @property
    def last(self) -> Path:
        return self.folder / "run" / "checkpoints" / "last.ckpt"

    def step(self) -> int:
        return torch.load(self.last, weights_only=True)["global_step"] if self.last.is_file() else 0


@pytest.fixture
def start(tmp_path):
    """Start a run, of which nothing is left after the test."""
    runs = []

    def begin(*options: str, **settings: str) -> Run:
        runs.append(Run(tmp_path, *options, **settings))
        return runs[-1]

    yield begin
    for run in runs:
        if run.processes():
            os.killpg(run.process.pid, signal.SIGKILL)


TWO = ("trainer=ddp", "trainer.accelerator=cpu")
LONGER = pytest.mark.learn


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("start", marks=LONGER),
        pytest.param("first validation", marks=LONGER),
        "rollout",
        pytest.param("steps", marks=LONGER),
        pytest.param("checkpoint", marks=LONGER),
    ],
)
def test_two_processes_end_together(start, moment):
    """Where they can meet they save a checkpoint; and within the limit in any case."""
    run = start(*TWO, *(["algo.rollouts.num_epochs=50"] if moment == "steps" else []))
    if moment == "start":
        run.wait_for(lambda: run.processes() == 2)  # which look for one another
    elif moment == "first validation":
        run.wait_for_calls(1)
    elif moment == "checkpoint":
        run.wait_for(lambda: any(run.last.parent.glob("*")))
    else:
        run.wait_for_calls(8)
        time.sleep(0.3)
    assert run.end_by(signal.SIGTERM) == 143, run.said()
    if moment in ("rollout", "steps"):
        assert run.step() > 0
        assert f"terminated; go on with `python {TRAIN} ckpt_path={run.last}`" in run.said()
    if run.last.is_file():
        torch.load(run.last, weights_only=True)
        assert [path.name for path in run.last.parent.iterdir() if path.name not in ("last.ckpt", "best.ckpt")] == []


def test_a_new_checkpoint_of_the_last_step(start):
    """Of a run that saves seldom; on one process in the middle of a rollout."""
    run = start("callbacks.last_checkpoint.every_n_train_steps=100000", reward="sleeps")
    run.wait_for_calls(7)
    time.sleep(0.3)
    assert run.end_by(signal.SIGTERM) == 143, run.said()
    # the validation before training scores once, a rollout of one optimiser step once
    assert run.step() == 5
    assert list(run.last.parent.iterdir()) == [run.last]
    assert f"terminated; go on with `python {TRAIN} ckpt_path={run.last}`" in run.said()


@LONGER
def test_a_reward_that_hangs_in_a_library(start):
    """No handler runs there, and nothing can be saved: the newest checkpoint stays."""
    run = start("callbacks.last_checkpoint.every_n_train_steps=2", reward="deaf")
    run.wait_for_calls(7)
    time.sleep(0.3)
    assert run.end_by(signal.SIGTERM) == 143, run.said()
    assert run.step() == 4


def test_ctrl_c_says_one_sentence(start):
    run = start("callbacks.last_checkpoint.every_n_train_steps=100000", "+trainer.enable_progress_bar=false")
    run.wait_for_calls(6)
    assert run.end_by(signal.SIGINT) == 130
    said = run.said().strip().splitlines()
    assert said[-1] == f"interrupted; go on with `python {TRAIN} ckpt_path={run.last}`"
    assert "Traceback" not in run.said()
    assert run.step() >= 4


@LONGER
def test_the_others_end_when_the_first_process_is_killed(start):
    run = start(*TWO)
    run.wait_for_calls(6)
    assert run.end_by(signal.SIGKILL) == -signal.SIGKILL
