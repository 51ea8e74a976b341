import re

import pytest

from lit_posttrain.data import PromptDataModule
from lit_posttrain.data.row_engine import KeptRows, RowEngine
from lit_posttrain.data.sources.rows import Rows

USER = {"role": "user", "content": "hi"}


def rows(*given: dict) -> Rows:
    return Rows(list(given), source="a.jsonl", numbers=list(range(1, len(given) + 1)), by_line=True)


def apply(given: Rows, **options) -> KeptRows:
    """Read rows with these arguments of a `PromptDataModule`."""
    return RowEngine().read(given, PromptDataModule([], **options).format.reader)


def made(given: Rows, **options) -> list[dict]:
    return [example.values for example in apply(given, **options).examples]


def test_the_prompt_column_is_renamed_and_the_others_stay():
    given = rows({"question": "q", "answer": "1", "prompt": "replaced"}, {"question": "r", "extra": [2]})
    assert made(given, prompt_column="question") == [
        {"prompt": "q", "answer": "1", "extra": None},
        {"prompt": "r", "answer": None, "extra": [2]},
    ]
    assert apply(given, prompt_column="question").rows.where(1) == "a.jsonl:2"
    assert given[1] == {"question": "r", "extra": [2]}


def test_columns_chooses_and_renames():
    given = rows({"prompt": "q", "answer": "1", "truncated": True})
    assert made(given, columns={"target": "answer"}) == [{"prompt": "q", "target": "1"}]


def test_the_template_is_filled_from_the_columns():
    given = rows({"the question": "q {x}", "share": 0.25, "a.b": 3})
    (row,) = made(given, prompt_template="{{Q}} {the question}\nA ({share:.1f}, {a.b}):")
    assert row["prompt"] == "{Q} q {x}\nA (0.2, 3):"
    assert row["the question"] == "q {x}"


def test_of_several_templates_a_row_takes_the_first_without_an_empty_column():
    given = rows({"q": "x", "c": "y"}, {"q": "x", "c": ""})
    assert [row["prompt"] for row in made(given, prompt_template=["{q} ({c}):", "{q}:"])] == ["x (y):", "x:"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text.__class__}", "no column `text.__class__`. Found are `text`"),
        ("{text[0]}", "no column `text[0]`. Did you mean `text`? Found are `text`"),
        ("{txet}", "no column `txet`. Did you mean `text`? Found are `text`"),
        ("{text:{txet}}", "a.jsonl:1: `prompt_template` needs the column 'txet', this row has `text`"),
    ],
)
def test_the_template_reads_columns_and_nothing_else(template, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        apply(rows({"text": "abc"}), prompt_template=template)


def test_text_becomes_a_chat():
    (row,) = made(rows({"prompt": "hi"}), chat=True, system_prompt="be brief")
    assert row["prompt"] == [{"role": "system", "content": "be brief"}, USER]
    assert made(rows({"prompt": "hi"}), chat=True)[0]["prompt"] == [USER]


def test_messages_stay_messages_and_get_the_system_prompt():
    given = rows({"prompt": [{"role": "user", "content": "hi", "name": None}]})
    assert made(given, chat=True)[0]["prompt"] == [USER]
    assert made(given, system_prompt="s")[0]["prompt"] == [{"role": "system", "content": "s"}, USER]


@pytest.mark.parametrize(
    ("options", "row", "message"),
    [
        (
            {},
            {"promt": "q", "a": 1},
            r"no column `prompt`\. Did you mean `promt`\? Found are `promt`, `a`.*`prompt_column`",
        ),
        ({"columns": {"x": "anwser"}}, {"prompt": "q", "answer": "1"}, "no column `anwser`.*Did you mean `answer`"),
        ({"prompt_template": "{x} {y}"}, {"x": "q"}, r"no column `y`. Found are `x`"),
        ({"prompt_template": "{x}"}, {"x": None}, r"a\.jsonl:1: .*column `x` must be text or a number, got None"),
        ({"prompt_template": "{x:d}"}, {"x": "q"}, r"a\.jsonl:1: `prompt_template` cannot be filled: Unknown format"),
        ({}, {"prompt": " \n"}, r"a\.jsonl:1: the prompt must not be empty, got ' \\n'"),
        ({}, {"prompt": [{"role": "user", "content": ""}]}, r"a\.jsonl:1: the prompt must not be empty"),
        ({}, {"prompt": None}, r"a\.jsonl:1: a prompt must be text or a list of messages .*got None"),
        ({}, {"prompt": 3}, r"a\.jsonl:1: a prompt must be text or a list of messages .*got 3"),
        ({}, {"prompt": [{"role": "assistant", "content": "a"}]}, r"a\.jsonl:1: the last message"),
        ({}, {"prompt": "q", "completions": 1}, r"a\.jsonl: a column must not be called `completions`.*as `columns`"),
        ({"system_prompt": "s"}, {"prompt": "q"}, r"a\.jsonl:1: .*`chat=True`"),
        ({"system_prompt": "s"}, {"prompt": [{"role": "system", "content": "t"}, USER]}, r"a\.jsonl:1: .*already"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_place(options, row, message):
    with pytest.raises(ValueError, match=message):
        apply(rows(row), **options)


def test_a_row_without_the_prompt_of_the_others_is_named():
    with pytest.raises(ValueError, match=r"a\.jsonl:2: a prompt must be text"):
        apply(rows({"prompt": "q"}, {"answer": "1"}))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: `prompt_template` needs the column 'x', this row has `answer`"):
        apply(rows({"x": "q"}, {"answer": "1"}), prompt_template="{x}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_template": "{"}, r"`prompt_template` must be a template .*got '\{'"),
        ({"prompt_template": "no column"}, "must name a column in every pair of braces, got 'no column'"),
        ({"prompt_template": "{a} {}"}, r"must name a column in every pair of braces, got '\{a\} \{\}'"),
        ({"prompt_template": "{a}", "prompt_column": "q"}, "`prompt_column` or `prompt_template`, not both"),
        ({"columns": {"completions": "a"}}, "`columns` must not name a column `completions`"),
        ({"columns": {"prompt": "a"}}, "`columns` must not name a column `prompt`: set `prompt_column`"),
    ],
)
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        PromptDataModule([], **options)
