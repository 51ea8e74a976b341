"""What would end a later stage of a pipeline is said before the first one runs, without loading weights."""

import json

import pytest
from transformers import AutoConfig

from lit_posttrain import GRPO, RewardModel
from lit_posttrain.app.pipeline import run as pipeline
from lit_posttrain.models.loading import Pretrained
from lit_posttrain.models.networks.reward import check_reward_model

FEW = [
    "stage.sft.data.path.num_demonstrations=8",
    "stage.rm.data.path.num_pairs=8",
    "stage.ppo.data.path.num_prompts=8",
    *(f"stage.{name}.data.path.num_validation=2" for name in ("sft", "rm", "ppo")),
]

LONGER = pytest.mark.learn


@pytest.fixture
def started(monkeypatch):
    """The stages that were begun; each fails at once."""
    begun = []
    monkeypatch.setattr(pipeline, "run_stage", lambda arguments, *, lock: begun.append(arguments[0]) or 3)
    return begun


def test_what_can_run_is_run(command_line, started, tmp_path):
    status, printed, errors = command_line("pipeline=rlhf", *FEW, "hydra.run.dir=road")
    assert (status, started) == (1, ["algo=sft"])
    assert "stage `sft` failed with exit status 3" in errors
    assert [f"looking over stage {name}" in printed for name in ("sft", "rm", "ppo")] == [True] * 3
    assert not (tmp_path / "road" / "rm").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("ppo.algo.critic.clip=0", "stage `ppo`: `critic.clip` must be > 0"),
        ("ppo.algo.critic.start=./foo", "stage `ppo`: `critic` must be policy, shared or a reward model, got `./foo`"),
        ("ppo.algo.critic.start={sft}", "stage `ppo`: `{sft}` holds GPT2LMHeadModel, which is no reward model"),
        (
            "ppo.algo.critic.start=/no/where",
            "there is no folder `/no/where` (looked at /no/where); check `critic`",
        ),
        pytest.param(
            "ppo.reward.path=/no/where",
            "there is no folder `/no/where` (looked at /no/where); check `path`. On the command line: `stage.ppo.",
            marks=LONGER,
        ),
        ("ppo.algo.sampling.max_new_tokens=4000", "`sampling.max_new_tokens` is 4000, but the model's context is 128"),
        ("ppo.optim.betas=3", "stage `ppo`: `optim.betas` must be a list of numbers from 0 to below 1"),
        pytest.param(
            "ppo.algo.kl_target=abc", "stage `ppo`: `algo.kl_target` must be a number, got `abc`", marks=LONGER
        ),
        (
            "ppo.scheduler=constant",
            "stage `ppo`: `scheduler=constant` has no effect: `recipe=tiny_random_ppo` puts transformers.",
        ),
        ("ppo.optim=null", "stage `ppo`: `optim=null`: a group needs one of its options"),
        (
            "rm.model.lora=default",
            "`model.lora` must have options of its own, got `default`: `model/lora=default` chooses them.",
        ),
        pytest.param("ppo.reward.batch_size=0", "stage `ppo`: `batch_size` must be >= 1, got 0", marks=LONGER),
        ("ppo.trainer.precision=foo", "stage `ppo`: `trainer.precision` must be one of 64, 32, 16, "),
        ("ppo.data.path.width=0", "stage `ppo`: `width` must be"),
        pytest.param(
            "rm.data.path.shares.leap=-1",
            "stage `rm`: `shares` must be finite and >= 0, got -1 for `leap`",
            marks=LONGER,
        ),
        ("rm.data.max_length=3", "stage `rm`: the rows given: 8 of 8 rows would be left out"),
        pytest.param("rm.model.dtype=float16", "stage `rm`: `model.dtype` must be one of", marks=LONGER),
        pytest.param("sft.algo.validation.num_samples=-1", "stage `sft`: `val_samples` must be", marks=LONGER),
    ],
)
def test_a_wrong_value_of_a_later_stage_ends_the_pipeline_before_the_first(command_line, started, option, said):
    status, _, errors = command_line("pipeline=rlhf", *FEW, f"stage.{option}")
    assert (status, started) == (1, [])
    assert said in errors
    assert "Error in call to target" not in errors


def test_a_gate_on_rows_that_are_not_there(command_line, started, tmp_path):
    starts = ["a1", "a2", "b1", "b2", "a3", "b3"]
    pairs = [{"prompt": f"grid 3 3 walls start {c} goal c3 path", "chosen": " c3", "rejected": " a2"} for c in starts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    own = ["pipeline=rlhf", "data=preferences", "data.path=pairs.jsonl"]
    status, _, errors = command_line(*own)
    assert (status, started) == (1, [])
    assert "stage `sft`: its gate asks for `val/loss`, and its data have nothing to validate on. Hold rows" in errors
    status, _, errors = command_line(*own, "pipeline.stages.sft.gate=null", "pipeline.stages.rm.gate=null")
    assert (status, started) == (1, [])
    assert "stage `ppo`: its gate asks for `val/reward`" in errors
    _, _, errors = command_line(*own, "data.val_size=2")
    assert started == ["algo=sft"], errors


def test_a_model_of_which_no_reward_model_can_be_made(command_line, started, tmp_path, word_tokenizer):
    config = {"model_type": "blenderbot-small", "is_decoder": True, "vocab_size": 99}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    word_tokenizer.save_pretrained(tmp_path / "model")
    status, _, errors = command_line("pipeline=rlhf", "model=local", "model.path=model", *FEW)
    assert (status, started) == (1, [])
    assert "stage `rm`: transformers has no sequence classifier of the architecture `blenderbot-small`" in errors


@pytest.mark.parametrize("kind", [GRPO, RewardModel])
def test_an_outline_is_an_export_without_weights(tmp_path, make_model, word_tokenizer, kind):
    make_model("gpt2").save_pretrained(tmp_path / "model")
    word_tokenizer.save_pretrained(tmp_path / "model")
    rewards = [lambda completions: [0.0]] if kind is GRPO else []
    module = kind(str(tmp_path / "model"), *rewards)
    module.save_outline(tmp_path / "outline")
    assert not list((tmp_path / "outline").glob("*.safetensors"))
    module.configure_model()
    module.save_pretrained(tmp_path / "export")

    outline, export = (AutoConfig.from_pretrained(tmp_path / name) for name in ("outline", "export"))
    assert (outline.architectures, outline.num_labels) == (export.architectures, export.num_labels)
    tokenizers = [Pretrained(str(tmp_path / name)).load_tokenizer().get_vocab() for name in ("outline", "export")]
    assert tokenizers[0] == tokenizers[1]
    if kind is RewardModel:
        check_reward_model(str(tmp_path / "outline"))
    else:
        Pretrained(str(tmp_path / "outline")).check()
