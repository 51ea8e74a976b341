"""Supervised fine-tuning: the mean over a step's own tokens, however it is cut up; validation; resuming."""

import math
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer
from torch.optim.lr_scheduler import ConstantLR

from lit_posttrain import SFT, BuiltModel, InstructDataModule, PromptDataModule, Sampling
from tests.integration.recording import StepRecorder
from tests.integration.test_resume import keep_every

ROWS = [
    {"prompt": " ".join(f"w{(i * 5 + j) % 38}" for j in range(1 + i % 4)), "completion": " ".join(["w3"] * (1 + i % 7))}
    for i in range(11)
]


@pytest.fixture
def run_sft(make_model, word_tokenizer, tmp_path):
    """Fit SFT on the rows above; module, recorder and Trainer."""

    def run(*, dtype=torch.float32, family="gpt2", callbacks=(), ckpt_path=None, trainer=None, data=None, **module):
        sft = SFT(
            BuiltModel(make_model(family, dtype=dtype, scale=2.0), tokenizer=word_tokenizer),
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
            scheduler=partial(ConstantLR, factor=1.0),
            **module,
        )
        recorder = StepRecorder()
        engine = Trainer(
            **{
                "accelerator": "cpu",
                "max_steps": 3,
                "logger": False,
                "enable_checkpointing": bool(callbacks),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": tmp_path,
                **(trainer or {}),
            },
            callbacks=[recorder, *callbacks],
        )
        rows = InstructDataModule(ROWS, **{"batch_size": 4, **(data or {})})
        engine.fit(sft, datamodule=rows, ckpt_path=ckpt_path)
        return sft, recorder, engine

    return run


def slow_token_losses(model, tokenizer, row, *, smoothing=0.0):
    """-log p of every completion token and of the EOS, one at a time."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    completion = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
    losses = []
    for t, token in enumerate(completion):
        logits = model(input_ids=torch.tensor([[*prompt, *completion[:t]]])).logits[0, -1]
        logprobs = torch.log_softmax(logits, -1)
        losses.append((-(1 - smoothing) * logprobs[token] - smoothing * logprobs.mean()).item())
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_first_loss_is_that_of_a_slow_loop(run_sft, make_model, word_tokenizer, smoothing):
    """All rows in one step, so that the order does not matter."""
    data = {"batch_size": 11}
    _, recorder, _ = run_sft(data=data, label_smoothing=smoothing, trainer={"max_steps": 1}, dtype=torch.float64)
    model = make_model("gpt2", dtype=torch.float64, scale=2.0).eval()
    with torch.no_grad():
        losses = [x for row in ROWS for x in slow_token_losses(model, word_tokenizer, row, smoothing=smoothing)]
    assert recorder.logged[0]["train/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_micro_batches_change_neither_loss_nor_gradient(run_sft, smoothing):
    runs = [
        run_sft(dtype=torch.float64, label_smoothing=smoothing, trainer={"accumulate_grad_batches": k})[1]
        for k in (1, 2, 3, 7)
    ]
    first, *others = runs
    for other in others:
        assert len(other.gradients) == len(first.gradients) == 3
        for step, gradients in enumerate(first.gradients):
            for name, gradient in gradients.items():
                torch.testing.assert_close(other.gradients[step][name], gradient, atol=1e-10, rtol=0, msg=name)
            assert other.logged[step]["train/loss"] == pytest.approx(first.logged[step]["train/loss"], abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packing_changes_no_step(run_sft, family):
    """Through a Trainer: loss, entropy, every gradient and validation, in one micro-batch and in several."""
    data = {"batch_size": 8, "val_path": ROWS, "val_batch_size": 5}
    trainer = {"max_steps": 3, "num_sanity_val_steps": -1}
    settings = {"dtype": torch.float64, "family": family, "label_smoothing": 0.1}
    _, want, whole = run_sft(data=data, trainer=trainer, **settings)
    for parts in (1, 2, 5):
        packed = {**data, "packing": True}
        _, got, engine = run_sft(data=packed, trainer={**trainer, "accumulate_grad_batches": parts}, **settings)
        assert len(got.gradients) == 3
        for step, gradients in enumerate(want.gradients):
            for name, gradient in gradients.items():
                torch.testing.assert_close(got.gradients[step][name], gradient, atol=1e-10, rtol=0, msg=name)
            assert got.logged[step] == pytest.approx(want.logged[step], abs=1e-6)
        scores = {name: value.item() for name, value in whole.callback_metrics.items()}
        assert {name: value.item() for name, value in engine.callback_metrics.items()} == pytest.approx(
            scores, abs=1e-6
        )


def test_a_packed_step_has_fewer_sequences(run_sft):
    widths = []

    class Shapes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            packs = batch.batch.pack_ids
            widths.append((len(batch), None if packs is None else len(packs.unique())))

    run_sft(data={"batch_size": 11, "packing": True}, callbacks=[Shapes()], trainer={"max_steps": 1})
    ((rows, sequences),) = widths
    assert rows == 11
    assert sequences <= 8


def test_validation_is_over_the_tokens_of_the_whole_set(run_sft, make_model, word_tokenizer):
    """Rows of very different length, batches of unequal size; two forms of the same number."""
    data = {"val_path": ROWS, "val_batch_size": 4}
    module, _, trainer = run_sft(data=data, trainer={"max_steps": 2, "num_sanity_val_steps": -1})
    scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
    model = module.language_model.eval()
    with torch.no_grad():
        losses = [x for row in ROWS for x in slow_token_losses(model, word_tokenizer, row)]
    assert scores["val/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert scores["val/perplexity"] == pytest.approx(math.exp(scores["val/loss"]), rel=1e-5)
    assert 0 <= scores["val/token_accuracy"] <= 1


def test_completions_of_prompts_are_scored_beside(run_sft):
    def starts_well(prompts, completions, **columns):
        return [float(text.startswith("w3")) for text in completions]

    prompts = PromptDataModule(
        [{"prompt": "w1"}], val_path=[{"prompt": row["prompt"]} for row in ROWS], scores={"good": starts_well}
    )
    _, _, trainer = run_sft(
        data={"val_path": ROWS, "val_prompts": prompts}, sampling=Sampling(max_new_tokens=4), trainer={"max_steps": 30}
    )
    assert trainer.callback_metrics["val/good"] == 1
    assert 0 < trainer.callback_metrics["val/good_sampled"] <= 1
    assert trainer.callback_metrics["val/loss"] < 2


@pytest.mark.parametrize("packing", [False, True])
def test_resumes_exactly(run_sft, tmp_path, packing):
    settings = {"trainer": {"max_steps": 7, "accumulate_grad_batches": 2}, "data": {"packing": packing}}
    whole, _, _ = run_sft(callbacks=[keep_every(1, tmp_path / "whole")], **settings)
    for step in (1, 3, 4):
        resumed, recorder, _ = run_sft(ckpt_path=tmp_path / "whole" / f"step={step}.ckpt", **settings)
        assert len(recorder.gradients) == 7 - step
        for name, tensor in whole.language_model.state_dict().items():
            assert torch.equal(resumed.language_model.state_dict()[name], tensor), (step, name)


def test_default_schedule_is_a_cosine_over_the_steps(make_model, word_tokenizer):
    module = SFT(BuiltModel(make_model("gpt2"), tokenizer=word_tokenizer))
    module.configure_model()
    module.trainer = Trainer(accelerator="cpu", max_steps=100, logger=False, enable_checkpointing=False)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == rates[3] == 2e-5
    assert rates[0] == 0
    assert rates[99] < 2e-8


def test_bad_settings():
    with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 1\), got 1.0"):
        SFT("tiny", label_smoothing=1.0)
