"""Bad input ends in a message that says what is wrong and what to do, and leaves nothing half-written."""

import json

import pytest

from lit_posttrain.app.run import run
from lit_posttrain.models.loading import Pretrained
from tests.composing import compose_train
from tests.failing import GRID, SMALL, assert_says, failure

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PROMPTS = [*SMALL, "data=prompts"]
GOOD_REWARD = "reward.path=lit_posttrain.rewards.gsm8k:exact_match"


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights is a failure of its own."""
    monkeypatch.setattr(Pretrained, "load_base", lambda self: pytest.fail("weights were loaded"))


def write_rows(path, rows) -> str:
    """A JSONL file, as an override."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


def test_the_same_without_a_mistake_is_a_run(tmp_path):
    """What the others are measured against: a run of this size ends, and leaves its results."""
    run(
        compose_train(
            *PROMPTS,
            write_rows(tmp_path / "p.jsonl", [{"prompt": "a", "answer": "#### 1"}]),
            GOOD_REWARD,
            run_dir=tmp_path / "run",
        )
    )
    assert {"summary.json", "export"} <= {path.name for path in (tmp_path / "run").iterdir()}


# Data.

ROWS = [
    {"prompt": "grid 5 5 walls a1 start b1 goal c1 path", "completion": " c1" * length} for length in (1, 2, 3, 150)
]
SUPERVISED = ["algo=sft", "data=instruct", "trainer.max_steps=1", "val_every_steps=null", "logger=csv"]


def test_max_length_beyond_the_context(tmp_path):
    rows = [*SUPERVISED, write_rows(tmp_path / "rows.jsonl", ROWS), "data.max_length=512", "data.max_dropped=0.9"]
    assert_says(failure(tmp_path / "run", *rows), "the model's context is 128 tokens", "`data.max_length`")


def test_validation_without_rows(tmp_path):
    rows = [*SUPERVISED, write_rows(tmp_path / "rows.jsonl", ROWS[:3]), "mode=validate"]
    assert_says(failure(tmp_path / "run", *rows), "nothing to validate on", "`data.val_fraction=0.1`")
    assert not (tmp_path / "run" / "validation.json").exists()


def test_prediction_of_rows_to_learn_from(tmp_path):
    rows = [*SUPERVISED, write_rows(tmp_path / "rows.jsonl", ROWS[:3]), "mode=predict"]
    assert_says(failure(tmp_path / "run", *rows), "prediction completes prompts", "`data=prompts data.path=")


def test_no_prompt_column(tmp_path, no_weights):
    path = write_rows(tmp_path / "p.jsonl", [{"question": "2 + 2", "answer": "4"}])
    assert_says(
        failure(tmp_path / "run", *PROMPTS, path, GOOD_REWARD),
        f"{tmp_path}/p.jsonl: there is no column `prompt`. Found are `question`, `answer`; ",
        "prompt_column`",
    )


def test_empty_file(tmp_path, no_weights):
    assert_says(
        failure(tmp_path / "run", *PROMPTS, write_rows(tmp_path / "p.jsonl", []), GOOD_REWARD),
        f"{tmp_path}/p.jsonl: the file is empty; at least one row is needed.",
    )


def test_broken_line(tmp_path, no_weights):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"\n')
    assert_says(
        failure(tmp_path / "run", *PROMPTS, f"data.path={tmp_path}/p.jsonl", GOOD_REWARD),
        f"{tmp_path}/p.jsonl:2",
        "JSON",
    )


def test_missing_file(tmp_path, no_weights):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    assert_says(
        failure(tmp_path / "run", *PROMPTS, f"data.path={tmp_path}/promts.jsonl", GOOD_REWARD),
        "was not found: there is no file",
        "Did you mean `prompts.jsonl`?",
    )


def test_prompt_longer_than_the_context(tmp_path):
    rows = [{"prompt": "move"}, {"prompt": "move " * 400}, {"prompt": "move"}]
    assert_says(
        failure(tmp_path / "run", *PROMPTS, write_rows(tmp_path / "p.jsonl", rows), GOOD_REWARD),
        f"{tmp_path}/p.jsonl:2: the prompt has 400 tokens and `sampling.max_new_tokens` is 4",
        "the model's context is 128 tokens",
        "Shorten or remove the prompt, or lower `max_new_tokens`",
    )


# Rewards.


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("raise KeyError('answer')", ["`mine` raised KeyError: 'answer'", "first completion: ", "return None where"]),
        ("return [float('nan')] * len(completions)", ["`mine` must return values that are finite", "return None"]),
        ("return [1.0]", ["`mine` must return one value per completion", "got 1 values for 2 completions"]),
    ],
)
def test_reward_that_fails(tmp_path, body, parts):
    (tmp_path / "my_rewards.py").write_text(f"def mine(completions):\n    {body}\n")
    assert_says(failure(tmp_path / "run", *GRID, "reward=custom", f"reward.path={tmp_path}/my_rewards.py:mine"), *parts)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("my_rewards.py:mien", ["must hold `mien` to load", "there are `mine`"]),
        ("my_reward.py:mine", ["must exist to load", "there is no"]),
        ("my_rewards.py", ["must be 'package.module:function' or 'file.py:function'"]),
    ],
)
def test_reward_that_is_not_there(tmp_path, no_weights, path, parts):
    (tmp_path / "my_rewards.py").write_text("def mine(completions):\n    return [0.0] * len(completions)\n")
    assert_says(failure(tmp_path / "run", *GRID, "reward=custom", f"reward.path={tmp_path}/{path}"), *parts)


# Numbers.


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("algo.group_size=1", "`group_size` must be >= 2, got 1: GRPO compares completions of one prompt."),
        (
            "algo.clip_low=1",
            "`clip_low` must be in [0, 1), got 1: the ratio is clipped to [1 - clip_low, 1 + clip_high].",
        ),
        ("algo.clip_high=1.5", "`clip_high` must be in [0, 1), got 1.5"),
        ("algo.sampling.temperature=-1", "`sampling.temperature` must be >= 0, got -1: logits are divided by it"),
        (
            "algo.sampling.temperature=0",
            "`sampling.temperature` must be > 0 to train: greedy completions of one prompt",
        ),
        ("algo.scale=groups", "`algo.scale` must be one of group, batch, none, got `groups`."),
        ("data.batch_size=0", "`batch_size` must be >= 1, got 0."),
        ("model.dtype=float16", "`model.dtype` must be one of float32, bfloat16, float64, auto, got `float16`"),
    ],
)
def test_number_out_of_range(tmp_path, no_weights, override, text):
    assert_says(failure(tmp_path / "run", *GRID, override), text)
