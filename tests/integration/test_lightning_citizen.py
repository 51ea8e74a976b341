"""In somebody else's Lightning project, without Hydra: stock callbacks and Trainer flags do what their pages say."""

import json

import pytest
import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain import GRPO, BuiltModel, RewardFunctions, Rollouts, Sampling, Validation
from tests.integration.conftest import PROMPTS


def shortness(prompts, completions, **kwargs):
    """Somebody's reward, in the ecosystem's signature."""
    return [-float(len(text)) for text in completions]


class MyPrompts(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(PROMPTS, batch_size=4, shuffle=True, collate_fn=list)

    def val_dataloader(self):
        return DataLoader(PROMPTS[:5], batch_size=2, collate_fn=list)


@pytest.fixture
def grpo(make_model, word_tokenizer):
    def build(rewards=shortness, **settings):
        settings = {"group_size": 4, "sampling": Sampling(max_new_tokens=8), **settings}
        return GRPO(BuiltModel(make_model("gpt2", scale=2.0), tokenizer=word_tokenizer), rewards, **settings)

    return build


def quiet(tmp_path, **settings):
    return Trainer(
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **{"logger": False, **settings},
    )


def test_ten_lines(grpo, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/reward", mode="max")
    trainer = quiet(
        tmp_path,
        max_steps=5,
        gradient_clip_val=1.0,
        accumulate_grad_batches=2,
        log_every_n_steps=1,
        logger=CSVLogger(tmp_path),
        callbacks=[checkpoint, LearningRateMonitor(), EarlyStopping("val/reward", mode="max")],
    )
    metrics = {"short": lambda completions, **columns: [float(len(text) < 10) for text in completions]}
    module = grpo(validation=Validation(metrics=metrics))
    before = {name: tensor.clone() for name, tensor in module.source.load().state_dict().items()}
    trainer.fit(module, MyPrompts())
    assert trainer.global_step == 5
    assert torch.isfinite(trainer.callback_metrics["val/reward"])
    assert 0 <= trainer.callback_metrics["val/short"] <= 1
    assert checkpoint.best_model_path
    after = module.language_model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name, _ in module.language_model.named_parameters())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-6 * (0.1 + 0.9 * 5 / 10))

    module.save_pretrained(tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, after[name])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "export")) == 40


def test_clipping_acts_on_the_gradient_of_the_whole_step(grpo, tmp_path):
    norms = []

    class Norm(ModelCheckpoint):
        def on_before_zero_grad(self, trainer, module, optimizer):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients).item())

    trainer = quiet(
        tmp_path, max_steps=2, gradient_clip_val=0.01, accumulate_grad_batches=3, callbacks=[Norm(tmp_path)]
    )
    trainer.fit(grpo(optimizer=lambda p: torch.optim.SGD(p, lr=1e-3)), MyPrompts())
    assert trainer.callback_metrics["grad_norm"] > 0.01
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        {"fast_dev_run": 2},
        {"max_epochs": 2},
        {"max_epochs": 1, "limit_train_batches": 2},
        {"max_steps": 3, "val_check_interval": 1, "limit_val_batches": 1},
        {"max_steps": 3, "overfit_batches": 1},
        {"max_steps": 2, "precision": "bf16-mixed"},
        {"max_steps": 2, "profiler": "simple", "detect_anomaly": True},
    ],
    ids=lambda flags: "-".join(flags),
)
def test_trainer_flags(grpo, tmp_path, flags):
    trainer = quiet(tmp_path, enable_checkpointing=False, **flags)
    trainer.fit(grpo(), MyPrompts())
    steps = {"fast_dev_run": 2, "limit_train_batches": 2, "max_epochs": 6}
    expected = next((count for flag, count in steps.items() if flag in flags), flags.get("max_steps"))
    assert trainer.global_step == (2 if "limit_train_batches" in flags else expected)


def test_a_second_fit_and_another_trainer(grpo, tmp_path):
    module = grpo()
    trainer = quiet(tmp_path, max_steps=2, enable_checkpointing=False)
    trainer.fit(module, MyPrompts())
    assert "process_dataloader" not in vars(trainer.strategy)
    again = quiet(tmp_path, max_steps=3, enable_checkpointing=False)
    again.fit(module, train_dataloaders=DataLoader(PROMPTS, batch_size=4, collate_fn=list))
    assert again.global_step == 3


def test_validation_repeats_itself(grpo, tmp_path):
    scores = {"short": lambda completions, **columns: [float(len(text) < 12) for text in completions]}
    judged = Validation(metrics=scores)
    first = quiet(tmp_path).validate(grpo(validation=judged), MyPrompts(), verbose=False)
    trainer = quiet(tmp_path)
    trainer.validate(grpo(validation=judged, rollouts=Rollouts(seed=7, batch_size=3)), MyPrompts(), verbose=False)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert set(metrics) == {"val/reward", "val/short", "val/short_sampled", "val/pass_at_k"}
    again = quiet(tmp_path)
    again.validate(
        grpo(validation=judged),
        DataLoader(PROMPTS[:5], batch_size=5, collate_fn=list),
        verbose=False,
    )
    assert {name: value.item() for name, value in again.callback_metrics.items()} == pytest.approx(metrics)
    assert first is not None


def test_predict_gives_rows_with_completions(grpo, tmp_path):
    rows = [
        row
        for batch in quiet(tmp_path).predict(grpo(), DataLoader(PROMPTS[:5], batch_size=2, collate_fn=list))
        for row in batch
    ]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROMPTS[:5]]
    assert all(row["reward"] == -float(len(row["completion"])) for row in rows)
    json.dumps(rows)


def test_rewards_see_columns_ids_and_truncation(grpo, tmp_path):
    seen = []

    def spy(prompts, completions, wanted, completion_ids, truncated):
        seen.append((prompts, completions, wanted, completion_ids, truncated))
        return [None] * len(completions)

    trainer = quiet(tmp_path, max_steps=1, enable_checkpointing=False)
    module = grpo(RewardFunctions([spy, shortness], weights=[1.0, 0.5]))
    trainer.fit(module, MyPrompts())
    prompts, completions, wanted, ids, truncated = next(
        call for call in seen if len(call[0]) == 16
    )  # the others are validation's
    assert len(prompts) == 16
    assert prompts[0] == prompts[3] != prompts[4]
    assert wanted[0] == next(row["wanted"] for row in PROMPTS if row["prompt"] == prompts[0])
    assert all(cut == (row[-1] != 1) for cut, row in zip(truncated, ids, strict=True))
    assert [len(row) for row in ids] == module.last_rollout.scored.completions.tokens.completion_mask.sum(1).tolist()
    assert module.last_rollout.scored.rewards.tolist() == pytest.approx([-0.5 * len(text) for text in completions])


def test_chat_prompts_are_answered_by_messages(grpo, tmp_path):
    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in PROMPTS[:4]]

    def reward(completions, **columns):
        return [-float(len(messages[0]["content"])) for messages in completions]

    trainer = quiet(tmp_path, max_steps=1, enable_checkpointing=False)
    trainer.fit(grpo(reward), DataLoader(chats, batch_size=4, collate_fn=list))
    assert trainer.global_step == 1


def test_a_changing_accumulation_is_refused(grpo, tmp_path):
    trainer = quiet(tmp_path, max_steps=2, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
    with pytest.raises(ValueError, match="GradientAccumulationScheduler does not work with rollouts"):
        trainer.fit(grpo(), MyPrompts())


def test_validate_returns_its_metrics(grpo, tmp_path):
    trainer = quiet(tmp_path, logger=CSVLogger(tmp_path))
    (returned,) = trainer.validate(grpo(), MyPrompts(), verbose=False)
    assert returned["val/reward"] == trainer.callback_metrics["val/reward"].item()


def test_nothing_scorable_is_not_a_reward_of_zero(grpo, tmp_path):
    trainer = quiet(tmp_path, max_steps=1, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(grpo(lambda completions, **columns: [None] * len(completions)), MyPrompts())
    assert torch.isnan(trainer.callback_metrics["reward/mean"])
    assert torch.isnan(trainer.callback_metrics["reward/std"])


def test_the_spread_of_large_rewards_is_exact(grpo, tmp_path):
    trainer = quiet(tmp_path, max_steps=1, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(grpo(lambda completions, **columns: [10000.0 + i % 2 for i in range(len(completions))]), MyPrompts())
    assert trainer.callback_metrics["reward/std"].item() == pytest.approx(0.5)
    assert trainer.callback_metrics["reward/mean"].item() == pytest.approx(10000.5)


def test_a_dataloader_that_stacks_its_rows_is_explained(grpo, tmp_path):
    trainer = quiet(tmp_path, max_steps=1)
    with pytest.raises(TypeError, match=r"must be a list of dictionaries, got dict of str.*collate_fn=list"):
        trainer.fit(grpo(), DataLoader(PROMPTS, batch_size=3))


def test_a_row_without_prompt_is_named(grpo, tmp_path):
    trainer = quiet(tmp_path, max_steps=2)
    with pytest.raises(KeyError, match="needs the key `prompt`; this one has 'question'"):
        trainer.fit(grpo(), DataLoader([{"question": "w1"}], collate_fn=list))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "`group_size` must be >= 2, got 1: GRPO compares"),
        ({"clip_low": 1.0}, r"`clip_low` must be in \[0, 1\), got 1.0"),
        ({"clip_high": 1.5}, r"`clip_high` must be in \[0, 1\), got 1.5"),
        ({"dual_clip": 0.9}, "`dual_clip` must be > 1 or None, got 0.9"),
        ({"kl_coef": -0.1}, "`kl_coef` must be finite and >= 0, got -0.1"),
        ({"rollouts": {"num_epochs": 0}}, "`rollouts.num_epochs` must be >= 1 or None, got 0"),
        ({"scale": "sdt"}, "`scale` must be one of group, batch, none, got `sdt`"),
        ({"aggregation": "mean"}, "`aggregation` must be one of token, seq-mean-token-mean"),
        ({"sampling": {"temperature": 0}}, "`sampling.temperature` must be > 0 to train"),
        ({"sampling": {"temperature": -1}}, "`sampling.temperature` must be >= 0, got -1"),
        ({"validation": {"num_samples": 0}}, "`validation.num_samples` must be >= 1, got 0"),
        ({"rollouts": {"num_minibatches": 0}}, "`rollouts.num_minibatches` must be >= 1, got 0"),
        ({"rollouts": {"batch_size": 0}}, "`rollouts.batch_size` must be >= 1 or None, got 0"),
        ({"validation": {"batch_size": 0}}, "`validation.batch_size` must be >= 1 or None, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_loaded(settings, message):
    def never():
        raise AssertionError("weights were loaded")

    with pytest.raises(ValueError, match=message):
        GRPO(never, shortness, **settings)


def test_kl_with_group_scale_warns():
    with pytest.warns(UserWarning, match="moves the optimum"):
        GRPO("gpt2", shortness, kl_coef=0.1)


def test_hyperparameters_load_safely(grpo, tmp_path, make_model, word_tokenizer):
    trainer = quiet(tmp_path, max_steps=1, enable_checkpointing=False)
    module = grpo(clip_high=0.4)
    trainer.fit(module, MyPrompts())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = GRPO.load_from_checkpoint(
        tmp_path / "run.ckpt",
        policy=BuiltModel(make_model("gpt2", seed=5), tokenizer=word_tokenizer),
        rewards=shortness,
        weights_only=True,
    )
    assert loaded.clip_high == 0.4
    for name, tensor in module.language_model.state_dict().items():
        assert torch.equal(loaded.language_model.state_dict()[name], tensor)
    assert loaded.sampling == Sampling(max_new_tokens=8)
    assert torch.load(tmp_path / "run.ckpt", weights_only=True)["hyper_parameters"]["group_size"] == 4
