"""Reward models by Lightning: the loss of a step, what must not change it, scores that are measured, resume."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import ConstantLR
from transformers import AutoModelForSequenceClassification

from lit_posttrain import (
    GRPO,
    BuiltModel,
    InstructDataModule,
    PreferenceDataModule,
    PromptDataModule,
    RewardModel,
    Sampling,
)
from lit_posttrain.batching import EncodedPair, EncodedRow, PreferenceBatch, StepPart
from lit_posttrain.rewards.model import LearnedReward, load_reward_model
from tests.integration.recording import StepRecorder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# The chosen one has the more even words; lengths from 1 to 9; margins of which one is 0.
PAIRS = [
    {
        "prompt": " ".join(f"w{(3 * n + k) % 38}" for k in range(1 + n % 4)),
        "chosen": " w2" * (1 + n % 7) + f" w{n}",
        "rejected": " w37" * (1 + (5 * n) % 8) + f" w{n}",
        "margin": (n % 3) / 3,
    }
    for n in range(13)
]


class Recorder(StepRecorder):
    """Also the sizes of micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = []

    def watched(self, pl_module):
        return pl_module.network.named_parameters()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sizes.append(len(batch) if (mask := getattr(batch.batch, "row_mask", None)) is None else int(mask.sum()))


@pytest.fixture
def fit(make_model, word_tokenizer, tmp_path):
    """Train a reward model on PAIRS, 8 in a step, and return module, recorder and Trainer."""

    def run(*, family="gpt2", dtype=torch.float32, pairs=PAIRS, data=None, callbacks=(), ckpt_path=None, **settings):
        trainer = {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 4,
            "logger": False,
            "enable_checkpointing": bool(callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            **settings.pop("trainer", {}),
        }
        torch.manual_seed(0)
        module = RewardModel(
            BuiltModel(make_model(family, dtype=dtype), tokenizer=word_tokenizer),
            **{
                "optimizer": partial(torch.optim.SGD, lr=0.05),
                "scheduler": partial(ConstantLR, factor=1.0),
                **settings,
            },
        )
        recorder, engine = Recorder(), None
        engine = Trainer(**trainer, callbacks=[recorder, *callbacks])
        data = data or PreferenceDataModule(pairs, batch_size=8, val_size=3)
        engine.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, recorder, engine

    return run


def with_scores(word_tokenizer, make_model, chosen, rejected, **arguments) -> RewardModel:
    """A module whose network gives these scores."""

    class Fixed(torch.nn.Module):
        def forward(self, batch):
            return torch.tensor([*chosen, *rejected])

    module = RewardModel(BuiltModel(make_model(), tokenizer=word_tokenizer), **arguments)
    module.network = Fixed()
    module.on_fit_start()
    return module


def part(margins, *, normalizer, masked=()) -> StepPart[PreferenceBatch]:
    row = EncodedRow([3], [4, 1], [True, True])
    batch = PreferenceBatch.collate([EncodedPair(row, row, margin) for margin in margins], pad_id=0)
    batch.row_mask[list(masked)] = False
    return StepPart(batch, torch.tensor(float(normalizer)))


@pytest.mark.parametrize(
    ("margin", "arguments", "want"),
    [
        (0.0, {}, 0.37110067),
        (1 / 3, {}, 0.48679258),
        (2 / 3, {"margin_scale": 0.5}, 0.48679258),
        (1 / 3, {"margin_scale": 0.0}, 0.37110067),
        (0.0, {"centering": 0.01}, 0.37110067 + 0.0256),
    ],
)
def test_the_loss_of_a_pair(make_model, word_tokenizer, margin, arguments, want):
    """Minus the log-sigmoid of the difference, with margins and centering."""
    module = with_scores(word_tokenizer, make_model, [1.2], [0.4], **arguments)
    assert module.loss(part([margin], normalizer=1)).item() == pytest.approx(want, abs=1e-6)


def test_the_loss_is_over_the_pairs_of_the_step_and_fillers_count_for_nothing(make_model, word_tokenizer):
    module = with_scores(word_tokenizer, make_model, [1.2, 1.2, 99.0], [0.4, 0.4, -99.0])
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    metrics = {}
    module.log = lambda name, value, **how: metrics.update({name: value.item()})
    loss = module.training_step(part([0, 0, 0], normalizer=4, masked=[2]), 0)
    assert loss.item() == pytest.approx(0.37110067 / 2, abs=1e-6)
    assert metrics == pytest.approx(
        {"train/loss": 0.37110067 / 2, "rewards/chosen": 1.2, "rewards/rejected": 0.4, "rewards/margin": 0.8}
    )


@pytest.mark.parametrize("before_eos", [False, True])
def test_packing_changes_no_step(fit, networks_given_packed_rows, before_eos):
    """Loss, every gradient and validation, in one micro-batch and in several, of which some are empty."""
    settings = {"dtype": torch.float64, "centering": 0.1, "score_before_eos": before_eos}
    _, want, whole = fit(**settings)
    assert networks_given_packed_rows == []
    for parts in (1, 2, 5):
        packed = PreferenceDataModule(PAIRS, batch_size=8, val_size=3, packing=True)
        module, got, engine = fit(data=packed, trainer={"accumulate_grad_batches": parts}, **settings)
        if parts == 1:  # of fewer rows perhaps no two fit
            assert networks_given_packed_rows == [module.network]
        assert len(got.gradients) == len(want.gradients) == 4
        for step, gradients in enumerate(want.gradients):
            for name, gradient in gradients.items():
                torch.testing.assert_close(got.gradients[step][name], gradient, atol=1e-10, rtol=0, msg=name)
        scores = {name: value.item() for name, value in whole.callback_metrics.items()}
        assert {name: value.item() for name, value in engine.callback_metrics.items()} == pytest.approx(
            scores, abs=1e-6
        )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_micro_batches_change_neither_loss_nor_gradient(fit, family):
    """Steps of 8 pairs and of the 2 that are left, in 1, 2 and 5 parts, of which some are empty then."""
    runs = [
        fit(family=family, dtype=torch.float64, centering=0.1, trainer={"accumulate_grad_batches": k})[1]
        for k in (1, 2, 5)
    ]
    assert runs[2].sizes[:5] == [1, 2, 1, 2, 2]
    assert runs[2].sizes[5:10] == [0, 0, 1, 0, 1]
    assert any(g.abs().max() > 1e-3 for g in runs[0].gradients[0].values())
    for other in runs[1:]:
        for step, gradients in enumerate(runs[0].gradients):
            for name, gradient in gradients.items():
                torch.testing.assert_close(other.gradients[step][name], gradient, atol=1e-10, rtol=0)
            names = ["train/loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "grad_norm"]
            got, want = ({name: run.logged[step][name] for name in names} for run in (other, runs[0]))
            assert got == pytest.approx(want, abs=1e-6)


def test_validation_is_over_all_pairs_of_the_set(fit):
    """13 pairs in batches of 5: as one batch; a last one that counts as the others would not."""

    def validated(size):
        data = PreferenceDataModule(PAIRS, batch_size=8, val_path=PAIRS, val_batch_size=size)
        return fit(data=data, trainer={"max_steps": 1})[2].callback_metrics

    small, whole = ({k: v.item() for k, v in validated(n).items() if k.startswith("val/")} for n in (5, 13))
    assert small == pytest.approx(whole, abs=1e-5)
    assert set(small) == {
        "val/loss",
        "val/accuracy",
        "val/margin",
        "val/calibration_error",
        "val/length_correlation",
    }


def scores_of(module, pairs) -> torch.Tensor:
    """Normalised scores of the chosen ones in their order, then of the rejected ones."""
    data = PreferenceDataModule(pairs, batch_size=1, shuffle=False)
    data.setup("fit")
    data.encode(module.tokenizer)
    with torch.no_grad():
        scores = torch.stack([module._scores(part.batch) for part in data.train_dataloader()], dim=1)
    return module.network.normalized(scores.flatten())


@pytest.mark.parametrize(("normalization", "mean", "std"), [("center", 0, None), ("standardize", 0, 1)])
def test_scores_are_normalized_on_the_training_data(fit, tmp_path, normalization, mean, std):
    data = PreferenceDataModule(PAIRS, batch_size=8)
    checkpoint = ModelCheckpoint(tmp_path, filename="every", every_n_train_steps=4, save_on_train_epoch_end=False)
    module, _, trainer = fit(data=data, normalization=normalization, callbacks=[checkpoint])
    scores = scores_of(module, PAIRS)
    assert scores.mean().item() == pytest.approx(mean, abs=1e-5)
    if std is None:
        assert module.network.score_scale == 1.0
    else:
        assert scores.std(correction=0).item() == pytest.approx(std, abs=1e-4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert stored["network.score_mean"] == module.network.score_mean != 0.0


def test_no_normalization(fit):
    module, *_ = fit(normalization="none")
    assert (module.network.score_mean, module.network.score_scale) == (0.0, 1.0)


def test_a_checkpoint_at_a_validation_has_the_scale_of_its_weights(fit, tmp_path):
    """So that the best weights can be exported as the last ones are."""
    best = ModelCheckpoint(tmp_path, filename="best", monitor="val/loss", save_top_k=-1)
    data = PreferenceDataModule(PAIRS, batch_size=8, val_path=PAIRS)
    trainer = {"val_check_interval": 1, "max_steps": 1}
    module, *_ = fit(data=data, callbacks=[best], trainer=trainer)
    stored = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert stored["network.score_mean"] == module.network.score_mean != 0.0


def test_the_checkpoint_of_the_last_step_has_the_scale_of_its_weights(fit, tmp_path):
    """A run that was killed behind it goes on with nothing to train, and its export is that of the whole run."""
    last = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=2, save_on_train_epoch_end=False)
    module, *_ = fit(normalization="standardize", callbacks=[last], trainer={"max_steps": 2})
    again = {"ckpt_path": tmp_path / "last.ckpt", "trainer": {"max_steps": 2}}
    resumed, recorder, _ = fit(normalization="standardize", **again)
    assert recorder.sizes == []
    assert resumed.network.score_mean == module.network.score_mean != 0.0
    assert resumed.network.score_scale == module.network.score_scale != 1.0


def test_few_pairs_are_enough_to_measure(fit):
    """8 of them: those of the first step, whatever the micro-batches."""
    data = PreferenceDataModule(PAIRS, batch_size=8, shuffle=False)
    module, *_ = fit(data=data, normalization_pairs=3, dtype=torch.float64, trainer={"accumulate_grad_batches": 3})
    assert scores_of(module, PAIRS[:8]).mean().item() == pytest.approx(0, abs=1e-6)
    assert abs(scores_of(module, PAIRS).mean().item()) > 1e-3


@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_run_ends_where_the_whole_one_ends(fit, tmp_path, at):
    """With Adam, in the middle of an epoch and in the second one."""
    adam = partial(torch.optim.AdamW, lr=1e-2)
    whole, *_ = fit(optimizer=adam)
    stop = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=at, save_on_train_epoch_end=False)
    fit(optimizer=adam, callbacks=[stop], trainer={"max_steps": at})
    resumed, *_ = fit(optimizer=adam, ckpt_path=tmp_path / "at.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_it_learns_to_rank_by_the_words(fit):
    module, recorder, _ = fit(optimizer=partial(torch.optim.AdamW, lr=1e-2), trainer={"max_steps": 40})
    chosen, rejected = scores_of(module, PAIRS).chunk(2)
    assert (chosen > rejected).all()
    assert recorder.logged[-1]["train/loss"] < 0.2 < recorder.logged[0]["train/loss"]


def test_other_data_are_refused(fit):
    rows = [{"prompt": "w1", "completion": " w2"}] * 4
    with pytest.raises(
        TypeError, match=r"learns from pairs.*one PreferenceBatch.*the data make SupervisedBatches\. Give it other data"
    ):
        fit(data=InstructDataModule(rows, batch_size=2))
    judged = [{**row, "label": True} for row in rows]
    with pytest.raises(TypeError, match="the data make UnpairedBatches"):
        fit(data=PreferenceDataModule(judged, batch_size=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"centering": -0.1}, "`centering` must be finite and >= 0, got -0.1"),
        ({"margin_scale": float("nan")}, "`margin_scale` must be finite and >= 0"),
        ({"normalization": "centre"}, "`normalization` must be one of none, center, standardize, got `centre`"),
        ({"normalization_pairs": 0}, "`normalization_pairs` must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        RewardModel(make_model(), **arguments)


def test_a_model_of_another_kind():
    with pytest.raises(TypeError, match=r"`model` must be the name or path of a model.*got int"):
        RewardModel(3)


def test_prediction_is_text_with_normalized_scores(fit):
    module, _, trainer = fit()
    module.network.score_mean.fill_(1.0)
    data = PreferenceDataModule(PAIRS[:3], batch_size=8)
    (rows,) = trainer.predict(module, datamodule=data)
    found = {row["chosen"]: row for row in rows}
    want = scores_of(module, PAIRS[:3])
    row = found[PAIRS[1]["chosen"].strip()]
    assert (row["prompt"], row["rejected"]) == (PAIRS[1]["prompt"], PAIRS[1]["rejected"].strip())
    assert [row["chosen_score"], row["rejected_score"]] == pytest.approx([want[1].item(), want[4].item()], abs=1e-5)


# ----------------------------------------------------------------------- the export, and its scores as a reward


@pytest.fixture(params=[False, True], ids=["at_eos", "before_eos"])
def exported(fit, tmp_path, request):
    """A trained module and the folder of its export."""
    module, *_ = fit(normalization="standardize", score_before_eos=request.param)
    module.save_pretrained(tmp_path / "export")
    return module, str(tmp_path / "export")


def test_the_learned_reward_gives_the_scores_of_training(exported):
    """Decoded text makes the tokens of the training data, in batches of any size and in the order asked for."""
    module, folder = exported
    want = scores_of(module, PAIRS).tolist()
    prompts = [pair["prompt"] for pair in PAIRS] * 2
    texts = [pair["chosen"].strip() for pair in PAIRS] + [pair["rejected"].strip() for pair in PAIRS]
    for batch_size in (1, 4, 64):
        reward = LearnedReward(folder, batch_size=batch_size, device="cpu")
        assert reward.learned(prompts, texts) == pytest.approx(want, abs=1e-5)
    assert reward.learned([], []) == []
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    end = [] if plain.config.score_before_eos else [1]
    ids = torch.tensor([module.tokenizer(PAIRS[1]["prompt"] + PAIRS[1]["chosen"])["input_ids"] + end])
    raw = plain(input_ids=ids).logits.item()
    assert (raw - plain.config.score_mean) / plain.config.score_scale == pytest.approx(want[1], abs=1e-5)


def test_chats_go_through_the_template_of_the_reward_model(exported):
    _, folder = exported
    reward = LearnedReward(folder, device="cpu")
    prompt = [{"role": "user", "content": "w1 w2"}]
    (chat,) = reward.learned([prompt], [[{"role": "assistant", "content": "w3"}]])
    (text,) = reward.learned(["User: w1 w2\n\nAssistant:"], [" w3"])  # the plain template of one that has none
    assert chat == pytest.approx(text, abs=1e-6)


def test_a_learned_reward_stays_out_of_the_checkpoint(exported, make_model, word_tokenizer, tmp_path):
    _, folder = exported
    rewards = load_reward_model(folder, device="cpu")
    assert rewards.names == ["learned"]
    model = BuiltModel(make_model(), tokenizer=word_tokenizer)
    module = GRPO(model, rewards, group_size=2, sampling=Sampling(max_new_tokens=4))
    checkpoint = ModelCheckpoint(tmp_path, filename="grpo", every_n_train_steps=2, save_on_train_epoch_end=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=PromptDataModule([{"prompt": f"w{n}"} for n in range(4)], batch_size=2))
    stored = torch.load(tmp_path / "grpo.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in stored["state_dict"]} == {"policy"}
    assert rewards.functions[0].__self__._network is not None
    assert not any(p.requires_grad for p in rewards.functions[0].__self__._network.parameters())


def test_a_sequence_too_long_for_the_reward_model(exported):
    _, folder = exported
    reward = LearnedReward(folder, device="cpu")
    with pytest.raises(ValueError, match=r"has 67 tokens.* has positions for 64.*max_new_tokens"):
        reward.learned(["w1 w2"], [" w3" * 64])


def test_wrong_arguments_of_a_learned_reward(exported, tmp_path):
    _, folder = exported
    with pytest.raises(ValueError, match="`batch_size` must be >= 1, got 0"):
        LearnedReward(folder, batch_size=0)
    with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, float64, got `half`"):
        LearnedReward(folder, dtype="half")
    with pytest.raises(FileNotFoundError, match="no folder"):
        LearnedReward(str(tmp_path / "nowhere"))
