"""What the Trainer's precision reaches, and what it does not."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.optim.lr_scheduler import ConstantLR

from lit_posttrain import (
    DPO,
    GRPO,
    RLOO,
    SFT,
    BuiltModel,
    InstructDataModule,
    PreferenceDataModule,
    PromptDataModule,
    Sampling,
    Validation,
)
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.rewards.model import LearnedReward
from tests.conftest import VOCAB
from tests.integration.conftest import PROMPTS, counts_even_words
from tests.integration.recording import StepRecorder
from tests.integration.test_dpo import PAIRS
from tests.integration.test_sft import ROWS

AT_REST = {"optimizer": partial(torch.optim.SGD, lr=0.0), "scheduler": partial(ConstantLR, factor=1.0)}
PRECISIONS = ["32-true", "bf16-mixed", "bf16-true", "64-true"]


@pytest.fixture
def make_trainer(tmp_path):
    def make(**settings):
        return Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **settings,
        )

    return make


@pytest.fixture
def online(make_model, word_tokenizer):
    def make(rewards, algorithm=GRPO, **settings):
        sampling = Sampling(max_new_tokens=6)
        given = {"group_size": 4, "sampling": sampling, **AT_REST, **settings}
        return algorithm(BuiltModel(make_model(scale=2.0), tokenizer=word_tokenizer), rewards, **given)

    return make


def prompts():
    return PromptDataModule(PROMPTS[:4], batch_size=4, val_path=PROMPTS[:4], val_batch_size=4)


# ----------------------------------------------------------------------- what judges completions


@pytest.fixture(scope="module")
def reward_model(make_model, word_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    RewardNetwork.from_causal_lm(make_model(scale=2.0), pad_id=0, vocab_size=VOCAB).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_learned_reward_gives_one_score_everywhere(make_trainer, online, reward_model, precision):
    """In rollouts, in validation and in prediction, whichever of them loads it."""
    plain = LearnedReward(reward_model, device="cpu")
    for stages in (("validate", "fit"), ("predict", "fit")):
        judged = []
        reward = LearnedReward(reward_model, device="cpu")

        def learned(prompts, completions, reward=reward, judged=judged):
            scores = reward.learned(prompts, completions)
            judged.append((prompts, completions, scores))
            return scores

        module, trainer = online(learned), make_trainer(precision=precision)
        for stage in stages:
            getattr(trainer, stage)(module, datamodule=prompts()) if stage == "fit" else getattr(trainer, stage)(
                module, prompts()
            )
        assert len(judged) > 2
        assert reward._network.score_mean.dtype == torch.float32
        for given, completions, scores in judged:
            assert scores == plain.learned(given, completions)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_functions_compute_in_float32(make_trainer, online, precision):
    """Somebody's own reward, and the scores of validation."""
    seen = []

    def looked_at(completions, **columns):
        third = torch.tensor([1.0, 3.0])[:, None]
        seen.append(((third @ third.T).dtype, torch.tensor(0.1).dtype, torch.is_autocast_enabled("cpu")))
        return [1 / 3] * len(completions)

    module = online(looked_at, validation=Validation(metrics={"score": looked_at}))
    trainer = make_trainer(precision=precision)
    trainer.fit(module, datamodule=prompts())
    before = torch.get_default_dtype()
    (scores,) = trainer.validate(module, prompts(), verbose=False)
    trainer.predict(module, prompts())
    assert set(seen) == {(torch.float32, torch.float32, False)}
    assert torch.get_default_dtype() == before
    assert scores["val/reward"] == pytest.approx(1 / 3, rel=1e-6)
    assert scores["val/score"] == pytest.approx(1 / 3, rel=1e-6)


# ----------------------------------------------------------------------- means of validation


@pytest.mark.parametrize("algorithm", [SFT, DPO])
def test_means_of_many_numbers(make_trainer, make_model, word_tokenizer, monkeypatch, algorithm):
    """In bfloat16 a sum stands still once what is added is less than a 256th of it."""
    rows, data = (ROWS, InstructDataModule) if algorithm is SFT else (PAIRS, PreferenceDataModule)
    module = algorithm(BuiltModel(make_model(scale=2.0), tokenizer=word_tokenizer))
    losses = []
    update = type(module._means).update
    monkeypatch.setattr(
        type(module._means),
        "update",
        lambda means, name, values: (
            (losses.append(values.double()) if name == "loss" else None) or update(means, name, values)
        ),
    )
    held_out = data(rows[:4], batch_size=4, val_path=rows * 60, val_batch_size=4)
    (metrics,) = make_trainer(precision="bf16-true").validate(module, held_out, verbose=False)
    assert torch.cat(losses).numel() > 600
    assert metrics["val/loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


# ----------------------------------------------------------------------- the reference


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("algorithm", [GRPO, RLOO])
def test_at_first_the_policy_is_its_reference(make_trainer, online, precision, algorithm):
    recorder = StepRecorder()
    trainer = make_trainer(precision=precision, callbacks=[recorder], limit_val_batches=0)
    module = online(counts_even_words, algorithm, kl_coef=0.1, **({"scale": "none"} if algorithm is GRPO else {}))
    trainer.fit(module, datamodule=prompts())
    assert module.reference.policy.model.dtype == module.policy.model.dtype
    assert [metrics["policy/kl_ref"] for metrics in recorder.logged] == [0, 0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("precomputed", [False, True])
def test_at_first_the_rewards_of_dpo_are_0(make_trainer, make_model, word_tokenizer, precision, precomputed):
    model = BuiltModel(make_model(scale=2.0), tokenizer=word_tokenizer)
    module = DPO(model, precompute_reference=precomputed, **AT_REST)
    recorder = StepRecorder()
    trainer = make_trainer(precision=precision, callbacks=[recorder])
    data = PreferenceDataModule(PAIRS[:4], batch_size=4, val_path=PAIRS[:4], val_batch_size=4)
    trainer.fit(module, datamodule=data)
    for metrics in recorder.logged:
        assert (metrics["rewards/chosen"], metrics["rewards/rejected"]) == (0, 0)
    assert trainer.callback_metrics["val/margin"] == 0
