"""Losses and gradients against TRL's own trainers, on the same rows, right-padded, where TRL's log-probs are right.

TRL's side is whole: its trainer reads the rows, makes tokens of them, collates a batch and computes the loss.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer

from lit_posttrain import DPO, SFT, BuiltModel, InstructDataModule, PreferenceDataModule, RewardModel
from lit_posttrain.batching import EncodedRow, JudgedRow, StepPart, UnpairedBatch
from lit_posttrain.batching.ranks import StepStatistics
from tests.conftest import EOS

trl = pytest.importorskip("trl", reason='TRL is an extra: pip install -e ".[bench]"')
from datasets import Dataset  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.parametrize("family", ["gpt2", "llama"])]


def words(first, count):
    return " ".join(f"w{(first * 7 + place * 3) % 38}" for place in range(count))


PAIRS = [
    {
        "prompt": words(i, 1 + i % 4),
        "chosen": " " + words(i + 1, 1 + i % 5),
        "rejected": " " + words(i + 2, 1 + (i * 3) % 7),
    }
    for i in range(9)
]
# With these weights of reference and policy the reference point of KTO is above 0, where it is cut.
SEEDS_OF_KTO = {"gpt2": (0, 1), "llama": (0, 3)}
ROWS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]


@pytest.fixture
def trainer_of(word_tokenizer, tmp_path):
    """Build one of TRL's trainers, whose batch is all rows."""

    def build(kind, config, rows, models, **settings):
        args = config(
            output_dir=str(tmp_path),
            per_device_train_batch_size=len(rows),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        return kind(**models, args=args, train_dataset=Dataset.from_list(rows), processing_class=word_tokenizer)

    return build


def loss_of(trainer):
    """TRL's loss of its batch, with its gradients in the model, and the batch."""
    (batch,) = trainer.get_train_dataloader()
    trainer.model.eval()  # no dropout
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return loss.detach(), batch


def our_loss(module, part, weights=None):
    """Our loss of a step, with its gradients in the model; `weights` are those of the trained model."""
    module.configure_model()
    if weights is not None:
        module.language_model.load_state_dict(weights)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.statistics = StepStatistics()
    loss = module.loss(part)
    loss.backward()
    return loss.detach()


def all_rows(data, tokenizer):
    data.setup("fit")
    data.encode(tokenizer)
    (part,) = data.train_dataloader()
    return part


def assert_same_tokens(batch, sequences):
    theirs = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    parts = ((sequences.prompt_ids, sequences.prompt_mask), (sequences.completion_ids, sequences.completion_mask))
    ours = [torch.cat([ids[row][mask[row]] for ids, mask in parts]).tolist() for row in range(len(sequences))]
    assert sorted(theirs) == sorted(ours)
    assert all(ids[-1] == EOS for ids in ours)


def assert_same_gradients(ours, theirs):
    theirs = {name: p.grad for name, p in theirs.named_parameters()}
    assert any(gradient.abs().max() > 1e-3 for gradient in theirs.values())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("packing", [False, True])
def test_sft(make_model, word_tokenizer, trainer_of, family, smoothing, packing):
    model = make_model(family, scale=2.0)
    trainer = trainer_of(trl.SFTTrainer, trl.SFTConfig, ROWS, {"model": model}, label_smoothing_factor=smoothing)
    want, batch = loss_of(trainer)
    module = SFT(BuiltModel(make_model(family, scale=2.0), tokenizer=word_tokenizer), label_smoothing=smoothing)
    part = all_rows(InstructDataModule(ROWS, batch_size=len(ROWS), packing=packing), word_tokenizer)
    got = our_loss(module, part)
    assert_same_tokens(batch, part.batch)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert_same_gradients(module.language_model, trainer.model)


@pytest.mark.parametrize(("margin", "centering"), [(False, 0.0), (True, 0.01)])
def test_reward_model(make_model, word_tokenizer, trainer_of, family, margin, centering):
    rows = [{**pair, **({"margin": (n % 3) / 3} if margin else {})} for n, pair in enumerate(PAIRS)]
    torch.manual_seed(0)
    module = RewardModel(BuiltModel(make_model(family, scale=2.0), tokenizer=word_tokenizer), centering=centering)
    module.configure_model()
    weights = {name: tensor.clone() for name, tensor in module.language_model.state_dict().items()}
    theirs = type(module.language_model)(module.language_model.config)
    theirs.load_state_dict(weights)
    coefficient = {"center_rewards_coefficient": centering} if centering else {}
    trainer = trainer_of(trl.RewardTrainer, trl.RewardConfig, rows, {"model": theirs}, **coefficient)
    want, batch = loss_of(trainer)
    part = all_rows(PreferenceDataModule(rows, batch_size=len(rows)), word_tokenizer)
    got = our_loss(module, part)
    assert_same_tokens(batch, part.batch.sequences)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert_same_gradients(module.language_model, trainer.model)


@pytest.mark.parametrize(
    ("theirs", "settings"),
    [
        ("sigmoid", {}),
        ("sigmoid_norm", {"loss": "sigmoid", "length_normalized": True}),
        ("robust", {"label_smoothing": 0.2}),
        ("hinge", {}),
        ("ipo", {}),
        ("apo_zero", {}),
        ("apo_down", {}),
        ("nca_pair", {"loss": "nca"}),
        ("sppo_hard", {"loss": "sppo"}),
    ],
)
def test_dpo(make_model, word_tokenizer, trainer_of, family, theirs, settings):
    reference, policy = (partial(make_model, family, seed=seed, scale=2.0) for seed in (0, 1))
    smoothing = {"label_smoothing": settings["label_smoothing"]} if "label_smoothing" in settings else {}
    models = {"model": policy(), "ref_model": reference()}
    trainer = trainer_of(trl.DPOTrainer, trl.DPOConfig, PAIRS, models, loss_type=theirs, beta=0.3, **smoothing)
    want, batch = loss_of(trainer)
    module = DPO(BuiltModel(reference(), tokenizer=word_tokenizer), beta=0.3, **{"loss": theirs, **settings})
    part = all_rows(PreferenceDataModule(PAIRS, batch_size=len(PAIRS)), word_tokenizer)
    got = our_loss(module, part, policy().state_dict())
    assert_same_tokens(batch, part.batch.sequences)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert_same_gradients(module.language_model, trainer.model)


def their_means(trainer, batch):
    """Mean log-probs per token of the chosen and of the rejected completions, as TRL computes them."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer.model.eval()
    logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)


@pytest.mark.parametrize(("loss", "settings"), [("simpo", {"beta": 2.5, "margin": 1.375}), ("orpo", {"beta": 0.1})])
def test_losses_without_a_reference(make_model, word_tokenizer, trainer_of, family, loss, settings):
    """By the methods of TRL's trainers; ORPO's likelihood is ours, as TRL's takes the prompt with it."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    policy = partial(make_model, family, seed=1, scale=2.0)
    models = {"model": policy(), "ref_model": policy()}
    trainer = trainer_of(trl.DPOTrainer, trl.DPOConfig, PAIRS, models)
    (batch,) = trainer.get_train_dataloader()
    chosen, rejected = their_means(trainer, batch)
    held = SimpleNamespace(
        alpha=0.0,
        loss_type="simpo",
        beta=settings["beta"],
        simpo_gamma=settings.get("margin"),
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    if loss == "simpo":
        want = CPOTrainer.cpo_loss(held, chosen, rejected)[0].mean()
    else:
        want = -chosen.mean() - ORPOTrainer.odds_ratio_loss(held, chosen, rejected)[0].mean()
    want.backward()
    module = DPO(BuiltModel(policy(), tokenizer=word_tokenizer), loss, **settings)
    part = all_rows(PreferenceDataModule(PAIRS, batch_size=len(PAIRS)), word_tokenizer)
    torch.testing.assert_close(our_loss(module, part), want.detach(), atol=1e-5, rtol=0)
    assert_same_gradients(module.language_model, trainer.model)


def judged_rows(batch):
    """TRL's batch of unpaired rows, with the mismatched completions that it chose."""

    def encoded(prefix, row):
        names = ("input_ids", "attention_mask", "completion_mask")
        ids, mask, taken = (batch[f"{prefix}{name}"][row] for name in names)
        completion = ids[taken.bool()].tolist()
        return EncodedRow(ids[mask.bool() & ~taken.bool()].tolist(), completion, [True] * len(completion))

    return [
        JudgedRow(encoded("", row), bool(label), mismatched=encoded("KL_", row))
        for row, label in enumerate(batch["label"].tolist())
    ]


def test_kto(make_model, word_tokenizer, trainer_of, family):
    """With TRL's mismatched completions: it takes those of the row before, we those of the row after."""
    rows = [
        {"prompt": pair["prompt"], "completion": pair["chosen" if n % 3 else "rejected"], "label": n % 3 > 0}
        for n, pair in enumerate(PAIRS)
    ]
    reference, policy = (partial(make_model, family, seed=seed, scale=2.0) for seed in SEEDS_OF_KTO[family])
    models = {"model": policy(), "ref_model": reference()}
    weights = {"desirable_weight": 0.8, "undesirable_weight": 1.3}
    trainer = trainer_of(trl.KTOTrainer, trl.KTOConfig, rows, models, beta=0.3, **weights)
    want, batch = loss_of(trainer)
    module = DPO(BuiltModel(reference(), tokenizer=word_tokenizer), "kto", beta=0.3, **weights)
    ours = UnpairedBatch.collate(judged_rows(batch), pad_id=0)
    part = StepPart(ours, torch.tensor(float(len(rows))), whole_step=[ours])
    got = our_loss(module, part, policy().state_dict())
    assert module._kl > 0.1
    assert_same_tokens(batch, ours.half(second=False))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert_same_gradients(module.language_model, trainer.model)
