"""Pipelines on the command line: which overrides reach which stage, what is run again, and what stops the road."""

import json
from pathlib import Path

import pytest

from lit_posttrain.app import pipeline
from lit_posttrain.app.gate import Gate
from tests.composing import CONF

# PPO's place is taken by GRPO where only the road matters.
STAND_IN = ["stage.ppo.algo=grpo", "stage.ppo.tuned=tiny_random_grpo"]


@pytest.fixture
def stages(monkeypatch):
    """Instead of a run: a summary, an export, and the arguments, without where the folder is; a status to end with."""
    started: list[list[str]] = []
    state = {"status": 0, "digest": "a", "scores": {"first": 0.4, "last": 0.6}}

    def fake(arguments, *, lock):
        folder = Path(next(a for a in arguments if a.startswith("hydra.run.dir=")).partition("=")[2])
        started.append([a.replace(str(folder.parent), "PIPELINE") for a in arguments])
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
    return started, state


def record(folder: Path) -> dict:
    return json.loads((folder / "pipeline.json").read_text())


def config(folder: Path) -> dict:
    """The configuration that a stage was started with."""
    return json.loads((folder / "stage.json").read_text())["origin"]["config"]


# What a stage gets.


@pytest.mark.parametrize(
    ("name", "second"),
    [("grpo", ["data=gridworld"]), ("dpo", ["data=gridworld_preferences"])],
)
def test_a_stage_starts_from_the_export_of_the_one_before(command_line, stages, tmp_path, name, second):
    status, _, errors = command_line(f"pipeline={name}", "hydra.run.dir=road")
    assert status == 0, errors
    assert stages[0] == [
        ["algo=sft", "model=tiny_random", "data=gridworld_sft", "hydra.run.dir=PIPELINE/sft"],
        [
            f"algo={name}",
            "model=local",
            "model.path=PIPELINE/sft/export",
            f"tuned=tiny_random_{name}",
            *second,
            f"hydra.run.dir=PIPELINE/{name}",
        ],
    ]
    done = record(tmp_path / "road")
    assert (done["pipeline"], done["status"]) == (name, "done")
    assert [(row["stage"], row["status"], row["reused"], row["steps"]) for row in done["stages"]] == [
        ("sft", "done", False, 3),
        (name, "done", False, 3),
    ]
    assert done["stages"][0]["gate"] == {
        "metric": "val/loss",
        "rule": "at_most",
        "threshold": 2.0,
        "value": 1.0,
        "passed": True,
    }
    assert done["stages"][0]["metrics"]["val/loss"] == {"first": 2.0, "last": 1.0}


def test_the_numbers_tuned_for_tiny_reach_the_stages_and_no_other_model(command_line, stages, tmp_path):
    assert command_line("pipeline=rlhf", *STAND_IN, "hydra.run.dir=road")[0] == 0
    sft, rm, ppo = (config(tmp_path / "road" / name) for name in ("sft", "rm", "ppo"))
    assert (sft["optim"]["lr"], rm["optim"]["lr"], ppo["optim"]["lr"]) == (3e-3, 1.5e-3, 1.5e-4)
    assert ppo["reward"]["_target_"] == "lit_posttrain.rewards.model.load_reward_model"
    data = ["data=preferences", "data.path=pairs.jsonl"]
    others = ["stage.ppo.algo=grpo", "hydra.run.dir=gpt2"]
    assert command_line("pipeline=rlhf", "model=gpt2", *data, *others)[0] == 0
    sft, rm, ppo = (config(tmp_path / "gpt2" / name) for name in ("sft", "rm", "ppo"))
    assert (sft["optim"]["lr"], rm["optim"]["lr"], ppo["optim"]["lr"]) == (2e-5, 5e-6, 1e-6)
    assert sft["model"]["path"] == "gpt2"


def test_preferences_are_demonstrations_pairs_and_prompts(command_line, stages, tmp_path):
    data = ["data=hh_rlhf", "data.path=hh.jsonl", "data.max_length=100"]
    status, _, errors = command_line("pipeline=rlhf", "model=gpt2", *data, *STAND_IN, "hydra.run.dir=road")
    assert status == 0, errors
    of_data = [[a for a in arguments if a.startswith("data")] for arguments in stages[0]]
    held = [f"data.path.preferences.{option}" for option in ("path=hh.jsonl", "max_length=100")]
    assert of_data == [
        ["data=chosen", "data@data.path.preferences=hh_rlhf", *held],
        data,
        ["data=preference_prompts", "data@data.path.preferences=hh_rlhf", *held],
    ]
    sft, ppo = config(tmp_path / "road" / "sft")["data"], config(tmp_path / "road" / "ppo")["data"]
    assert (sft["max_length"], sft["drop_invalid"], sft["path"]["preferences"]["path"]) == (100, True, "hh.jsonl")
    assert (ppo["path"]["max_length"], ppo["path"]["model"]["path"]) == (100, "sft")
    assert ppo["path"]["preferences"]["format"] == "implicit"


def test_options_go_where_they_belong(command_line, stages, tmp_path):
    shared = ["seed=1", "trainer=gpu", "trainer.max_steps=7", "logger=csv", "threads=1"]
    shared.append("+callbacks.timer._target_=lightning.pytorch.callbacks.Timer")
    model = ["model=gpt2", "model.tokenizer=mine", "model/lora=default", "model.lora.r=4", "model.attention=eager"]
    own = ["stage.sft.optim.lr=1e-4", "+stage.grpo.trainer.benchmark=true", "stage.grpo.data=gridworld"]
    own += ["stage.sft.data=instruct", r"stage.sft.data.path='it\'s [one], {two}.jsonl'"]
    status, _, errors = command_line("pipeline=grpo", *shared, *model, *own, "hydra.run.dir=road")
    assert status == 0, errors
    sft, grpo = stages[0]
    everywhere = [*shared, "model/lora=default", "model.lora.r=4", "model.attention=eager"]
    assert [option for option in everywhere if option not in sft or option not in grpo] == []
    assert "model=gpt2" in sft
    assert "model.tokenizer=mine" in sft
    assert not {"model=gpt2", "model.tokenizer=mine", "optim.lr=1e-4"} & set(grpo)
    assert sft[-4:-1] == ["optim.lr=1e-4", "data=instruct", r"data.path='it\'s [one], {two}.jsonl'"]
    assert config(tmp_path / "road" / "sft")["data"]["path"] == "it's [one], {two}.jsonl"
    assert grpo[-3:-1] == ["+trainer.benchmark=true", "data=gridworld"]


# What is run again.


def test_a_stage_that_is_done_is_not_run_again(command_line, stages, tmp_path):
    started, state = stages
    road = ["pipeline=dpo", "hydra.run.dir=road"]
    assert command_line(*road)[0] == 0
    status, printed, _ = command_line(*road, "stage.dpo.algo.beta=0.2", "logger=csv")
    assert (status, [arguments[0] for arguments in started[2:]]) == (0, ["algo=dpo"])
    assert "is done and unchanged; it is not run again" in printed
    assert [row["reused"] for row in record(tmp_path / "road")["stages"]] == [True, False]
    assert (tmp_path / "road" / "dpo.1" / "summary.json").is_file()  # what another configuration made is kept

    state["digest"] = "b"  # other weights of the first stage: what is built on them is made anew
    assert command_line(*road, "stage.dpo.algo.beta=0.2", "stage.sft.optim.lr=1e-4")[0] == 0
    assert [arguments[0] for arguments in started[3:]] == ["algo=sft", "algo=dpo"]


def test_a_stage_that_was_killed_goes_on_from_its_checkpoint(command_line, stages, tmp_path):
    started, state = stages
    state["status"] = -9
    road = ["pipeline=grpo", "hydra.run.dir=road"]
    status, _, errors = command_line(*road)
    assert status == 1
    assert "stage `sft` failed with exit status -9" in errors
    assert f"Then the same command with hydra.run.dir={tmp_path / 'road'} goes on where it stopped" in errors
    assert [row["status"] for row in record(tmp_path / "road")["stages"]] == ["failed", "waiting"]
    state["status"] = 0
    assert command_line(*road)[0] == 0
    assert [arguments[-1] for arguments in started] == [
        "hydra.run.dir=PIPELINE/sft",
        "ckpt_path=PIPELINE/sft/checkpoints/last.ckpt",
        "hydra.run.dir=PIPELINE/grpo",
    ]


def test_what_was_begun_without_a_checkpoint_is_begun_anew(command_line, stages, tmp_path):
    started, state = stages
    state["status"] = 1
    assert command_line("pipeline=grpo", "hydra.run.dir=road")[0] == 1
    sft = tmp_path / "road" / "sft"
    (sft / "checkpoints" / "last.ckpt").unlink()
    (sft / "completions.jsonl").write_text("half")
    state["status"] = 0
    assert command_line("pipeline=grpo", "hydra.run.dir=road")[0] == 0
    assert started[1] == started[0]
    assert not (sft / "completions.jsonl").exists()


# Gates.


def test_a_gate_stops_the_road_and_another_threshold_opens_it(command_line, stages, tmp_path):
    started, _ = stages
    road = ["pipeline=rlhf", *STAND_IN, "hydra.run.dir=road"]
    status, _, errors = command_line(*road, "pipeline.stages.rm.gate.at_least=0.9")
    assert status == 1
    assert "stage `rm` does not pass its gate: val/accuracy is 0.6, at least 0.9 is asked for" in errors
    assert "`stage.rm.trainer.max_steps=...`" in errors
    assert "`pipeline.stages.rm.gate.at_least=...`" in errors
    stopped = record(tmp_path / "road")
    assert (stopped["status"], [row["status"] for row in stopped["stages"]]) == (
        "stopped",
        ["done", "stopped", "waiting"],
    )
    assert stopped["stages"][1]["gate"]["passed"] is False
    assert command_line(*road, "pipeline.stages.rm.gate=null")[0] == 0
    assert [arguments[0] for arguments in started] == ["algo=sft", "algo=reward_model", "algo=ppo"]


@pytest.mark.parametrize(
    ("gate", "scores", "passed"),
    [
        ({"metric": "m", "at_least": 0.5}, (0.9, 0.5), True),
        ({"metric": "m", "at_least": 0.5}, (0.9, 0.4), False),
        ({"metric": "m", "at_most": 0.5}, (0.9, 0.5), True),
        ({"metric": "m", "at_most": 0.5}, (0.1, 0.6), False),
        ({"metric": "m", "at_most": "first"}, (0.5, 0.5), True),
        ({"metric": "m", "at_most": "first"}, (0.5, 0.6), False),
        ({"metric": "m", "at_least": "first"}, (0.5, 0.6), True),
        ({"metric": "m", "at_least": 0.5}, (0.5, float("nan")), False),
    ],
)
def test_a_gate_is_judged_by_the_last_value(gate, scores, passed):
    judged = Gate.of("sft", gate).judge({"m": {"first": scores[0], "last": scores[1], "best": 1.0}})
    assert judged.passed is passed


def test_a_gate_on_what_is_not_measured(command_line, stages):
    status, _, errors = command_line("pipeline=grpo", "pipeline.stages.sft.gate.metric=val/los")
    assert status == 1
    assert "the gate of stage `sft` cannot be judged: it reports no `val/los`. Did you mean `val/loss`?" in errors


# Mistakes, before the first stage.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pipeline=rlfh"], "there is no `pipeline=rlfh`. Did you mean `rlhf`?"),
        (["pipeline=grpo", "stage.grop.optim.lr=1"], "there is no stage `grop`. Did you mean `grpo`?"),
        (["pipeline=grpo", "stage.sft=1"], "`stage.<name>.<option>=<value>`, got `stage.sft=1`"),
        (
            ["pipeline=grpo", "stage.grpo.optim.learning_rate=1"],
            "stage `grpo`: there is no option `optim.learning_rate`",
        ),
        (["pipeline=grpo", "stage.grpo.algo=ppoo"], "stage `grpo`: there is no `algo=ppoo`."),
        (
            ["pipeline=grpo", "stage.grpo.trainer.max_steps=x"],
            "stage `grpo`: `trainer.max_steps` must be a whole number",
        ),
        (
            ["pipeline=grpo", "optim.lr=1e-4"],
            "`optim.lr=1e-4` is a matter of one stage: say which, as `stage.grpo.optim",
        ),
        (["pipeline=grpo", "mode=validate"], "`mode` cannot be given with a pipeline"),
        (["pipeline=grpo", "data.batch_size=4"], "`data.batch_size=4` could be of several stages' data"),
        (
            ["pipeline=grpo", "data=gsm8k"],
            "stage `sft` learns from demonstrations or preferences, and `data=` names pro",
        ),
        (
            ["pipeline=grpo", "data=hh_rlhf"],
            "stage `grpo`: `reward.path` must be given",
        ),
        (["pipeline=grpo", "-m", "seed=0,1"], "a pipeline cannot be swept (`-m`)"),
        (["stage.sft.optim.lr=1"], "`stage.sft.optim.lr=1` is for a stage of a pipeline: add `pipeline=rlhf`"),
        (
            ["pipeline=grpo", "pipeline.stages.sft.gate.atleast=1"],
            "there is no option `pipeline.stages.sft.gate.atleast`",
        ),
        (
            ["pipeline=grpo", "pipeline.stages.sft.gate.at_most=low"],
            "`pipeline.stages.sft.gate.at_most` must be a numb",
        ),
        (["pipeline=grpo", "+pipeline.stages.sft.gate.at_least=1"], "one of `at_least` and `at_most`, got"),
        (["pipeline=rlhf", *STAND_IN, "stage.rm.model.path={ppo}"], "names `{ppo}`, which is no stage before it"),
    ],
)
def test_a_mistake_is_told_before_the_first_stage(command_line, stages, arguments, said):
    status, _, errors = command_line(*arguments)
    assert (status, stages[0]) == (1, [])
    assert said in errors
    assert "Traceback" not in errors


def test_the_command_line_without_a_pipeline_is_as_it_was(command_line):
    status, job, _ = command_line("--cfg", "job")
    assert status == 0
    assert "pipeline" not in job


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "pipeline").glob("*.yaml")))
def test_a_pipeline_is_shown(command_line, name):
    status, job, errors = command_line(f"pipeline={name}", "stage.sft.seed=3", "--cfg", "job")
    assert status == 0, errors
    assert "model.path={sft}" in job
    assert "sft.seed=3" in job
