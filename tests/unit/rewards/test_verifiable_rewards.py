"""The verifiable rewards: gridworld paths and GSM8K answers."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from lit_posttrain.rewards import RewardFunctions
from lit_posttrain.rewards.gridworld import path_reward
from lit_posttrain.rewards.gsm8k import exact_match, has_answer_format, read_answer

PROMPT = "grid 3 3 walls b2 start a1 goal c1 path"
SHARED = os.environ.get("LIT_POSTTRAIN_SHARED")


def test_path_reward_is_for_arriving_and_for_few_moves() -> None:
    completions = [
        "b1 c1",
        "b1 a1 b1 c1",
        "a2 a3 b3 c3 c2 c1",
        "b1 c1 c2",
        "b1",
        "c1",
        "",
    ]
    rewards = path_reward([PROMPT] * 7, completions, [False] * 7, answer=["unused"] * 7)
    assert rewards == pytest.approx([1.0, 0.7 + 0.3 * 2 / 4, 0.7 + 0.3 * 2 / 6, 0.0, 0.0, 0.0, 0.0])


def test_path_cut_off_at_the_goal_gets_nothing() -> None:
    assert path_reward([PROMPT] * 2, ["b1 c1"] * 2, [True, False]) == [0.0, 1.0]


def test_path_reward_by_the_protocol() -> None:
    columns = {"truncated": [False], "completion_ids": [[1, 2, 3]], "shortest": [2]}
    completion = [{"role": "assistant", "content": "b1 c1"}]
    scores = RewardFunctions(path_reward)([[{"role": "user", "content": PROMPT}]], [completion], columns)
    torch.testing.assert_close(scores, torch.tensor([[1.0]]))


@pytest.mark.parametrize(
    "completion",
    [
        "#### 1000",
        "It costs 2 * 500.\n#### 1,000",
        "####1000.0",
        "#### $1000",
        "#### $1,000.00 for both",
        "#### 1000.",
        "#### 1000%",
        "#### 1000%.",
        "#### 1000 apples, not 999",
        "#### 1000\nNow the next question: 5",
        "#### 2000/2",
        "#### 5\nNo, wait.\n#### 1000",
        "####\t01000",
    ],
)
def test_equal_numbers_match(completion: str) -> None:
    assert exact_match(["?"], [completion], ["2 * 500 = <<2*500=1000>>1000\n#### 1,000"]) == [1.0]
    assert has_answer_format(["?"], [completion]) == [1.0]


@pytest.mark.parametrize("completion", ["#### 999", "#### -1000", "#### 1000.01", "#### 1000\n#### 5", "#### 10 00"])
def test_other_numbers_do_not_match(completion: str) -> None:
    assert exact_match(["?"], [completion], ["#### 1000"]) == [0.0]
    assert has_answer_format(["?"], [completion]) == [1.0]


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "1000",
        "The answer is 1000",
        "### 1000",
        "#### ",
        "#### about 1000",
        "#### 1,00",
        "#### 1,0000",
        "#### 1e3",
        "#### 1000dollars",
        "#### 2*500",
        "#### --1000",
        "#### 1000\n####",
        "#### 1000/0",
        "#### ١٠٠٠",
        "#### __import__('os')",
        "#### " + "9" * 10_000,
        "#### 1" + ",000" * 10_000,
    ],
)
def test_no_number_after_the_mark_gets_nothing(completion: str) -> None:
    assert exact_match(["?"], [completion], ["#### 1000"]) == [0.0]
    assert has_answer_format(["?"], [completion]) == [0.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### -5", Fraction(-5)),
        ("#### -$5", Fraction(-5)),
        ("#### $-5", Fraction(-5)),
        ("#### $ 5", Fraction(5)),
        ("#### .5", Fraction(1, 2)),
        ("#### 0.1", Fraction(1, 10)),
        ("#### -3/4", Fraction(-3, 4)),
        ("#### 1,234,567.5", Fraction(2469135, 2)),
    ],
)
def test_numbers_are_read_exactly(text: str, number: Fraction) -> None:
    assert read_answer(text) == number


def test_large_numbers_are_not_rounded() -> None:
    assert exact_match(["?"], ["#### 9007199254740993"], ["#### 9007199254740992"]) == [0.0]


def test_rewards_of_a_batch_stay_in_order() -> None:
    answers = ["#### 1", "#### 2", "#### 3"]
    assert exact_match(["?"] * 3, ["#### 1", "#### 1", "#### 3"], answers) == [1.0, 0.0, 1.0]


def test_completions_may_be_messages() -> None:
    completion = [{"role": "assistant", "content": "#### 4"}]
    assert exact_match(["?"], [completion], ["#### 4"]) == [1.0]
    assert has_answer_format(["?"], [completion]) == [1.0]


@pytest.mark.parametrize("answer", ["The answer is 18.", "#### eighteen"])
def test_reference_without_a_number_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=f"`answer` must end in `####` and a number, got '{answer}' for row 1"):
        exact_match(["?", "?"], ["#### 1", "#### 18"], ["#### 1", answer])


@pytest.mark.skipif(SHARED is None, reason="LIT_POSTTRAIN_SHARED names no folder with data/gsm8k_test.jsonl")
def test_every_reference_of_gsm8k_can_be_read() -> None:
    lines = (Path(str(SHARED)) / "data" / "gsm8k_test.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert len(answers) == 1319
    assert [read_answer(text) for text in answers] == [int(text.split("#### ")[1].replace(",", "")) for text in answers]
