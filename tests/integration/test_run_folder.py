"""The command line end to end: what a run leaves behind, and what is left when it is killed."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain.models.weights import weights_sha256
from tests.cutting import command

TRAIN = str(Path(__file__).resolve().parents[2] / "train.py")
SMALL = [
    "logger=csv",
    "data.batch_size=4",
    "data.path.num_prompts=64",
    "data.path.num_validation=16",
    "algo.group_size=4",
    "algo.rollouts.num_epochs=2",
    "algo.rollouts.num_minibatches=2",
    "algo.kl_coef=0.01",
    "algo.scale=none",
    "val_every_steps=5",
    "trainer.max_steps=15",
    "callbacks.last_checkpoint.every_n_train_steps=1",
]


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, TRAIN, *SMALL, *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    command(folder / "run", *SMALL)(None)
    return folder / "run"


def test_summary_and_files(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert {"seed": 0, "steps": 15}.items() <= summary.items()
    assert summary["peak_memory_mb"] > 100
    assert summary["throughput"]["tokens_per_s"] > 0
    for name in (
        "val/reward",
        "val/success",
        "val/optimal_sampled",
        "reward/mean",
        "policy/kl_ref",
        "rollout/length_max",
    ):
        assert set(summary["metrics"][name]) == {"first", "last", "best"}
    for name in ("config.yaml", "metrics.csv", "completions.jsonl", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (whole / name).is_file()
    exported = AutoModelForCausalLM.from_pretrained(whole / "export")
    assert weights_sha256(exported) == summary["weights_sha256"]
    assert AutoTokenizer.from_pretrained(whole / "export")("grid 5")["input_ids"]
    best = torch.load(whole / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for name, tensor in AutoModelForCausalLM.from_pretrained(whole / "export_best").state_dict().items():
        assert torch.equal(tensor, best[f"policy.model.{name}"])


def read_metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_metrics_have_one_row_for_each_step(whole):
    rows = read_metrics(whole)
    assert [int(row["step"]) for row in rows] == list(range(16))
    assert [int(row["step"]) for row in rows if row["val/reward"]] == [0, 5, 10, 15]
    assert [int(row["step"]) for row in rows if row["reward/mean"]] == [0, 4, 8, 12]
    assert all(row["train/loss"] for row in rows[:15])
    first = json.loads((whole / "summary.json").read_text())["metrics"]["val/reward"]["first"]
    assert float(rows[0]["val/reward"]) == pytest.approx(first)


def test_every_completion_is_kept(whole):
    lines = [json.loads(line) for line in (whole / "completions.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step for step in (0, 4, 8, 12) for _ in range(16)]
    assert lines[0]["prompt"].startswith("grid 5 5 walls")
    assert {"completion", "reward", "rewards", "advantage", "length", "truncated"} <= set(lines[0])
    mean = sum(line["reward"] for line in lines[:16]) / 16
    assert float(read_metrics(whole)[0]["reward/mean"]) == pytest.approx(mean, abs=1e-6)


def comparable(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.startswith(("time/", "throughput/"))}


@pytest.mark.learn
def test_killed_in_the_middle_of_a_rollout_and_resumed(whole, tmp_path):
    process = start(tmp_path, "hydra.run.dir=run")
    completions, checkpoint = tmp_path / "run" / "completions.jsonl", tmp_path / "run" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    # 48 completions: the third rollout has begun; then until a checkpoint of it is there
    while not (completions.is_file() and len(completions.read_text().splitlines()) >= 48):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "summary.json").exists()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 15

    finish(start(tmp_path, f"ckpt_path={checkpoint}"))
    assert not (tmp_path / "outputs").exists()  # it went on in its own folder
    resumed, uninterrupted = (json.loads((f / "summary.json").read_text()) for f in (tmp_path / "run", whole))
    assert resumed["weights_sha256"] == uninterrupted["weights_sha256"]
    for name, values in uninterrupted["metrics"].items():
        if not name.startswith(("time/", "throughput/")):
            assert resumed["metrics"][name] == values, name
    rows, expected = read_metrics(tmp_path / "run"), read_metrics(whole)
    assert [comparable(row) for row in rows] == [comparable(row) for row in expected]
    assert completions.read_text() == (whole / "completions.jsonl").read_text()
    parts = json.loads((tmp_path / "run" / "parts.json").read_text())
    assert [(part["first_step"], part["last_step"]) for part in parts] == [(0, step), (step, 15)]
    assert [any("ckpt_path" in typed for typed in part["overrides"]) for part in parts] == [False, True]
    began = [OmegaConf.load(tmp_path / "run" / name).ckpt_path for name in ("config.yaml", ".hydra/config.yaml")]
    assert began == [None, None]


def test_a_refused_resume_leaves_the_folder_as_it_was(whole):
    left = [path for path in whole.iterdir() if path.is_file()]
    before = {path: path.read_bytes() for path in left}
    start = command(whole, *SMALL, "algo.rollouts.num_epochs=3", "trainer.max_steps=30")
    with pytest.raises(ValueError, match="resume with the same `num_epochs`"):
        start(whole / "checkpoints" / "last.ckpt")
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_validate_and_predict_from_a_checkpoint(whole, tmp_path):
    command(tmp_path / "validation", *SMALL, "mode=validate")(whole / "checkpoints" / "last.ckpt")
    scores = json.loads((tmp_path / "validation" / "validation.json").read_text())
    summary = json.loads((whole / "summary.json").read_text())
    assert scores == {name: v["last"] for name, v in summary["metrics"].items() if name.startswith("val/")}

    command(tmp_path / "prediction", *SMALL, "mode=predict", f"model.path={whole}/export")(None)
    lines = (tmp_path / "prediction" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert {"prompt", "shortest", "completion", "reward", "truncated"} == set(json.loads(lines[0]))
