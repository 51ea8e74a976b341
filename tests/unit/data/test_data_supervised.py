"""The DataModules: reading, leaving out, bad input with its place, and a Trainer that stops and goes on."""

import copy
import json

import pytest
import torch
from lightning import Callback
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, OnExceptionCheckpoint

from lit_posttrain.batching import PreferenceBatch, SupervisedBatch, UnpairedBatch
from lit_posttrain.data import InstructDataModule, PreferenceDataModule
from lit_posttrain.modules.exact_resume import ExactResume

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

ROWS = [{"prompt": f"w{n}", "completion": " w1" * (1 + n % 4)} for n in range(11)]
PAIRS = [{"prompt": f"w{n}", "chosen": " w1 w2", "rejected": " w3", "margin": n} for n in range(5)]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ready(data, tokenizer):
    data.setup("fit")
    data.encode(tokenizer)
    return data


def test_rows_become_steps(word_tokenizer):
    data = ready(InstructDataModule(ROWS, batch_size=4, shuffle=False), word_tokenizer)
    first, *_, last = data.train_dataloader()
    assert isinstance(first.batch, SupervisedBatch)
    assert first.batch.prompt_ids.flatten().tolist() == [2, 3, 4, 5]
    assert first.normalizer == 2 + 3 + 4 + 5  # words and EOS
    assert (len(last), data.longest, data.val_dataloader()) == (3, 6, [])
    assert data.where("train", 2) == "row 2"


def test_the_constructor_may_have_the_tokenizer(word_tokenizer):
    data = InstructDataModule(ROWS, tokenizer=word_tokenizer, val_size=3, val_batch_size=2)
    data.setup("fit")
    (validation,) = data.val_dataloader()
    assert [len(part) for part in validation] == [2, 1]
    assert [len(part) for part in data.predict_dataloader()] == [2, 1]
    data.sources = None  # read once
    data.setup("validate")


def test_words_that_the_tokenizer_does_not_know_are_counted(word_tokenizer, caplog):
    pairs = [
        {"prompt": "w1 foo", "chosen": " w2", "rejected": " bar bar w3"},
        {"prompt": "w1", "chosen": " w4", "rejected": " w5"},
    ]
    ready(PreferenceDataModule(pairs), word_tokenizer)
    # the prompt is there twice, and every completion has its EOS
    assert "the rows given: 4 of 16 tokens are `w0`, words that the tokenizer does not know" in caplog.text
    caplog.clear()
    ready(PreferenceDataModule(pairs[1:]), word_tokenizer)
    ready(InstructDataModule([{"prompt": "w1", "completion": " w4"}]), word_tokenizer)
    assert "does not know" not in caplog.text
    both = copy.deepcopy(word_tokenizer)
    both.eos_token = "w0"  # as GPT-2's, whose EOS is its unknown token
    ready(PreferenceDataModule(pairs), both)
    assert "does not know" not in caplog.text


def test_worker_processes_make_the_same_tokens(word_tokenizer):
    alone, helped = (
        ready(InstructDataModule(ROWS, num_workers=count), word_tokenizer).encoded("train")[0] for count in (0, 1)
    )
    assert alone.examples == helped.examples


def test_pairs_and_judgments(word_tokenizer):
    part = next(iter(ready(PreferenceDataModule(PAIRS, shuffle=False), word_tokenizer).train_dataloader()))
    assert isinstance(part.batch, PreferenceBatch)
    assert (part.normalizer, part.batch.margins.tolist()) == (5, [0, 1, 2, 3, 4])
    judged = [{"prompt": "w1", "completion": f" w{n}", "label": n % 2} for n in range(4)]
    part = next(iter(ready(PreferenceDataModule(judged, shuffle=False), word_tokenizer).train_dataloader()))
    assert isinstance(part.batch, UnpairedBatch)
    assert part.batch.labels.tolist() == [False, True, False, True]
    own, other = part.batch.halves(part.batch.sequences.completion_ids[:, 0])
    assert other.tolist() == own.roll(-1).tolist()


def test_several_sources_with_weights(tmp_path, word_tokenizer):
    paths = [write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", [{"text": "w9 w9"}] * 2)]
    data = ready(InstructDataModule(paths, weights=[1, 3], val_fraction=0.5, batch_size=100), word_tokenizer)
    (step,) = data.train_dataloader()
    assert len(step) == 5 + 3 * 1  # half of each source is held out
    assert sum(len(part) for loader in data.val_dataloader() for part in loader) == 6 + 1
    assert data.where("train", 5).startswith(f"{tmp_path / 'b.jsonl'}:")
    for options, message in [
        ({"weights": [1]}, "`weights` must be as many as the sources in `path`, 2, got 1"),
        ({"weights": [1, 0]}, "`weights` must be numbers > 0, got 0"),
        ({"val_size": 2}, "`val_size` must not be given with several sources"),
    ]:
        with pytest.raises(ValueError, match=message):
            InstructDataModule(paths, **options)
    mixed = [write(tmp_path / "c.jsonl", PAIRS), write(tmp_path / "d.jsonl", [{**ROWS[0], "label": True}])]
    with pytest.raises(ValueError, match=r"one kind, got .*c\.jsonl \(comparisons\), .*d\.jsonl \(judgments\)"):
        PreferenceDataModule(mixed).setup("fit")


def test_long_rows_are_left_out_and_counted(word_tokenizer, caplog, tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    data = ready(InstructDataModule(path, max_length=5, max_dropped=0.2), word_tokenizer)
    assert len(data.encoded("train")[0]) == 9
    assert f"{path}: 2 of 11 rows are left out, first {path}:4: 6 tokens, more than `max_length` = 5." in caplog.text
    assert data.where("train", 3) == f"{path}:5"
    message = r"2 of 11 rows would be left out, at most a share of `max_dropped` = 0\.1 may be.*The first is .*:4: 6 "
    with pytest.raises(ValueError, match=message):
        ready(InstructDataModule(path, max_length=5), word_tokenizer)
    with pytest.raises(ValueError, match=r"11 of 11 rows would be left out.*one row must stay"):
        ready(InstructDataModule(path, max_length=2, max_dropped=1.0), word_tokenizer)
    pairs = ready(
        PreferenceDataModule([*PAIRS, {**PAIRS[0], "rejected": " w1" * 9}], max_length=6, max_dropped=0.5),
        word_tokenizer,
    )
    assert len(pairs.encoded("train")[0]) == 5  # one of the pair was too long


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "w1", "completion": " "}, r"a\.jsonl:12: there is no supervised token: the completion is empty"),
        (
            {"prompt": "", "completion": "w1"},
            r"a\.jsonl:12: the prompt must not be empty, got ''\. The row is \{'comple",
        ),
        ({"prompt": "w1"}, r"a\.jsonl:12: `completion` must be text or a list of messages"),
    ],
)
def test_a_wrong_row_is_named_or_left_out(row, message, tmp_path, word_tokenizer):
    path = write(tmp_path / "a.jsonl", [*ROWS, row])
    with pytest.raises(ValueError, match=message):
        ready(InstructDataModule(path), word_tokenizer)
    data = ready(InstructDataModule(path, drop_invalid=True), word_tokenizer)
    assert len(data.encoded("train")[0]) == 11
    assert len(data.encoded("train")[0].dropped) == 1
    with pytest.raises(ValueError, match=r"1 of 12 rows would be left out.*a\.jsonl:12"):
        ready(InstructDataModule(path, drop_invalid=True, max_dropped=0.0), word_tokenizer)


def test_a_dialogue_without_an_answer_and_a_pair_of_equal_tokens(tmp_path, word_tokenizer):
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "w1"}]}])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: there is no supervised token"):
        ready(InstructDataModule(path), word_tokenizer)
    path = write(tmp_path / "b.jsonl", [{"prompt": "w1", "chosen": " w2", "rejected": "  w2"}])
    with pytest.raises(ValueError, match=r"b\.jsonl:1: the chosen and the rejected completion are the same tokens"):
        ready(PreferenceDataModule(path), word_tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a\.jsonl: the file is empty"),
        ('{"prompt": "w1",}\n', r"a\.jsonl:1: broken JSON"),
        ("[1]\n", "a JSON object|one JSON object"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        InstructDataModule(str(tmp_path / "a.jsonl")).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be >= 1, got 0"),
        ({"num_workers": -1}, "`num_workers` must be >= 0, got -1"),
        ({"max_length": 1}, "`max_length` must be >= 2, got 1"),
        ({"max_dropped": 2.0}, "`max_dropped` must be a share from 0 to 1"),
        ({"format": "x"}, "`format` must be one of"),
    ],
)
def test_options_are_checked_by_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        InstructDataModule("does/not/exist.jsonl", **options)


def test_what_is_not_there_yet_is_said():
    data = InstructDataModule(ROWS)
    with pytest.raises(RuntimeError, match="call it first"):
        data.encode(None)
    with pytest.raises(RuntimeError, match="not encoded yet"):
        data.train_dataloader()


class Learner(LightningModule):
    """A weight for each token; writes down what comes by."""

    def __init__(self, tokenizer=None) -> None:
        super().__init__()
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(40))
        self.seen: list[list[int]] = []

    def training_step(self, part, batch_idx):
        batch = part.batch
        self.seen.append(batch.prompt_ids[:, -1].tolist())
        loss = (self.weight.log_softmax(0)[batch.completion_ids] * -batch.loss_mask.float()).sum()
        return loss / part.normalizer * self.trainer.accumulate_grad_batches

    def validation_step(self, part, batch_idx):
        self.log("val/loss", part.normalizer, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def configure_callbacks(self):
        return [ExactResume()]


def fit(tokenizer, folder=None, *, callbacks=(), ckpt_path=None, data=None, kind=Learner, **trainer):
    keep = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)] if folder else []
    engine = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(keep or callbacks),
        callbacks=[*keep, *callbacks],
        **trainer,
    )
    module = kind(tokenizer)
    data = data or InstructDataModule(ROWS, batch_size=4, seed=1)
    engine.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module, engine


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_of_two_epochs_can_be_gone_on_from(word_tokenizer, tmp_path, accumulate):
    options = {"max_epochs": 3, "accumulate_grad_batches": accumulate}
    whole, engine = fit(word_tokenizer, tmp_path, **options)
    assert engine.global_step == 9
    for step in range(1, 9):
        resumed, engine = fit(word_tokenizer, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert engine.global_step == 9
        assert resumed.seen == whole.seen[step * accumulate :], f"resumed at step {step}"
        assert torch.equal(resumed.weight, whole.weight)


def test_the_end_of_an_epoch_can_be_gone_on_from(word_tokenizer, tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    whole, _ = fit(word_tokenizer, max_epochs=3, callbacks=[keep])
    for epoch in (0, 1):
        resumed, engine = fit(word_tokenizer, max_epochs=3, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert engine.global_step == 9
        assert resumed.seen == whole.seen[3 * (epoch + 1) :]
        assert torch.equal(resumed.weight, whole.weight)


class Scheduled(Learner):
    """Asks how long it will be, as schedules do: then Lightning does not restore the loader itself."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 7
        return super().configure_optimizers()


def test_a_module_that_asks_for_the_number_of_steps(word_tokenizer, tmp_path):
    whole, _ = fit(word_tokenizer, tmp_path, max_steps=7, kind=Scheduled)
    for step in range(1, 7):
        resumed, _ = fit(word_tokenizer, max_steps=7, kind=Scheduled, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:], f"resumed at step {step}"
        assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_finished_run_goes_on_with_more_steps(word_tokenizer, tmp_path, steps):
    whole, _ = fit(word_tokenizer, max_steps=7)
    _, first = fit(word_tokenizer, max_steps=steps)
    first.save_checkpoint(tmp_path / "end.ckpt")
    resumed, _ = fit(word_tokenizer, max_steps=7, ckpt_path=tmp_path / "end.ckpt")
    assert resumed.seen == whole.seen[steps:]
    assert torch.equal(resumed.weight, whole.weight)


class FailsOnce(Callback):
    """Raises after a batch was fetched and before it was used."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1 and trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_an_interrupted_batch_comes_again(word_tokenizer, tmp_path):
    whole, _ = fit(word_tokenizer, max_epochs=2)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(word_tokenizer, max_epochs=2, callbacks=[OnExceptionCheckpoint(tmp_path, "stopped"), FailsOnce()])
    resumed, _ = fit(word_tokenizer, max_epochs=2, ckpt_path=tmp_path / "stopped.ckpt")
    assert resumed.seen == whole.seen[4:]
    assert torch.equal(resumed.weight, whole.weight)


def test_other_rows_or_steps_in_the_middle_of_an_epoch_are_refused(word_tokenizer, tmp_path):
    fit(word_tokenizer, tmp_path, max_steps=2)
    for data, message in [
        (InstructDataModule(ROWS, batch_size=5, seed=1), r"\(`batch_size`: 4 -> 5\)"),
        (InstructDataModule(ROWS[1:], batch_size=4, seed=1), r"\(`rows`: 11 rows with digest \w+ -> 10 rows with"),
        (InstructDataModule(ROWS[::-1], batch_size=4, seed=1), r"\(`rows`: 11 rows with digest \w+ -> 11 rows with"),
        (InstructDataModule(ROWS, batch_size=4), r"\(`seed`: 1 -> 0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(word_tokenizer, data=data, max_steps=4, ckpt_path=tmp_path / "step=1.ckpt")
    split = fit(word_tokenizer, max_steps=4, accumulate_grad_batches=2, ckpt_path=tmp_path / "step=1.ckpt")[0]
    assert len(split.seen) == 3 * 2  # between two steps the number of micro-batches may change


def test_micro_batches_do_not_change_the_result(word_tokenizer):
    one, two = (fit(word_tokenizer, max_steps=3, accumulate_grad_batches=count)[0] for count in (1, 3))
    torch.testing.assert_close(one.weight, two.weight)


def test_overfit_batches_means_the_same_batches(word_tokenizer):
    module, _ = fit(word_tokenizer, max_epochs=2, overfit_batches=1)
    assert module.seen == [[2, 3, 4, 5]] * 2


def test_a_trainer_needs_a_tokenizer_from_somebody(word_tokenizer):
    with pytest.raises(ValueError, match="`tokenizer` is needed: Learner has no attribute `tokenizer`"):
        fit(None, max_steps=1)
    with pytest.raises(ValueError, match="GradientAccumulationScheduler does not work here"):
        fit(word_tokenizer, max_steps=1, callbacks=[GradientAccumulationScheduler({0: 2})])
