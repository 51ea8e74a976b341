"""Rows as files have them, to demonstrations, comparisons and judgements."""

import re

import pytest

from lit_posttrain.data.formats.encoder import Comparison, Demonstration, Judgment
from lit_posttrain.data.formats.instruction import InstructFormat
from lit_posttrain.data.formats.preference import PreferenceFormat
from lit_posttrain.data.formats.templates import ChatShape, Value
from lit_posttrain.data.sources.rows import Rows

ASK, YES, NO = ({"role": r, "content": c} for r, c in [("user", "q"), ("assistant", "yes"), ("assistant", "no")])
HH = "\n\nHuman: hi\n\nAssistant: {}\n\nHuman: {}\n\nAssistant: {}"


def read(options, row: dict):
    """Read one row by a format, or by the options of an `InstructFormat`."""
    chosen = InstructFormat(**options) if isinstance(options, dict) else options
    return chosen.reader(Rows([row], source="a.jsonl"))(row)


@pytest.mark.parametrize(
    ("options", "row", "want"),
    [
        ({}, {"text": "all of it"}, Demonstration("", "all of it")),
        ({}, {"prompt": "q", "completion": " a", "text": "x"}, Demonstration("q", " a")),
        ({}, {"messages": [ASK, {**YES, "name": None}]}, Demonstration([], [ASK, YES])),
        ({}, {"prompt": [ASK], "completion": "yes"}, Demonstration([ASK], [YES])),
        ({}, {"prompt": [ASK], "completion": [YES]}, Demonstration([ASK], [YES])),
        ({"shape": ChatShape(chat=True)}, {"prompt": "q", "completion": "yes"}, Demonstration([ASK], [YES])),
        (
            {"shape": ChatShape(system_prompt="s")},
            {"messages": [ASK, YES]},
            Demonstration([], [{"role": "system", "content": "s"}, ASK, YES]),
        ),
        ({"format": "text", "text": "prompt"}, {"prompt": "q", "completion": "a"}, Demonstration("", "q")),
        (
            {"prompt": Value("prompt", "q"), "completion": Value("completion", "a")},
            {"q": "x", "a": "y"},
            Demonstration("x", "y"),
        ),
        (
            {
                "prompt": Value("prompt", template=["{q} ({c}):", "{q}:"]),
                "completion": Value("completion", template=" {a}"),
            },
            {"q": "x", "c": "", "a": 4},
            Demonstration("x:", " 4"),
        ),
        (
            {"prompt": Value("prompt", template=["{q} ({c}):", "{q}:"])},
            {"q": "x", "c": "y", "completion": "z"},
            Demonstration("x (y):", "z"),
        ),
    ],
)
def test_demonstrations(options, row, want):
    assert read(options, row) == want


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"prompt": "q", "chosen": " yes", "rejected": " no"}, Comparison("q", " yes", " no")),
        ({"prompt": "q", "chosen": " yes", "rejected": "", "margin": "1.5"}, Comparison("q", " yes", "", 1.5)),
        ({"prompt": [ASK], "chosen": [YES], "rejected": "no"}, Comparison([ASK], [YES], [NO])),
        ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, Comparison([ASK], [YES], [NO])),
        ({"prompt": "q", "chosen": [ASK, YES], "rejected": [ASK, NO]}, Comparison([ASK], [YES], [NO])),
        ({"chosen": "To be or not", "rejected": "To be or never"}, Comparison("To be or", " not", " never")),
        (
            {"chosen": HH.format("I", "go on", "I can"), "rejected": HH.format("I", "go on", "I cannot")},
            Comparison(
                [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "I"},
                    {"role": "user", "content": "go on"},
                ],
                [{"role": "assistant", "content": "I can"}],
                [{"role": "assistant", "content": "I cannot"}],
            ),
        ),
        ({"prompt": "q", "completion": "a", "label": True}, Judgment("q", "a", True)),
        ({"prompt": "q", "completion": "a", "label": "0"}, Judgment("q", "a", False)),
    ],
)
def test_preferences(row, want):
    assert read(PreferenceFormat(), row) == want


def test_a_margin_column_that_was_named_must_be_there():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "points": 2}
    assert read(PreferenceFormat(margin="points"), row).margin == 2.0
    with pytest.raises(ValueError, match="no column `score`"):
        read(PreferenceFormat(margin="score"), row)


@pytest.mark.parametrize(
    ("options", "row", "message"),
    [
        (
            {},
            {"promt": "q", "completion": "a"},
            "a.jsonl: there is no column `prompt`. Did you mean `promt`? Found are `promt`, `completion`; the format "
            "prompt_completion needs `prompt`, `completion`. Name other columns with `prompt_column`",
        ),
        ({"format": "messages"}, {"text": "q"}, "no column `messages`. Found are `text`; the format messages needs"),
        ({}, {"text": 3}, "`text` must be text, got 3"),
        ({}, {"messages": "hi"}, "`messages` must be text or a list of messages"),
        ({}, {"messages": [{"role": "user"}]}, "message 0 must have a `role` and a `content`"),
        ({}, {"prompt": " ", "completion": "a"}, "the prompt must not be empty"),
        ({}, {"prompt": [ASK, YES], "completion": "a"}, "the last message of a prompt must be one to answer"),
        (
            {},
            {"prompt": "q", "completion": [YES]},
            "`completion` holds messages and the prompt is text: set `chat=True`",
        ),
        ({}, {"prompt": [ASK], "completion": [ASK]}, "`completion` must begin with the assistant's message"),
        ({}, {"prompt": "q", "completion": None}, "`completion` must be text or a list of messages"),
        (
            {"prompt": Value("prompt", template="{x}")},
            {"x": None, "completion": "a"},
            "column `x` must be text or a number, got None",
        ),
        (
            {"prompt": Value("prompt", template=["{x}", "{y}"])},
            {"x": "", "y": "", "completion": "a"},
            "no `prompt_template` can be filled",
        ),
        (PreferenceFormat(), {"prompt": "q", "chosen": "a"}, "no column `rejected`. Found are `prompt`, `chosen`; the"),
        (
            PreferenceFormat(),
            {"prompt": "q", "chosen": "a", "rejected": "a"},
            "are the same, 'a': there is no preference",
        ),
        (PreferenceFormat(), {"chosen": "one", "rejected": "two"}, "no common beginning to take for the prompt"),
        (PreferenceFormat(), {"chosen": "a b", "rejected": "a b"}, "the chosen and the rejected dialogue are the same"),
        (PreferenceFormat(), {"chosen": [ASK, YES], "rejected": [ASK, YES]}, "dialogue are the same"),
        (PreferenceFormat(), {"chosen": [ASK, YES], "rejected": [ASK]}, "2 and 1 messages of which 1 are the same"),
        (PreferenceFormat(), {"chosen": [ASK, YES], "rejected": "x"}, "must both be text or both be messages"),
        (
            PreferenceFormat(),
            {"chosen": HH.format("I", "a", "b"), "rejected": HH.format("I", "c", "b")},
            "must part at an assistant's message, they do at message 2",
        ),
        (
            PreferenceFormat(),
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"},
            "the margin must be a finite number, got 'much'",
        ),
        (PreferenceFormat(), {"prompt": "q", "completion": "a", "label": "good"}, "`label` must be true or false"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(options, row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(options, row)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InstructFormat(format="chat"), "`format` must be one of text, prompt_completion, messages or null"),
        (lambda: Value("prompt", "b", "{a}"), "`prompt_column` or `prompt_template`, not both, got 'b' and '{a}'"),
        (lambda: Value("completion", "b", "{a}"), "`completion_column` or `completion_template`, not both"),
        (lambda: Value("prompt", template="none"), "must name a column in every pair of braces"),
        (
            lambda: InstructFormat(format="text", prompt=Value("prompt", template="{a}")),
            "is for the format",
        ),
        (lambda: PreferenceFormat(format="pairs"), "`format` must be one of explicit, implicit, unpaired or null"),
        (
            lambda: PreferenceFormat(format="implicit", prompt=Value("prompt", template="{a}")),
            "with the format implicit",
        ),
        (lambda: Value("prompt", template=[]), "got an empty list"),
        (lambda: Value("completion", template="{"), "`completion_template` must be a template such as"),
    ],
)
def test_options_are_checked_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
