"""Pipelines on the command line, without their runs: what a stage is started with, is run again, and stops the road."""

import json
from pathlib import Path

import pytest

from lit_posttrain.app.pipeline import preflight
from lit_posttrain.app.pipeline import run as pipeline
from tests.composing import CONF

HERE = "PIPELINE"


@pytest.fixture
def stages(monkeypatch):
    """Instead of a run: a summary, an export, and the arguments, without where the folder is; a status to end with.

    Instead of looking over a stage its name is noted.
    """
    started: list[list[str]] = []
    state = {"status": 0, "digest": "a", "scores": {"first": 0.4, "last": 0.6}, "looked_over": []}

    def fake(arguments, *, lock):
        folder = Path(next(a for a in arguments if a.startswith("hydra.run.dir=")).partition("=")[2])
        started.append([a.replace(str(folder.parent), HERE) for a in arguments])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        if state["status"] != 0:
            return state["status"]
        (folder / "export").mkdir(exist_ok=True)
        metrics = dict.fromkeys(("val/accuracy", "val/reward"), state["scores"])
        metrics["val/loss"] = {"first": 2.0, "last": 1.0}
        digest = f"{folder.name} {state['digest']}"
        summary = {"steps": 3, "wall_s": 1.0, "weights_sha256": digest, "metrics": metrics}
        (folder / "summary.json").write_text(json.dumps(summary))
        return 0

    monkeypatch.setattr(pipeline, "run_stage", fake)
    monkeypatch.setattr(preflight, "look_over", lambda cfg, outline: state["looked_over"].append(outline.name))
    return started, state


def record(folder: Path) -> dict:
    return json.loads((folder / "pipeline.json").read_text())


def config(folder: Path) -> dict:
    """The configuration that a stage was started with."""
    return json.loads((folder / "stage.json").read_text())["origin"]["config"]


def test_rlhf_on_the_embedded_task(command_line, stages, tmp_path):
    status, printed, errors = command_line("pipeline=rlhf", "hydra.run.dir=road")
    assert status == 0, errors
    from_sft = ["model=local", f"model.path={HERE}/sft/export"]
    pairs = "data=gridworld_preferences"
    rewarded = [
        "data=gridworld",
        "reward=model",
        f"reward.path={HERE}/rm/export",
        f"algo.critic.start={HERE}/rm/export",
    ]
    assert [arguments[:-1] for arguments in stages[0]] == [
        ["algo=sft", "model=tiny_random", "data=gridworld_sft", "gate=val/loss"],
        ["algo=reward_model", *from_sft, "recipe=tiny_random_reward_model", pairs, "gate=val/accuracy"],
        ["algo=ppo", *from_sft, "recipe=tiny_random_ppo", *rewarded, "gate=val/reward"],
    ]
    names = ("sft", "rm", "ppo")
    assert [arguments[-1] for arguments in stages[0]] == [f"hydra.run.dir={HERE}/{name}" for name in names]
    done = record(tmp_path / "road")
    assert (done["pipeline"], done["status"]) == ("rlhf", "done")
    assert [(row["stage"], row["status"], row["reused"], row["steps"]) for row in done["stages"]] == [
        (name, "done", False, 3) for name in names
    ]
    gate = {"metric": "val/loss", "rule": "at_most", "threshold": 2.0, "value": 1.0, "passed": True}
    assert done["stages"][0]["gate"] == gate
    assert done["stages"][0]["metrics"]["val/loss"] == {"first": 2.0, "last": 1.0}
    assert "val/loss 1.000 <= 2.000" in printed

    sft, rm, ppo = (config(tmp_path / "road" / name) for name in ("sft", "rm", "ppo"))
    rates = [recipe_lr(name) for name in ("random_sft", "random_reward_model", "random_ppo")]
    assert [each["optim"]["lr"] for each in (sft, rm, ppo)] == rates
    assert "gate" not in sft  # with another one the weights are the same
    # the learned reward is what PPO is given, and the true scores stand beside it
    assert ppo["reward"]["_target_"] == "lit_posttrain.rewards.model.load_reward_model"
    assert set(ppo["data"]["scores"]) == {"success", "optimal"}


def recipe_lr(name: str) -> float:
    """What conf/recipe says for tiny or, after `random_`, for tiny_random."""
    lines = (CONF / "recipe" / f"tiny_{name}.yaml").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("  lr: ")).split()[1])


def test_rlhf_on_preferences_of_another_model(command_line, stages, tmp_path):
    data = ["data=hh_rlhf", "data.path=hh.jsonl", "data.max_length=100", "data.batch_size=8"]
    status, _, errors = command_line("pipeline=rlhf", "model=gpt2", *data, "hydra.run.dir=road")
    assert status == 0, errors
    sft, rm, ppo = (config(tmp_path / "road" / name) for name in ("sft", "rm", "ppo"))
    assert sft["model"]["path"] == "gpt2"
    assert [each["optim"]["lr"] for each in (sft, rm, ppo)] == [2e-5, 5e-6, 3e-6]  # of conf/optim
    assert [each["data"]["batch_size"] for each in (sft, rm, ppo)] == [8, 8, 8]
    sft, ppo = sft["data"], ppo["data"]
    assert (sft["view"], sft["max_length"], sft["drop_invalid"], sft["path"]) == ("chosen", 100, True, "hh.jsonl")
    assert (ppo["view"], ppo["max_length"], ppo["format"], ppo["path"]) == ("prompts", 100, "implicit", "hh.jsonl")


def test_killed_stopped_by_a_gate_done_and_changed(command_line, stages, tmp_path):
    started, state = stages
    road = ["pipeline=grpo", "hydra.run.dir=road"]

    def statuses():
        return [(row["status"], row["reused"]) for row in record(tmp_path / "road")["stages"]]

    state["status"] = -9
    status, _, errors = command_line(*road)
    assert (status, statuses()) == (1, [("failed", False), ("waiting", False)])
    assert "stage `sft` failed with exit status -9" in errors
    assert f"Then the same command with hydra.run.dir={tmp_path / 'road'} goes on where it stopped" in errors

    state["status"] = 0
    status, _, errors = command_line(*road, "pipeline.stages.sft.gate.at_most=0.9")
    assert (status, statuses()) == (1, [("stopped", False), ("waiting", False)])
    assert started[-1][-1] == f"ckpt_path={HERE}/sft/checkpoints/last.ckpt"
    assert "stage `sft` does not pass its gate: val/loss is 1, at most 0.9 is asked for" in errors
    assert "`stage.sft.trainer.max_steps=...`" in errors
    assert "`pipeline.stages.sft.gate.at_most=...`" in errors

    status, _, errors = command_line(*road, "pipeline.stages.sft.gate.metric=val/los")
    assert (status, statuses()) == (1, [("stopped", True), ("waiting", False)])
    assert "the gate of stage `sft` cannot be judged: it reports no `val/los`. Did you mean `val/loss`?" in errors

    state["looked_over"].clear()
    status, printed, _ = command_line(*road, "pipeline.stages.sft.gate=null", "logger=csv")
    assert (status, statuses()) == (0, [("done", True), ("done", False)])
    assert state["looked_over"] == ["grpo"]
    assert "is done and unchanged; it is not run again" in printed
    assert [arguments[0] for arguments in started] == ["algo=sft", "algo=sft", "algo=grpo"]

    state["digest"] = "b"  # with other weights of the first stage what is built on them is made anew
    state["looked_over"].clear()
    status, printed, _ = command_line(*road, "stage.sft.optim.lr=1e-4")
    assert (status, statuses()) == (0, [("done", False), ("done", False)])
    assert state["looked_over"] == ["sft", "grpo"]
    assert f"optim.lr: {recipe_lr('random_sft')} -> 0.0001" in printed
    assert "sft: other weights" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pipeline=rlfh"], "there is no `pipeline=rlfh`. Did you mean `rlhf`?"),
        (["pipeline=grpo", "stage.grpo.algo=ppoo"], "stage `grpo`: there is no `algo=ppoo`."),
        (
            ["pipeline=rlhf", "data=preferences"],
            "stage `sft`: `data.path` must be given: add `data.path=...` to the command line",
        ),
        (["pipeline=grpo", "data=hh_rlhf"], "stage `grpo`: `reward.path` must be given"),
        (["pipeline=grpo", "pipeline.stages.sft=null"], "`pipeline.stages.sft` must have `overrides`, a list, got"),
    ],
)
def test_a_mistake_is_told_before_the_first_stage(command_line, stages, tmp_path, arguments, said):
    status, _, errors = command_line(*arguments)
    assert (status, stages[0]) == (1, [])
    assert said in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content", "owner"),
    [("pipeline.json", '{"pipeline": "rlhf"}', "`pipeline=rlhf`"), ("config.yaml", "", "a single run")],
)
def test_a_folder_is_for_one_pipeline(command_line, stages, tmp_path, file, content, owner):
    (tmp_path / "road").mkdir()
    (tmp_path / "road" / file).write_text(content)
    status, _, errors = command_line("pipeline=grpo", "hydra.run.dir=road")
    assert (status, stages[0]) == (1, [])
    assert f"{tmp_path / 'road'} is the folder of {owner}: give `pipeline=grpo` a `hydra.run.dir` of its own" in errors


def test_a_pipeline_is_shown(command_line):
    status, job, errors = command_line("pipeline=rlhf", "stage.sft.seed=3", "--cfg", "job")
    assert status == 0, errors
    assert "model.path={sft}" in job
    assert "sft.seed=3" in job
