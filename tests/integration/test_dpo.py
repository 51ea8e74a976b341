"""DPO through a Trainer: values before training, invariances, the reference, resuming, wrong data."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import ConstantLR

from lit_posttrain import DPO, BuiltModel, InstructDataModule, PreferenceDataModule
from lit_posttrain.algos.sft import SFT
from lit_posttrain.models.weights import weights_sha256
from tests.integration.recording import StepRecorder

SGD = partial(torch.optim.SGD, lr=0.02)


def words(first, count):
    return " ".join(f"w{(first * 7 + place * 3) % 38}" for place in range(count))


PAIRS = [
    {"prompt": words(i, 1 + i % 4) + " ", "chosen": words(i + 1, 1 + i % 5), "rejected": words(i + 2, 1 + (i * 3) % 7)}
    for i in range(11)
]
JUDGED = [
    {"prompt": pair["prompt"], "completion": pair["chosen" if i % 3 else "rejected"], "label": i % 3 > 0}
    for i, pair in enumerate(PAIRS)
]


@pytest.fixture
def run(make_model, word_tokenizer, tmp_path):
    """Fit DPO on the rows; module, recorder, Trainer."""

    def fit(
        loss="sigmoid",
        *,
        rows=None,
        dtype=torch.float32,
        data=None,
        trainer=None,
        callbacks=(),
        ckpt_path=None,
        **settings,
    ):
        module = DPO(
            BuiltModel(make_model("gpt2", dtype=dtype, scale=2.0), tokenizer=word_tokenizer),
            loss,
            **{"optimizer": SGD, "scheduler": partial(ConstantLR, factor=1.0), **settings},
        )
        recorder = StepRecorder()
        rows = (JUDGED if loss == "kto" else PAIRS) if rows is None else rows
        engine = Trainer(
            **{"max_steps": 3, "limit_val_batches": 0, **(trainer or {})},
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[recorder, *callbacks],
        )
        datamodule = PreferenceDataModule(rows, **{"batch_size": 8, **(data or {})})
        engine.fit(module, datamodule=datamodule, ckpt_path=ckpt_path)
        return module, recorder, engine

    return fit


START = {"sigmoid": 0.693147, "robust": 0.693147, "hinge": 1.0, "apo_zero": 1.0, "apo_down": 1.0, "kto": 0.5}
START |= {"ipo": 25.0, "nca": 1.386294, "sppo": 50.0}


@pytest.mark.parametrize("loss", START)
def test_before_training_every_reward_is_exactly_0(run, loss):
    _, recorder, _ = run(loss, trainer={"max_steps": 1, "accumulate_grad_batches": 2})
    first = recorder.logged[0]
    assert first["train/loss"] == pytest.approx(START[loss], abs=1e-5)
    assert [first[f"rewards/{name}"] for name in ("chosen", "rejected", "margin")] == [0.0, 0.0, 0.0]
    assert first["policy/chosen_logprob"] < 0


def assert_same_steps(got, want):
    """Three steps have the same gradients and log the same numbers."""
    assert len(got.gradients) == len(want.gradients) == 3
    for mine, other in zip(want.gradients, got.gradients, strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-10)
    for mine, other in zip(want.logged, got.logged, strict=True):
        assert other == pytest.approx(mine, abs=1e-6)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "apo_down", "orpo", "kto"])
def test_micro_batches_change_nothing(run, loss):
    """The second and third step have a policy that differs from the reference, and KTO a reference point."""
    settings = {"dtype": torch.float64, "beta": 0.5}
    _, want, _ = run(loss, **settings)
    for parts in (3, 11):  # ragged, and some that count for nothing
        _, got, _ = run(loss, trainer={"accumulate_grad_batches": parts}, **settings)
        assert_same_steps(got, want)


@pytest.mark.parametrize(
    ("loss", "precompute"), [("sigmoid", False), ("sigmoid", True), ("ipo", False), ("kto", False)]
)
def test_packing_changes_nothing(run, networks_given_packed_rows, loss, precompute):
    """Of policy and reference, and where KTO takes one half of a batch by itself."""
    settings = {"dtype": torch.float64, "beta": 0.5, "precompute_reference": precompute}
    _, want, _ = run(loss, **settings)
    assert networks_given_packed_rows == []
    for parts in (1, 3):
        _, got, _ = run(loss, data={"packing": True}, trainer={"accumulate_grad_batches": parts}, **settings)
        assert_same_steps(got, want)
        if parts == 1:  # of fewer rows perhaps no two fit
            assert len(networks_given_packed_rows) == (1 if precompute else 2)  # the policy, and a reference beside it


def test_ktos_reference_point_is_that_of_the_step(run):
    """Measured when the step began, with mismatched completions of all micro-batches; not 0 once the policy moved."""
    settings = {"dtype": torch.float64, "optimizer": partial(torch.optim.SGD, lr=0.2)}
    points = [run("kto", trainer={"accumulate_grad_batches": parts}, **settings)[0]._kl.item() for parts in (1, 4)]
    assert points[0] == pytest.approx(points[1], abs=1e-12)
    assert points[0] != 0


def slow_loss(module, reference, rows):
    """The loss of all pairs, each by itself, without a batch or padding."""
    total = 0.0
    for row in rows:
        sides = []
        for side in ("chosen", "rejected"):
            prompt = module.tokenizer(row["prompt"]).input_ids
            ids = prompt + module.tokenizer(row[side]).input_ids + [module.tokenizer.eos_token_id]
            ratio = 0.0
            for model, sign in ((module.language_model, 1), (reference, -1)):
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
                ratio = ratio + sign * sum(logprobs[place - 1, ids[place]] for place in range(len(prompt), len(ids)))
            sides.append(ratio)
        total = total - torch.nn.functional.logsigmoid(module.beta * (sides[0] - sides[1]))
    return total / len(rows)


def test_the_loss_is_that_of_a_slow_loop(run, make_model):
    _, recorder, _ = run(dtype=torch.float64, data={"batch_size": 11}, trainer={"max_steps": 2})
    module, _, _ = run(dtype=torch.float64, data={"batch_size": 11}, trainer={"max_steps": 1})
    want = slow_loss(module, make_model("gpt2", dtype=torch.float64, scale=2.0), PAIRS)
    assert recorder.logged[1]["train/loss"] == pytest.approx(want.item(), abs=1e-6)  # logged in float32
    module.zero_grad()
    want.backward()
    gradients = dict(module.policy.model.named_parameters())
    for name, gradient in recorder.gradients[1].items():
        torch.testing.assert_close(gradient, gradients[name.removeprefix("model.")].grad, rtol=0, atol=1e-10)


def test_swapped_pairs_have_the_opposite_margins(run):
    swapped = [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    settings = {"dtype": torch.float64, "trainer": {"max_steps": 1}, "data": {"batch_size": 11}}
    (_, first, _), (_, second, _) = run(**settings), run(rows=swapped, **settings)
    for name, gradient in first.gradients[0].items():  # at margin 0 the weights of both sides are equal
        torch.testing.assert_close(gradient, -second.gradients[0][name], rtol=0, atol=1e-10)
    assert first.logged[0]["policy/chosen_logprob"] == pytest.approx(second.logged[0]["policy/rejected_logprob"])


def test_padding_changes_nothing(run):
    """A pair that is much longer than the others widens the batch; its own terms are taken off again."""
    long = {"prompt": words(3, 20) + " ", "chosen": words(5, 20), "rejected": words(6, 15)}
    settings = {"dtype": torch.float64, "trainer": {"max_steps": 1}}
    recorders = [run(rows=rows, data={"batch_size": 12}, **settings)[1] for rows in (PAIRS, [*PAIRS, long], [long])]
    short, both, alone = (recorder.gradients[0] for recorder in recorders)
    for name in short:
        torch.testing.assert_close(12 * both[name], 11 * short[name] + alone[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_precomputed_is_online_to_the_bit(run, loss):
    settings = {"data": {"shuffle": False}, "trainer": {"max_steps": 4, "accumulate_grad_batches": 2}}
    online, first, _ = run(loss, **settings)
    kept, second, _ = run(loss, precompute_reference=True, **settings)
    assert kept.reference is None
    assert first.logged == second.logged
    assert weights_sha256(online.language_model) == weights_sha256(kept.language_model)


def test_precomputed_with_shuffling_and_a_second_epoch(run):
    settings = {"dtype": torch.float64, "trainer": {"max_steps": 5}}
    _, first, _ = run(**settings)
    _, second, _ = run(precompute_reference=True, **settings)
    for mine, other in zip(first.gradients, second.gradients, strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-10)
    assert first.logged[0]["train/loss"] == second.logged[0]["train/loss"]


@pytest.mark.parametrize(
    ("loss", "settings"), [("sigmoid", {}), ("sigmoid", {"precompute_reference": True}), ("kto", {}), ("simpo", {})]
)
def test_resume_is_bitwise(run, tmp_path, loss, settings):
    """Within an epoch, at its end, and in the second one."""
    adam = {"optimizer": partial(torch.optim.AdamW, lr=1e-3), "trainer": {"max_steps": 5, "accumulate_grad_batches": 2}}
    keep = ModelCheckpoint(tmp_path / "whole", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, _, _ = run(loss, callbacks=[keep], data={"batch_size": 4}, **adam, **settings)
    want = weights_sha256(whole.language_model)
    for step in (1, 3):
        checkpoint = tmp_path / "whole" / f"step={step}.ckpt"
        resumed, recorder, _ = run(loss, ckpt_path=checkpoint, data={"batch_size": 4}, **adam, **settings)
        assert len(recorder.gradients) == 5 - step
        assert weights_sha256(resumed.language_model) == want, f"resumed at step {step}"


def test_a_checkpoint_without_the_references_logprobs_is_refused(run, tmp_path):
    keep = ModelCheckpoint(tmp_path / "one", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(callbacks=[keep], trainer={"max_steps": 1})
    with pytest.raises(ValueError, match="has no reference_logprobs: its run had other options"):
        run(precompute_reference=True, ckpt_path=tmp_path / "one" / "step=1.ckpt")


@pytest.mark.parametrize("loss", ["sigmoid", "apo_zero", "simpo", "kto"])
def test_validation_measures_the_held_out_rows(run, loss):
    rows = JUDGED if loss == "kto" else PAIRS
    data = {"val_path": rows, "val_batch_size": 4, "batch_size": 11}
    settings = {"dtype": torch.float64, "optimizer": partial(torch.optim.SGD, lr=0.05)}
    trainer = {"max_steps": 6, "limit_val_batches": 1.0, "num_sanity_val_steps": -1}
    module, recorder, engine = run(loss, data=data, trainer=trainer, **settings)
    after = {name: value.item() for name, value in engine.callback_metrics.items()}
    assert {"val/loss", "val/accuracy", "val/margin", "val/chosen_logprob", "val/rejected_logprob"} <= set(after)
    assert after["val/loss"] < recorder.logged[0]["train/loss"]
    assert after["val/margin"] > recorder.logged[0]["rewards/margin"]
    assert 0 < after["val/accuracy"] <= 1
    if loss == "sigmoid":
        assert engine.validate(module, datamodule=engine.datamodule, verbose=False)[0]["val/loss"] == pytest.approx(
            after["val/loss"]
        )


@pytest.mark.parametrize(
    ("loss", "rows", "says"),
    [
        ("sigmoid", JUDGED, r"`loss=sigmoid` learns from pairs .*the data make UnpairedBatches"),
        ("kto", PAIRS, r"`loss=kto` learns from unpaired rows .*the data make PreferenceBatches"),
    ],
)
def test_rows_of_the_other_kind_are_refused_before_weights_are_loaded(word_tokenizer, tmp_path, loss, rows, says):
    module = DPO(BuiltModel(lambda: pytest.fail("weights were loaded"), tokenizer=word_tokenizer), loss)
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=says):
        trainer.fit(module, datamodule=PreferenceDataModule(rows))


def test_demonstrations_and_preferences_are_not_mixed_up(word_tokenizer):
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    unloaded = partial(pytest.fail, "weights were loaded")
    demonstrations = InstructDataModule([{"prompt": "w1 ", "completion": "w2"}])
    with pytest.raises(TypeError, match="the data make SupervisedBatches"):
        trainer.fit(DPO(BuiltModel(unloaded, tokenizer=word_tokenizer)), datamodule=demonstrations)
    with pytest.raises(TypeError, match=r"fine-tuning learns from demonstrations .*make PreferenceBatches"):
        trainer.fit(SFT(BuiltModel(unloaded, tokenizer=word_tokenizer)), datamodule=PreferenceDataModule(PAIRS))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "simpo", "length_normalized": False}, "`length_normalized=False` does not go with `loss=simpo`"),
        ({"loss": "kto", "precompute_reference": True}, "`precompute_reference` does not go with `loss=kto`"),
        ({"loss": "dpo"}, "`loss` must be one of sigmoid"),
        ({"beta": 0.0}, "`beta` must be > 0"),
    ],
)
def test_what_does_not_go_together(settings, says):
    with pytest.raises(ValueError, match=says):
        DPO("tiny", **settings)
