"""A whole pipeline in this process, stopped in its last stage and started again; what a stage hears of signals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from lit_posttrain import PPO
from lit_posttrain.app.cli import main
from lit_posttrain.app.folder import claim as run_folder
from lit_posttrain.app.folder.claim import claim_pipeline, release_folders
from lit_posttrain.app.pipeline import process as stage_process
from lit_posttrain.app.pipeline import run as pipeline
from lit_posttrain.app.run import run
from lit_posttrain.callbacks.progress import Progress
from lit_posttrain.files.locks import FolderLock

STEPS = 3  # of PPO
ROAD = [
    "pipeline=rlhf",
    "model=local",
    "model.path=model",
    "data=hh_rlhf",
    "data.path=hh.jsonl",
    "data.val_size=2",
    "data.batch_size=4",
    "data.max_length=32",
    "logger=csv",
    "trainer.max_steps=1",
    "val_every_steps=null",
    "callbacks.last_checkpoint.every_n_train_steps=1",
    "+trainer.enable_progress_bar=false",
    f"stage.ppo.trainer.max_steps={STEPS}",
    "stage.ppo.algo.rollouts.num_epochs=2",
    "stage.ppo.algo.sampling.max_new_tokens=8",
    "stage.ppo.optim.lr=1e-2",
    "pipeline.stages.sft.gate=null",
    "pipeline.stages.rm.gate=null",
    "pipeline.stages.ppo.gate=null",
]


class Killed(BaseException):
    """Ends a run where it stands."""


def walk() -> None:
    """The command line of the pipeline in this process, which has imported torch already."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train.py", *ROAD, "hydra.run.dir=road"])
            main()
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None


def run_stage(arguments: list[str], *, lock: int = 0) -> int:
    """What the command line of a stage does, without the cost of starting it."""
    options = [argument.replace("hydra.run.dir=", "run_dir=") for argument in arguments]
    run(compose("train", [*options, *(f"names.{name}={name}" for name in ("algo", "model", "data"))]))
    return 0


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell that starts tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def world(tmp_path, monkeypatch, make_model, word_tokenizer) -> Path:
    """A working directory with a model and dialogues in the form of HH-RLHF; stages run in this process."""
    monkeypatch.chdir(tmp_path)
    make_model("gpt2").save_pretrained("model")
    word_tokenizer.save_pretrained("model")
    turns = [f"\n\nHuman: w{i} w{i + 1}\n\nAssistant:" for i in range(12)]
    rows = [{"chosen": f"{turn} w{i}", "rejected": f"{turn} w20 w{i}"} for i, turn in enumerate(turns)]
    Path("hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    return tmp_path


def test_rlhf_on_dialogues_stopped_inside_ppo_and_started_again(world, monkeypatch):
    batch_start = Progress.on_train_batch_start

    def stop(self, trainer, pl_module, batch, batch_idx):
        if isinstance(pl_module, PPO) and trainer.global_step == 1:
            raise Killed
        batch_start(self, trainer, pl_module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_batch_start", stop)
        with pytest.raises(Killed):
            walk()
    walk()
    rows = json.loads(Path("road", "pipeline.json").read_text())["stages"]
    assert [(row["stage"], row["status"], row["reused"], row["steps"]) for row in rows] == [
        ("sft", "done", True, 1),
        ("rm", "done", True, 1),
        ("ppo", "done", False, STEPS),
    ]
    assert "going on from" in Path("road", "train.log").read_text()

    started = json.loads(Path("road", "ppo", "stage.json").read_text())["command"]
    with initialize_config_module("lit_posttrain.conf", version_base="1.3"):
        run_stage([argument for argument in started if not argument.startswith("hydra.run.dir=")] + ["run_dir=whole"])
    whole = json.loads(Path("whole", "summary.json").read_text())
    assert rows[2]["weights_sha256"] == whole["weights_sha256"] != rows[0]["weights_sha256"]
    lines = [Path(folder, "completions.jsonl").read_text() for folder in ("road/ppo", "whole")]
    assert lines[0] == lines[1]
    first = json.loads(lines[0].splitlines()[0])
    assert "w" in str(first["prompt"])
    assert "learned" in first["rewards"]


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


@pytest.fixture
def lock(tmp_path) -> int:
    """The descriptor of a folder's lock."""
    taken = FolderLock(tmp_path)
    assert taken.take()
    yield taken.descriptor
    taken.release()


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
def test_a_signal_reaches_the_stage_once(stage, lock, sent):
    heard = stage()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    thread = when(heard, lambda: os.kill(os.getpid(), sent))
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            stage_process.run_stage([], lock=lock)
    finally:
        signal.signal(signal.SIGTERM, before)
    thread.join()
    assert heard()[1:] == [str(int(sent))]


def test_a_stage_that_does_not_obey_is_killed_at_the_second_ctrl_c(stage, lock):
    heard = stage(obeys=False)
    threads = [
        when(heard, lambda: os.kill(os.getpid(), signal.SIGINT)),
        when(lambda: len(heard()) > 1, lambda: os.kill(os.getpid(), signal.SIGINT)),
    ]
    with pytest.raises(KeyboardInterrupt):
        stage_process.run_stage([], lock=lock)
    for thread in threads:
        thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(heard()[0].split()[1]), 0)


def test_a_folder_is_for_one_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "WAIT_S", 0.0)
    running = FolderLock(tmp_path)
    assert running.take()
    with pytest.raises(RuntimeError, match=rf"a run is going on in `{tmp_path}` \(process {os.getpid()} on "):
        claim_pipeline(tmp_path, "rlhf")
    running.release()
    assert claim_pipeline(tmp_path, "rlhf").descriptor == claim_pipeline(tmp_path, "rlhf").descriptor is not None
    release_folders()


def test_a_stage_that_lives_on_keeps_the_next_start_waiting(stage, tmp_path, monkeypatch):
    """The lock goes with the descriptor that a stage inherits, not with the pipeline that has taken it."""
    heard, lock = stage(obeys=False), FolderLock(tmp_path)
    assert lock.take()
    command = subprocess.Popen([stage_process.sys.executable], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,))
    when(heard, lock.release).join()
    assert not FolderLock(tmp_path).take()
    command.kill()
    command.wait()
    assert claim_pipeline(tmp_path, "rlhf").descriptor is not None
    release_folders()
