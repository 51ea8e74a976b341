import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_posttrain.data import PromptDataModule
from lit_posttrain.data.sources.mixing import permutation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # few workers, tiny epochs

ROWS = [{"prompt": f"p{n}", "answer": str(n)} for n in range(10)]


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def prompts(rows) -> list[str]:
    return [row["prompt"] for row in rows]


def generated(split: str) -> list[dict]:
    return [{"prompt": f"{split} {n}"} for n in range(6 if split == "train" else 4)]


def test_a_file_without_validation(prompts_file):
    data = PromptDataModule(prompts_file, batch_size=4, seed=3)
    data.setup("fit")
    loader = data.train_dataloader()
    order = [f"p{n}" for n in permutation(10, seed=3)]
    assert [prompts(batch) for batch in loader] == [order[:4], order[4:8], order[8:]]
    assert data.val_dataloader() == []
    assert [prompts(batch) for batch in data.predict_dataloader()] == [[f"p{n}" for n in range(10)]]
    assert data.where("train", 2) == f"{prompts_file}:3"
    with pytest.raises(ValueError, match=r'`split` must be "train" or "validation", got \'val\''):
        data.where("val", 0)


def test_rows_are_read_once(prompts_file):
    (data := PromptDataModule(prompts_file)).setup("fit")
    prompts_file.unlink()
    data.setup("validate")
    assert prompts(data.train_rows) == [f"p{n}" for n in range(10)]


@pytest.mark.parametrize("option", [{"val_size": 3}, {"val_fraction": 0.3}])
def test_rows_held_out_are_not_trained_on(prompts_file, option):
    data = PromptDataModule(prompts_file, seed=5, val_batch_size=2, **option)
    data.setup("fit")
    held_out = sorted(permutation(10, seed=5)[:3])
    assert [prompts(batch) for batch in data.val_dataloader()] == [
        [f"p{n}" for n in held_out[:2]],
        [f"p{n}" for n in held_out[2:]],
    ]
    assert sorted(prompts(data.train_rows) + prompts(data.val_rows)) == [f"p{n}" for n in range(10)]
    assert data.where("validation", 0) == f"{prompts_file}:{held_out[0] + 1}"
    assert [prompts(batch) for batch in data.predict_dataloader()] == [
        prompts(batch) for batch in data.val_dataloader()
    ]


def test_a_validation_file_is_formatted_too_and_may_be_drawn_from(prompts_file):
    data = PromptDataModule([{"question": "t"}], val_path=prompts_file, prompt_template="{question}")
    with pytest.raises(
        ValueError, match=r"prompts\.jsonl: there is no column `question`. Found are `prompt`, `answer`"
    ):
        data.setup("fit")
    data = PromptDataModule([{"prompt": "t"}], val_path=prompts_file, val_size=4, columns=None)
    data.setup("fit")
    assert prompts(data.train_rows) == ["t"]
    assert prompts(data.val_rows) == [f"p{n}" for n in sorted(permutation(10, seed=0)[:4])]
    assert data.val_rows[0].keys() == {"prompt", "answer"}


def test_a_function_makes_both_splits():
    data = PromptDataModule(generated)
    data.setup("fit")
    assert prompts(data.val_rows) == [f"validation {n}" for n in range(4)]
    data = PromptDataModule(generated, val_size=2)
    data.setup("fit")
    assert prompts(data.train_rows) == [f"train {n}" for n in range(6)]
    assert prompts(data.val_rows) == [f"validation {n}" for n in sorted(permutation(4, seed=0)[:2])]
    data = PromptDataModule({"train": ROWS}.__getitem__, val_size=0)  # does not even ask for "validation"
    data.setup("fit")
    assert (len(data.train_rows), len(data.val_rows)) == (10, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be >= 1, got 0"),
        ({"val_batch_size": 0}, "`val_batch_size` must be >= 1, got 0"),
        ({"val_fraction": 1.0}, r"`val_fraction` must be from 0 to below 1, got 1\.0"),
        ({"val_size": -1}, "`val_size` must be a number of rows >= 0, got -1"),
        ({"val_size": 0.1}, r"`val_size` must be a number of rows >= 0, got 0\.1"),
        ({"val_size": 1, "val_fraction": 0.1}, "`val_fraction` or `val_size`"),
        ({"val_path": "a.jsonl", "val_split": "test"}, "at most one of .* got `val_path` and `val_split`"),
        ({"val_path": "a.jsonl", "val_fraction": 0.1}, "at most one of .* got `val_path` and `val_fraction`"),
        ({"val_split": "train"}, "`val_split` must differ from `split`, got 'train'"),
        ({"prompt_template": "{"}, "`prompt_template` must be"),
    ],
)
def test_options_are_checked_by_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        PromptDataModule("does/not/exist.jsonl", **options)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (ROWS, {"val_size": 10}, "no training row is left of 10 when 10 are held out"),
        (ROWS, {"val_size": 11}, "`val_size` must be at most the number of rows .*, 10, got 11"),
        (ROWS[:1], {"val_fraction": 0.5}, "no training row is left of 1 when 1 are held out"),
        (generated, {"val_size": 5}, "`val_size` must be at most the number of rows .*, 4, got 5"),
        (ROWS, {"val_split": "test"}, "a file has no splits"),
        ([], {}, "there are no rows"),
    ],
)
def test_what_depends_on_the_rows_is_checked_by_setup(path, options, message):
    data = PromptDataModule(path, **options)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_a_function_excludes_other_validation_rows():
    with pytest.raises(ValueError, match="`val_fraction` must not be given with a function"):
        PromptDataModule(generated, val_fraction=0.5)


def test_wrong_and_long_prompts_are_left_out_and_counted(prompts_file, word_tokenizer):
    given = [{"prompt": "w1"}, {"prompt": ""}, {"prompt": "w1 w1 w1"}, {"prompt": "w2"}]
    data = PromptDataModule(given, max_length=2, max_dropped=0.5, drop_invalid=True, shuffle=False)
    data.setup("fit")
    assert prompts(data.train_rows) == ["w1", "w1 w1 w1", "w2"]
    data.encode(word_tokenizer)  # as a Trainer has it done
    assert prompts(data.train_rows) == ["w1", "w2"]
    assert data.where("train", 1) == "row 3"
    with pytest.raises(ValueError, match=r"row 1: the prompt must not be empty, got ''. The row is"):
        PromptDataModule(given).setup("fit")


def test_rows_before_setup_are_refused():
    with pytest.raises(RuntimeError, match="call it first"):
        PromptDataModule(ROWS).train_dataloader()


def test_scores_are_kept_as_given():
    data = PromptDataModule(ROWS, scores={"success": "my_scores:success", "length": len})
    assert data.scores == {"success": "my_scores:success", "length": len}


def test_a_trainer_gives_each_rank_its_share():
    data = PromptDataModule(ROWS, batch_size=4, val_size=3, shuffle=False)
    data.setup("fit")
    whole = [prompts(batch) for batch in data.train_dataloader()]
    data.trainer = SimpleNamespace(global_rank=1, world_size=3, overfit_batches=0.0)
    assert [prompts(batch) for batch in data.train_dataloader()] == [batch[1::3] for batch in whole]
    assert [prompts(batch) for batch in data.val_dataloader()] == [prompts(data.val_rows)[1::3]]


class Recorder(LightningModule):
    """Writes down which prompts come by."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[str, int, list[str]]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(("train", self.current_epoch, prompts(batch)))
        return self.weight * len(batch)

    def validation_step(self, batch, batch_idx):
        self.seen.append(("validation", self.current_epoch, prompts(batch)))

    def predict_step(self, batch, batch_idx):
        return prompts(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", devices=1, **quiet, **options)


def test_lightning_takes_the_loaders(prompts_file):
    data = PromptDataModule(prompts_file, val_size=3, batch_size=4)
    module, trainer = Recorder(), make_trainer(fast_dev_run=True)
    trainer.fit(module, datamodule=data)
    assert [(kind, len(batch)) for kind, _, batch in module.seen] == [("train", 4), ("validation", 3)]
    assert module.weight.item() == pytest.approx(0.6)  # one step: 1 - 0.1 * 4
    assert trainer.predict(module, datamodule=data) == [prompts(data.val_rows)]


def test_lightning_tells_the_loader_the_epoch(prompts_file):
    module = Recorder()
    make_trainer(max_epochs=2, enable_model_summary=False).fit(module, datamodule=PromptDataModule(prompts_file))
    assert module.seen == [
        ("train", epoch, [f"p{n}" for n in permutation(10, seed=0, epoch=epoch)]) for epoch in range(2)
    ]


def test_overfit_batches_means_the_same_batches(prompts_file):
    module = Recorder()
    trainer = make_trainer(max_epochs=2, overfit_batches=1, enable_model_summary=False)
    trainer.fit(module, datamodule=PromptDataModule(prompts_file, batch_size=2))
    assert [batch for _, _, batch in module.seen] == [["p0", "p1"], ["p0", "p1"]]
