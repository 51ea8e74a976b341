"""What a data configuration teaches, on the terminal."""

import json

import pytest

from lit_posttrain.app.inspect import main

SMALL = ["data.path.num_validation=2", "--rows", "1"]


def test_supervised_tokens_are_marked(capsys):
    assert main(["data=gridworld_sft", "data.path.num_demonstrations=3", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "train: 3 rows, 0 left out" in out
    first = next(line for line in out.splitlines() if line.startswith("grid"))
    prompt, completion = first.split(" path«")
    assert prompt.startswith("grid 5 5 walls")
    assert completion.endswith("<eos>»")
    assert "<unk>" not in out


def test_pairs_and_prompts(capsys, tmp_path):
    assert main(["data=gridworld_preferences", "data.path.num_pairs=3", *SMALL]) == 0
    assert "row 0 chosen (margin " in capsys.readouterr().out
    assert main(["data=gridworld", "data.path.num_prompts=3", *SMALL]) == 0
    assert "train: 3 prompts" in capsys.readouterr().out
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "grid", "completion": "path", "label": False}))
    assert main(["data=preferences", f"data.path={tmp_path / 'a.jsonl'}"]) == 0
    assert "a.jsonl:1 undesirable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=instruct"], "`data.path` must be given"),
        (["data=instrct"], "Did you mean `instruct`?"),
        (["data=instruct", "data.path=/nowhere/a.jsonl"], "there is no folder /nowhere"),
        (["data=instruct", "data.path=a.jsonl", "+data.max_len=3"], "there is no option `data.max_len`"),
    ],
)
def test_errors_are_a_message(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
