"""What a module was built with is written down as plain values, and builds it again."""

import json

import pytest
import torch
from lightning import Trainer

from lit_posttrain import (
    DPO,
    GRPO,
    PPO,
    RLOO,
    SFT,
    BuiltModel,
    Critic,
    InstructDataModule,
    PreferenceDataModule,
    Pretrained,
    PromptDataModule,
    ReinforcePlusPlus,
    RewardModel,
    Rollouts,
    Sampling,
    Validation,
)
from lit_posttrain.models.weights import tensors_sha256
from tests.integration.conftest import PROMPTS, counts_even_words
from tests.integration.test_dpo import PAIRS
from tests.integration.test_sft import ROWS


def short(completions, **columns):
    return [float(len(text) < 9) for text in completions]


JUDGED = {
    "sampling": Sampling(max_new_tokens=5, temperature=0.8, top_k=9),
    "validation": Validation(num_samples=3, batch_size=2),
}
ONLINE = {**JUDGED, "group_size": 3, "rollouts": Rollouts(num_minibatches=2, batch_size=6, seed=4)}
# Options that are all unlike their defaults.
SETTINGS = {
    GRPO: {**ONLINE, "kl_coef": 0.05, "scale": "none", "max_resample_batches": 2},
    PPO: {**ONLINE, "critic": Critic("shared", lr=0.01, coef=0.5, clip=None, warmup_steps=1), "target_kl": 0.7},
    RLOO: {**ONLINE, "kl_coef": 0.2},
    ReinforcePlusPlus: {**ONLINE, "baseline": "group"},
    SFT: {**JUDGED, "label_smoothing": 0.1},
    DPO: {**JUDGED, "loss": "ipo", "beta": 0.3, "length_normalized": False},
    RewardModel: {"centering": 0.02, "normalization": "standardize"},
}
DATA = {
    SFT: lambda: InstructDataModule(ROWS, batch_size=4),
    **dict.fromkeys((DPO, RewardModel), lambda: PreferenceDataModule(PAIRS, batch_size=4)),
}
each_algorithm = pytest.mark.parametrize("algorithm", SETTINGS, ids=lambda algorithm: algorithm.__name__)


@pytest.fixture
def build(make_model, word_tokenizer):
    """The arguments that no checkpoint holds; the model is another one for each seed."""

    def arguments(algorithm, *, seed=0):
        model = BuiltModel(make_model(scale=2.0, seed=seed), tokenizer=word_tokenizer)
        rewards = {"rewards": counts_even_words} if "group_size" in SETTINGS[algorithm] else {}
        return {"model" if algorithm is RewardModel else "policy": model, **rewards}

    return arguments


def is_plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(type(name) is str and is_plain(each) for name, each in value.items())
    return value is None or type(value) in (bool, int, float, str)


@each_algorithm
def test_they_are_plain_mappings(build, algorithm):
    module = algorithm(**build(algorithm), **SETTINGS[algorithm])
    hparams = dict(module.hparams)
    assert is_plain(hparams)
    assert json.loads(json.dumps(hparams)) == hparams
    assert not {"policy", "model", "rewards", "optimizer", "scheduler", "source"} & hparams.keys()
    for name, value in SETTINGS[algorithm].items():
        if is_plain(value):
            assert hparams[name] == value
        else:
            assert {option: getattr(value, option) for option in hparams[name]} == hparams[name]
            assert len(hparams[name]) >= 2


@each_algorithm
def test_they_build_the_module_again(build, algorithm):
    module = algorithm(**build(algorithm), **SETTINGS[algorithm])
    again = algorithm(**build(algorithm), **module.hparams)
    assert dict(again.hparams) == dict(module.hparams)
    for name in ("sampling", "rollouts", "critic"):
        assert getattr(again, name, None) == getattr(module, name, None)


@each_algorithm
def test_a_checkpoint_gives_back_the_module(build, algorithm, tmp_path):
    module = algorithm(**build(algorithm), **SETTINGS[algorithm])
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=DATA.get(algorithm, lambda: PromptDataModule(PROMPTS, batch_size=4))())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    stored = torch.load(tmp_path / "run.ckpt", weights_only=True)["hyper_parameters"]
    assert is_plain(dict(stored))
    loaded = algorithm.load_from_checkpoint(tmp_path / "run.ckpt", **build(algorithm, seed=5), weights_only=True)
    assert type(loaded) is algorithm
    assert dict(loaded.hparams) == dict(module.hparams) == dict(stored)
    assert tensors_sha256(loaded.state_dict()) == tensors_sha256(module.state_dict())
    for name in ("sampling", "rollouts", "critic", "group_size"):
        assert getattr(loaded, name, None) == getattr(module, name, None)


@pytest.mark.parametrize("metrics", [{"short": short}, {"short": f"{__name__}:short"}], ids=["function", "name"])
def test_metrics_are_written_down_where_they_have_names(build, metrics):
    """A function is no plain value; what a file and a name say of it is one."""
    module = SFT(**build(SFT), validation=Validation(metrics=metrics, num_samples=3))
    assert is_plain(dict(module.hparams))
    again = SFT(**build(SFT), **module.hparams)
    assert dict(again.hparams) == dict(module.hparams)
    assert module.hparams["validation"].get("metrics") == (metrics if is_plain(metrics) else None)


@pytest.mark.parametrize("policy", ["name", "pretrained"])
@pytest.mark.parametrize("name", ["grpo", "ppo", "sft"])
def test_lightning_cli_writes_them_down_and_reads_them_again(name, policy, tmp_path, make_model, word_tokenizer):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    folder = str(tmp_path / "model")
    make_model().save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    algorithm, data = {
        "grpo": (GRPO, PromptDataModule),
        "ppo": (PPO, PromptDataModule),
        "sft": (SFT, InstructDataModule),
    }[name]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if name == "sft" else PROMPTS)))
    online = {
        "rewards": {"class_path": "lit_posttrain.RewardFunctions", "init_args": {"functions": f"{__name__}.short"}},
        "group_size": 3,
        "rollouts": {"class_path": "lit_posttrain.Rollouts", "init_args": {"num_minibatches": 2, "seed": 4}},
    }
    critic = {"class_path": "lit_posttrain.Critic", "init_args": {"start": "shared"}}
    pretrained = {"class_path": "lit_posttrain.Pretrained", "init_args": {"path": folder}}
    model = {
        "policy": folder if policy == "name" else pretrained,
        "sampling": {"class_path": "lit_posttrain.Sampling", "init_args": {"max_new_tokens": 5}},
        **({} if name == "sft" else online),
        **({"critic": critic} if name == "ppo" else {}),
    }
    trainer = {
        "accelerator": "cpu",
        "max_steps": 1,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "logger": False,
        "default_root_dir": str(tmp_path),
    }

    def parse(config):
        return LightningCLI(algorithm, data, run=False, args=config, save_config_callback=None)

    first = parse({"model": model, "data": {"path": str(rows), "batch_size": 4}, "trainer": trainer})
    assert isinstance(first.model, algorithm)
    assert first.model.evaluator.sampling == Sampling(max_new_tokens=5)
    written = tmp_path / "config.yaml"
    first.parser.save(first.config, written, skip_none=False)
    again = parse(["--config", str(written)])
    assert dict(again.model.hparams) == dict(first.model.hparams)
    again.trainer.fit(again.model, again.datamodule)
    assert again.trainer.global_step == 1


def test_a_name_and_a_pretrained_are_no_hyperparameters(tmp_path, make_model):
    make_model().save_pretrained(tmp_path)
    for policy in (str(tmp_path), Pretrained(str(tmp_path))):
        assert "policy" not in SFT(policy).hparams
