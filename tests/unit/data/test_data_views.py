"""Preferences seen as demonstrations and as prompts."""

import pytest

from lit_posttrain import PreferenceDataModule, PromptDataModule
from lit_posttrain.data.formats.encoder import Demonstration

PAIRS = [{"prompt": f"w{i // 2}", "chosen": f" w{i}", "rejected": " w9"} for i in range(6)]
TALK = "\n\nHuman: w1 w2 w3\n\nAssistant: w4"
DIALOGUES = [{"chosen": f"{TALK}", "rejected": "\n\nHuman: w1 w2 w3\n\nAssistant: w5"}]


def chosen(rows, **options) -> PreferenceDataModule:
    data = PreferenceDataModule(rows, view="chosen", **options)
    data.setup("fit")
    return data


def prompts(rows, **options) -> PromptDataModule:
    data = PreferenceDataModule(rows, view="prompts", **options).viewed()
    assert isinstance(data, PromptDataModule)
    data.setup("fit")
    return data


def test_the_chosen_completions_are_demonstrations(word_tokenizer):
    data = chosen(PAIRS, val_size=2, tokenizer=word_tokenizer)
    rows = data.examples("train") + data.examples("validation")
    assert sorted((row.prompt, row.completion) for row in rows) == [(f"w{i // 2}", f" w{i}") for i in range(6)]
    assert len(data.examples("validation")) == 2
    assert data.viewed() is data
    part = next(iter(data.train_dataloader()))
    assert part.normalizer == 2 * 4  # a word and the EOS of each


def test_dialogues_stay_messages():
    (row,) = chosen(DIALOGUES).examples("train")
    want = Demonstration([{"role": "user", "content": "w1 w2 w3"}], [{"role": "assistant", "content": "w4"}])
    assert row == want


def test_of_judged_completions_the_desirable_ones(word_tokenizer):
    judged = [{"prompt": "w1", "completion": f" w{i}", "label": i % 2 == 0} for i in range(4)]
    data = chosen(judged, tokenizer=word_tokenizer)
    assert [row.completion for row in data.examples("train")] == [" w0", " w2"]
    assert data.encoded("train")[0].dropped == []
    assert data.where("train", 1) == "row 2"
    with pytest.raises(ValueError, match="the rows given: there is nothing to learn from, no row is desirable"):
        chosen(judged[1:2])
    assert chosen(judged, val_path=judged[1:2]).examples("validation") == []


def test_a_dialogue_that_asks_nothing_is_wrong_or_left_out():
    said = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]
    rows = [*DIALOGUES, {"chosen": said, "rejected": [said[0], {"role": "assistant", "content": "b"}]}]
    with pytest.raises(ValueError, match="row 1: the last message of a prompt must be one to answer"):
        chosen(rows)
    assert len(chosen(rows, drop_invalid=True, max_dropped=0.5).examples("train")) == 1
    assert len(prompts(rows, drop_invalid=True, max_dropped=0.5).train_rows) == 1


def test_each_prompt_comes_once_and_none_of_validation_is_trained_on():
    data = prompts(PAIRS[1:], val_path=PAIRS[:1], batch_size=3, seed=4, shuffle=False)
    assert [row["prompt"] for row in data.train_rows] == ["w1", "w2"]
    assert [row["prompt"] for row in data.val_rows] == ["w0"]
    assert (data.batching.batch_size, data.batching.seed, data.batching.shuffle) == (3, 4, False)


def test_without_validation_rows_there_are_none():
    data = prompts(PAIRS)
    assert (len(data.train_rows), len(data.val_rows)) == (3, 0)


def test_long_prompts_are_left_out_and_counted(word_tokenizer, caplog):
    rows = [{"prompt": " ".join(["w1"] * n), "chosen": " w1", "rejected": " w2"} for n in (1, 2, 3)]
    data = prompts(rows, max_length=2, max_dropped=0.4, tokenizer=word_tokenizer)
    assert [row["prompt"] for row in data.train_rows] == ["w1", "w1 w1"]
    assert "1 of 3 rows are left out, first row 2: 3 tokens, more than `max_length` = 2." in caplog.text
    with pytest.raises(ValueError, match=r"1 of 3 rows would be left out, at most a share of `max_dropped` = 0\.1"):
        prompts(rows, max_length=2, tokenizer=word_tokenizer)


def test_an_unknown_view_is_refused():
    with pytest.raises(ValueError, match="`view` must be one of pairs, chosen, prompts, got 'chosn'"):
        PreferenceDataModule(PAIRS, view="chosn")
    with pytest.raises(ValueError, match=r"give the Trainer what `viewed\(\)` makes"):
        PreferenceDataModule(PAIRS, view="prompts").setup("fit")
