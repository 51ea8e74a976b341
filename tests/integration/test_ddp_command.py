"""`trainer=ddp` from the command line: processes that Lightning launches, one folder, one voice."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from lit_posttrain.app.run import run
from lit_posttrain.models.weights import weights_sha256
from tests.composing import compose_train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.batch_size=3",
    "data.path.num_prompts=64",
    "data.path.num_validation=5",
    "algo.group_size=4",
    "algo.sampling.max_new_tokens=24",
    "trainer.max_steps=3",
    "val_every_steps=null",
]
COMMAND = "python train.py trainer=ddp trainer.devices=2"

RAISES = """
import os, time
rank = os.environ.get("LOCAL_RANK", "0")
calls = 0

def fn(completions, **columns):
    global calls
    calls += 1
    if calls == 1:  # not in every call: a process that is ended while it writes leaves an empty file
        with open(f"process-{rank}", "w") as file:
            file.write(str(os.getpid()))
    if calls == 3:
        if rank == "FAILING":
            raise ZeroDivisionError("no luck")
        time.sleep(300)  # as in a collective that never ends: NCCL does not notice that a process is gone
    return [float(len(text)) for text in completions]
"""


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    """`train.py` on two processes of the CPU."""
    on_cpu = [*COMMAND.split()[2:], "trainer.accelerator=cpu"]
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *on_cpu, *SMALL, "hydra.run.dir=run", *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )


def test_a_run_leaves_one_of_each_file_and_says_everything_once(tmp_path):
    assert COMMAND in (ROOT / "README.md").read_text()
    process = train(tmp_path)
    assert process.returncode == 0, process.stdout[-3000:]
    folder = tmp_path / "run"
    files = {path.name for path in folder.iterdir()}
    assert files == {
        *("config.yaml", "parts.json", "metrics.csv", "completions.jsonl", "summary.json", ".lock"),
        *("checkpoints", "export", "export_best", "wandb", ".hydra", "train.log", "train_ddp_process_1.log"),
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert {"algo": "grpo", "model": "tiny", "data": "gridworld", "steps": 3}.items() <= summary.items()
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(folder / "export")) == summary["weights_sha256"]
    assert len((folder / "metrics.csv").read_text().splitlines()) == 1 + 4

    said = [line for line in process.stdout.splitlines() if line.strip() and "sync_dist" not in line]
    assert "sync_dist" not in process.stdout
    for once in ("Loading weights: 100%", "is deprecated, use `isinstance(treespec", "Trainer.fit` stopped"):
        assert sum(once in line for line in said) == 1, process.stdout

    alone = tmp_path / "alone"
    run(compose_train(*SMALL, "logger=csv", "+trainer.enable_progress_bar=false", run_dir=alone))
    first = [
        [line for line in map(json.loads, (each / "completions.jsonl").read_text().splitlines()) if line["step"] == 0]
        for each in (folder, alone)
    ]
    assert len(first[0]) == 12
    assert first[0] == first[1]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.learn), 1])
def test_an_error_in_one_process_ends_all_and_is_told(tmp_path, rank):
    (tmp_path / "raises.py").write_text(RAISES.replace("FAILING", str(rank)))
    started = time.monotonic()
    process = train(tmp_path, "logger=csv", "reward=custom", "reward.path=raises.py:fn", "trainer.max_steps=1000")
    assert process.returncode != 0
    assert time.monotonic() - started < 120
    own = [line for line in process.stdout.splitlines() if line.startswith("error") and "no luck" in line]
    assert len(own) == 1, process.stdout
    assert own[0].startswith("error in process 1: RuntimeError" if rank else "error: RuntimeError")
    assert "Traceback" not in process.stdout
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "ZeroDivisionError" in (tmp_path / "run" / f"train{'_ddp_process_1' if rank else ''}.log").read_text()
    for number in range(2):
        assert_ends(int((tmp_path / f"process-{number}").read_text()))


def assert_ends(pid: int) -> None:
    """The process is gone, or a zombie that nobody waits for, within seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")
