"""Which overrides of a pipeline's command line reach which stage, and what is said of those that reach none."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from lit_posttrain.app.pipeline.gate import Gate
from lit_posttrain.app.pipeline.plan import gather_stage_options, plan_stages
from tests.composing import CONF

PIPELINES = sorted(path.stem for path in (CONF / "pipeline").glob("*.yaml"))
TARGETS = {
    "hh_rlhf": "lit_posttrain.data.preferences.PreferenceDataModule",
    "gridworld_preferences": "lit_posttrain.data.preferences.PreferenceDataModule",
    "gsm8k": "lit_posttrain.data.prompts.PromptDataModule",
    "gsm8k_sft": "lit_posttrain.data.instruct.InstructDataModule",
    "mine": "my.DataModule",
}


def plan(name: str, *arguments: str, **edits: object) -> dict[str, list[str]]:
    """The overrides of each stage; `edits` are made in the pipeline's YAML, a dot written as two underscores."""
    node = OmegaConf.load(CONF / "pipeline" / f"{name}.yaml").pipeline
    for key, value in edits.items():
        OmegaConf.update(node, key.replace("__", "."), value)
    gathered = gather_stage_options([f"pipeline={name}", *arguments])
    given = [argument for argument in gathered if "pipeline.given" not in argument]
    for argument in set(gathered) - set(given):
        node.given = OverridesParser.create().parse_override(argument).value()
    chosen = dict(argument.split("=", 1) for argument in given)
    stages = plan_stages(
        node, given, model=chosen.get("model", "tiny_random"), data_target=TARGETS.get(chosen.get("data", ""), "")
    )
    return {stage.name: stage.overrides for stage in stages}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_first_stage_starts_from_the_model_and_the_others_from_an_export(name):
    first, *others = plan(name, "model=gpt2").values()
    assert "model=gpt2" in first
    for overrides in others:
        assert {"model=local", "model.path={sft}"} <= set(overrides)
        (algo,) = (override.removeprefix("algo=") for override in overrides if override.startswith("algo="))
        assert f"recipe=gpt2_{algo}" in overrides  # what suits the model suits what came of it


def test_ppo_goes_by_the_reward_model():
    assert {"reward=model", "reward.path={rm}"} <= set(plan("rlhf")["ppo"])


def test_preferences_are_demonstrations_pairs_and_prompts():
    data = ["data=hh_rlhf", "data.path=hh.jsonl", "+data.max_length=100"]
    stages = plan("rlhf", "model=gpt2", *data)
    assert {name: [o for o in overrides if "data" in o] for name, overrides in stages.items()} == {
        "sft": [*data, "data.view=chosen"],
        "rm": data,
        "ppo": [*data, "data.view=prompts"],
    }


def test_shared_options_reach_every_stage_in_their_order():
    shared = ["seed=1", "trainer=gpu", "trainer.max_steps=7", "logger=csv", "threads=1", "val_every_steps=null"]
    shared.append("+callbacks.timer._target_=lightning.pytorch.callbacks.Timer")
    for overrides in plan("rlhf", *shared).values():
        assert [override for override in overrides if override in shared] == shared


def test_where_weights_come_from_reaches_the_first_stage_and_how_they_are_used_all():
    first = ["model.path=mine", "model.random_init=true", "model.seed=1", "model.tokenizer=t", "model.lora.adapter=a"]
    everywhere = ["model/lora=default", "model.lora.r=4", "model.attention=eager"]
    sft, grpo = plan("grpo", "model=local", *first, *everywhere).values()
    assert {*first, *everywhere} <= set(sft)
    assert set(everywhere) <= set(grpo)
    assert not set(first) & set(grpo)


def test_a_model_of_one_stage_takes_the_place_of_the_pipeline_s():
    stages = plan("rlhf", "stage.rm.model=gpt2", "stage.rm.model.seed=3")
    assert [o for o in stages["rm"] if o.startswith("model")] == ["model=gpt2", "model.seed=3"]
    assert [o for o in stages["ppo"] if o.startswith("model")] == ["model=local", "model.path={sft}"]


def test_an_option_of_one_stage_comes_last_and_its_data_take_the_place_of_the_pipeline_s():
    path = r"data.path='it\'s [one], {two}\\.jsonl'"
    own = ["stage.sft.optim.lr=1e-4", "+stage.grpo.trainer.benchmark=true", "stage.grpo.data=gsm8k"]
    sft, grpo = plan("grpo", "data=gsm8k_sft", "seed=1", *own, f"stage.sft.{path}").values()
    assert sft[-4:] == ["seed=1", "data=gsm8k_sft", "optim.lr=1e-4", path]
    assert grpo[-3:] == ["seed=1", "+trainer.benchmark=true", "data=gsm8k"]
    assert "data=gridworld" not in grpo


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stage.grop.optim.lr=1"], "there is no stage `grop`. Did you mean `grpo`?"),
        (["stage.sft=1"], "`stage.<name>.<option>=<value>`, got `stage.sft=1`"),
        (["optim.lr=1e-4"], "`optim.lr=1e-4` is a matter of one stage: say which, as `stage.grpo.optim.lr=1e-4`."),
        (["mode=validate"], "`mode` cannot be given with a pipeline"),
        (["ckpt_path=a.ckpt"], "`ckpt_path` cannot be given with a pipeline"),
        (["data.batch_size=4"], "`data.batch_size=4` could be of several stages' data"),
        (["data=gsm8k"], "stage `sft` learns from demonstrations or preferences, and `data=` names prompts: give it"),
        (["data=gsm8k_sft"], "stage `grpo` learns from prompts or preferences, and `data=` names demonstrations"),
        (["data=mine"], "and `data=` names data of its own kind"),
        (["stage.sft.model.path={grpo}"], "names `{grpo}`, which is no stage before it. There are: none."),
        (["stage.grpo.mode=validate"], "`stage.grpo.mode` cannot be given: a pipeline trains"),
        (["stage.grpo.run_dir=x"], "`stage.grpo.run_dir` cannot be given: the folder of a stage is in that of its"),
        (["stage.grpo.hydra.run.dir=x"], "`stage.grpo.hydra` cannot be given: the folder of a stage"),
        (["stage.grpo.pipeline=rlhf"], "`stage.grpo.pipeline` cannot be given: a stage is one run"),
        (["stage.grpo.gate=val/loss"], "`stage.grpo.gate` cannot be given: gates are options of the pipeline"),
        (["-m", "seed=0,1"], "a pipeline cannot be swept (`-m`)"),
    ],
)
def test_a_mistake_on_the_command_line(arguments, said):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        plan("grpo", *arguments)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"stages__grpo__overrides": ["model.path={sfd}"]}, "names `{sfd}`, which is no stage before it. Did you mean"),
        ({"stages__sft__data": {"preferences": "chosn"}}, "as chosen, prompts, got `chosn`. Did you mean `chosen`?"),
        ({"stages__sft__gate__atleast": 1}, "there is no option `pipeline.stages.sft.gate.atleast`. Did you mean"),
        ({"stages__sft__gate__at_most": "low"}, "`pipeline.stages.sft.gate.at_most` must be a number or `first`"),
        ({"stages__sft__gate__at_most": float("nan")}, "must be a number or `first`, got `nan`"),
        ({"stages": None}, "`pipeline.stages` must have a name and `overrides` for each stage, got None"),
        ({"stages__sft__gate__at_least": 1}, "one of `at_least` and `at_most`, got"),
    ],
)
def test_a_mistake_in_the_yaml(edits, said):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        plan("grpo", "data=hh_rlhf", **edits)
    assert said in str(raised.value)


def test_a_stage_s_option_without_a_pipeline():
    with pytest.raises(ValueError, match=r"`stage.sft.optim.lr=1` is for a stage of a pipeline: add `pipeline=rlhf`"):
        gather_stage_options(["stage.sft.optim.lr=1"])


@pytest.mark.parametrize("gate", [[1], "val/loss", 3])
def test_a_gate_is_a_mapping(gate):
    with pytest.raises(ValueError, match=r"`pipeline\.stages\.sft\.gate` must have `metric` and .* or be null, got"):
        Gate.of("sft", gate)


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
