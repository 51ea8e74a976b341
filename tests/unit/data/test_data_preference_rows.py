"""Preferences as demonstrations and as prompts."""

import pytest

from lit_posttrain import InstructDataModule, PreferenceDataModule, PromptDataModule
from lit_posttrain.data.preference_rows import ChosenRows, PromptRows

PAIRS = [{"prompt": f"w{i // 2}", "chosen": f" w{i}", "rejected": " w9"} for i in range(6)]
TALK = "\n\nHuman: w1 w2 w3\n\nAssistant: w4"
DIALOGUES = [{"chosen": f"{TALK}", "rejected": "\n\nHuman: w1 w2 w3\n\nAssistant: w5"}]


class Counts:
    """Stands for a model: its tokenizer."""

    def __init__(self, tokenizer):
        self.load_tokenizer = lambda: tokenizer


def test_the_chosen_completions_are_demonstrations(word_tokenizer):
    data = InstructDataModule(ChosenRows(PreferenceDataModule(PAIRS, val_size=2)), tokenizer=word_tokenizer)
    data.setup("fit")
    rows = data.examples("train") + data.examples("validation")
    assert sorted((row.prompt, row.completion) for row in rows) == [(f"w{i // 2}", f" w{i}") for i in range(6)]
    assert len(data.examples("validation")) == 2


def test_dialogues_stay_messages():
    (row,) = ChosenRows(PreferenceDataModule(DIALOGUES))("train")
    assert row["prompt"] == [{"role": "user", "content": "w1 w2 w3"}]
    assert row["completion"] == [{"role": "assistant", "content": "w4"}]


def test_of_judged_completions_the_desirable_ones():
    judged = [{"prompt": "w1", "completion": f" w{i}", "label": i % 2 == 0} for i in range(4)]
    assert [row["completion"] for row in ChosenRows(PreferenceDataModule(judged))("train")] == [" w0", " w2"]


def test_each_prompt_comes_once_and_none_of_validation_is_trained_on():
    preferences = PreferenceDataModule(PAIRS[1:], val_path=PAIRS[:1])
    data = PromptDataModule(PromptRows(preferences))
    data.setup("fit")
    assert [row["prompt"] for row in data.train_rows] == ["w1", "w2"]
    assert [row["prompt"] for row in data.val_rows] == ["w0"]


def test_without_validation_rows_there_are_none():
    data = PromptDataModule(PromptRows(PreferenceDataModule(PAIRS)))
    data.setup("fit")
    assert (len(data.train_rows), len(data.val_rows)) == (3, 0)


def test_long_prompts_are_left_out_and_counted(word_tokenizer, caplog):
    rows = [{"prompt": " ".join(["w1"] * n), "chosen": " w1", "rejected": " w2"} for n in (1, 2, 3)]
    with caplog.at_level("INFO"):
        made = PromptRows(PreferenceDataModule(rows), Counts(word_tokenizer), max_length=2)("train")
    assert [row["prompt"] for row in made] == ["w1", "w1 w1"]
    assert "1 of 3 prompts (train) have more than 2 tokens and are left out" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"), [({"max_length": 0}, "must be >= 1"), ({"max_length": 4}, "needs a `model`")]
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        PromptRows(PreferenceDataModule(PAIRS), **arguments)
