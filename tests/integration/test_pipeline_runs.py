"""A real pipeline, killed in its second stage and started again: it ends where the uninterrupted one ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from lit_posttrain.app import stage_process
from lit_posttrain.app.cli import main

ROAD = [
    "pipeline=grpo",
    "logger=csv",
    "val_every_steps=null",
    "callbacks.last_checkpoint.every_n_train_steps=1",
    "stage.sft.trainer.max_steps=2",
    "stage.sft.data.path.num_demonstrations=64",
    "stage.sft.data.val_prompts.path.num_validation=2",
    "stage.sft.data.path.num_validation=8",
    "stage.grpo.trainer.max_steps=12",
    "stage.grpo.algo.num_minibatches=3",
    "stage.grpo.algo.scale=none",
    "stage.grpo.algo.kl_coef=0.1",
    "stage.grpo.data.batch_size=4",
    "stage.grpo.data.path.num_prompts=64",
    "stage.grpo.data.path.num_validation=4",
    "pipeline.stages.grpo.gate=null",
]


def run(folder: Path, *arguments: str) -> None:
    """The command line in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            main()
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None


def test_killed_in_the_second_stage_and_started_again(tmp_path):
    road = tmp_path / "road"
    parent = [sys.executable, "-m", "lit_posttrain", *ROAD, f"hydra.run.dir={road}"]
    process = subprocess.Popen(parent, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint, deadline = road / "grpo" / "checkpoints" / "last.ckpt", time.monotonic() + 240
    while not checkpoint.is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()  # not its stage, which has to notice
    process.wait()
    run(tmp_path, *ROAD, f"hydra.run.dir={road}")
    first, second = json.loads((road / "pipeline.json").read_text())["stages"]
    assert [(row["status"], row["reused"]) for row in (first, second)] == [("done", True), ("done", False)]
    assert "going on from" in (road / "train.log").read_text()
    assert not (road / "grpo.1").exists()

    started = json.loads((road / "grpo" / "stage.json").read_text())["command"]
    run(tmp_path, *(a for a in started if not a.startswith("hydra.run.dir=")), "hydra.run.dir=whole")
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert (second["steps"], second["weights_sha256"]) == (12, whole["weights_sha256"])
    completions = [(folder / "completions.jsonl").read_text() for folder in (road / "grpo", tmp_path / "whole")]
    assert completions[0] == completions[1]


# Signals, with a stage that says what it got.

STAGE = """#!{python}
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
said = open({said!r}, "a", buffering=1)
def say(number, frame):
    said.write(f"{{number}}\\n")
    if {obeys}: sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, say)
from lit_posttrain.app.lifeline import end_with_the_pipeline
end_with_the_pipeline()
said.write(f"began {{os.getpid()}}\\n")
time.sleep(30)
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Let `run_stage` start a script in the place of Python; returns what the script has said so far."""
    said = tmp_path / "said"

    def make(*, obeys: bool = True):
        script = tmp_path / "stage"
        root = str(Path(stage_process.__file__).parents[2])
        script.write_text(STAGE.format(python=sys.executable, root=root, said=str(said), obeys=obeys))
        script.chmod(0o755)
        monkeypatch.setattr(stage_process.sys, "executable", str(script))
        return lambda: said.read_text().split("\n")[:-1] if said.is_file() else []

    yield make
    monkeypatch.undo()


def when(condition, then) -> threading.Thread:
    """Do something in the background as soon as a condition holds."""

    def wait():
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_stage_once(stage, tmp_path, sent):
    heard = stage()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    thread = when(heard, lambda: os.kill(os.getpid(), sent))
    try:
        with stage_process.alone_in(tmp_path) as lock, pytest.raises((KeyboardInterrupt, SystemExit)):
            stage_process.run_stage([], lock=lock)
    finally:
        signal.signal(signal.SIGTERM, before)
    thread.join()
    assert heard()[1:] == [str(int(sent))]


def test_a_stage_that_does_not_obey_is_killed_at_the_second_ctrl_c(stage, tmp_path):
    heard = stage(obeys=False)
    threads = [
        when(heard, lambda: os.kill(os.getpid(), signal.SIGINT)),
        when(lambda: len(heard()) > 1, lambda: os.kill(os.getpid(), signal.SIGINT)),
    ]
    with stage_process.alone_in(tmp_path) as lock, pytest.raises(KeyboardInterrupt):
        stage_process.run_stage([], lock=lock)
    for thread in threads:
        thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(heard()[0].split()[1]), 0)


def test_a_folder_is_for_one_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_process, "WAIT_S", 0.0)
    with (
        stage_process.alone_in(tmp_path),
        pytest.raises(RuntimeError, match="another pipeline is running in"),
        stage_process.alone_in(tmp_path),
    ):
        pass
    with stage_process.alone_in(tmp_path):
        pass
