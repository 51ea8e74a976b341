"""The protocol: what a reward function gets, what it may return, how several are added up."""

import functools
import math
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch

from lit_posttrain.rewards import RewardFunctions

COLUMNS = {"completion_ids": [[1, 2], [3]], "truncated": [False, True], "answer": ["4", "6"]}
PROMPTS, COMPLETIONS = ["2 + 2?", "3 + 3?"], ["4", "seven"]


def call(*functions: Callable[..., Any]) -> torch.Tensor:
    return RewardFunctions(list(functions))(PROMPTS, COMPLETIONS, COLUMNS)


def returning(value: Any) -> Callable[..., Any]:
    def reward(completions: list) -> Any:
        return value

    return reward


def length(completions: list) -> list[float]:
    return [float(len(text)) for text in completions]


def right(completions: list, answer: list) -> list[bool]:
    return [text == reference for text, reference in zip(completions, answer, strict=True)]


def test_scores_have_a_row_per_completion_and_a_column_per_function() -> None:
    scores = call(length, right)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 1.0], [5.0, 0.0]]))
    assert scores.dtype == torch.float32


def test_none_becomes_nan() -> None:
    scores = call(returning([None, 2]), length)
    assert scores.isnan().tolist() == [[True, False], [False, False]]
    assert scores[1, 0] == 2


def test_keyword_parameter_gets_every_column() -> None:
    seen = {}

    def reward(prompts: list, completions: list, **columns: list) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0, 0.0]

    call(reward)
    assert seen == {**COLUMNS, "prompts": PROMPTS, "completions": COMPLETIONS}


def test_other_functions_get_the_columns_they_name() -> None:
    seen = []

    def reward(completions: list, *, truncated: list, solution: str = "none") -> list[float]:
        seen.append((completions, truncated, solution))
        return [0.0, 0.0]

    call(reward)
    assert seen == [(COMPLETIONS, [False, True], "none")]


def test_missing_column_is_named_with_those_there_are() -> None:
    def graded(completions: list, solution: list, level: list) -> list[float]:
        return [0.0, 0.0]

    complaint = "`graded` requires `solution`, `level`, which no column provides; there are .*`truncated`, `answer`"
    with pytest.raises(ValueError, match=complaint):
        call(graded)


def test_callable_objects_and_partials_work() -> None:
    class Longer:
        def __init__(self, limit: int) -> None:
            self.limit = limit

        def __call__(self, completions: list, **columns: list) -> list[bool]:
            return [len(text) > self.limit for text in completions]

    def scaled(completions: list, factor: float) -> list[float]:
        return [factor * len(text) for text in completions]

    rewards = RewardFunctions([Longer(3), functools.partial(scaled, factor=2.0), Longer(0)])
    assert rewards.names == ["Longer", "scaled", "Longer_2"]
    torch.testing.assert_close(
        rewards(PROMPTS, COMPLETIONS, COLUMNS), torch.tensor([[0.0, 2.0, 1.0], [1.0, 10.0, 1.0]])
    )


def test_names_stay_unique_beside_a_function_that_is_called_like_a_copy() -> None:
    def length_2(completions: list) -> list[float]:
        return [0.0] * len(completions)

    assert RewardFunctions([length, length_2, length, length]).names == ["length", "length_2", "length_3", "length_4"]
    assert RewardFunctions(length).names == ["length"]


def test_function_that_changes_its_arguments_does_not_shift_the_next() -> None:
    def greedy(prompts: list, completions: list, answer: list) -> list[float]:
        completions.reverse()
        answer.clear()
        return [0.0, 0.0]

    torch.testing.assert_close(call(greedy, right)[:, 1], torch.tensor([1.0, 0.0]))
    assert COMPLETIONS == ["4", "seven"]
    assert COLUMNS["answer"] == ["4", "6"]


@pytest.mark.parametrize(
    "values",
    [
        (1, 0.5),
        [True, 0.5],
        [Fraction(1), Fraction(1, 2)],
        torch.tensor([1.0, 0.5], requires_grad=True),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16),
        [torch.tensor(1), torch.tensor(0.5)],
    ],
)
def test_any_numbers_are_taken(values: Any) -> None:
    torch.testing.assert_close(call(returning(values)), torch.tensor([[1.0], [0.5]]))


@pytest.mark.parametrize(
    ("values", "error", "complaint"),
    [
        (1.0, TypeError, "a list, a tuple, or a 1-D tensor or array, got 1.0 .float."),
        (None, TypeError, "got None .NoneType."),
        ("ab", TypeError, "got 'ab' .str."),
        ({0: 1.0, 1: 2.0}, TypeError, "got .* .dict."),
        (torch.ones(2, 1), TypeError, r"got a tensor of shape \[2, 1\]"),
        ([1.0], ValueError, "one value per completion, got 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], ValueError, "got 3 values for 2 completions"),
        ([0.0, math.nan], ValueError, "finite .*got nan .float. for row 1: return None where"),
        ([math.inf, 0.0], ValueError, "finite .*got inf .float. for row 0: return None where"),
        ([0.0, -1e39], ValueError, "finite .*got -1e.39 .float. for row 1"),
        ([0, 10**400], ValueError, "finite .*for row 1"),
        (torch.tensor([0.0, math.nan]), ValueError, "finite .*for row 1"),
        ([0.0, "1.0"], TypeError, "numbers, got '1.0' .str. for row 1: return float"),
        ([[[1.0], 0.0], 0.0], TypeError, r"numbers, got \[1.0\] .list. for row 0"),
        ([1j, 0.0], TypeError, "numbers, got 1j"),
    ],
)
def test_anything_else_is_refused(values: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=f"`reward` must return .*{complaint}"):
        call(returning(values))


def test_exception_is_chained_and_shows_the_first_prompt_and_completion() -> None:
    def fragile(prompts: list, completions: list) -> list[float]:
        return [float(text) for text in completions]

    complaint = (
        r"`fragile` raised ValueError: could not .*2 completions; first prompt: '2 \+ 2\?', first completion: '4'"
    )
    with pytest.raises(RuntimeError, match=complaint) as caught:
        call(fragile)
    assert isinstance(caught.value.__cause__, ValueError)


def test_long_prompts_are_shortened_in_the_message() -> None:
    def fragile(prompts: list) -> list[float]:
        raise KeyError("answer")

    with pytest.raises(RuntimeError, match=r"first prompt: 'x+\.\.\.,") as caught:
        RewardFunctions(fragile)(["x" * 10_000], ["y"], {})
    assert len(str(caught.value)) < 600


def test_stopping_the_program_is_not_caught() -> None:
    def interrupted(completions: list) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted)


def test_empty_batch_gives_no_rows() -> None:
    assert RewardFunctions([length, length])([], [], {}).shape == (0, 2)


@pytest.mark.parametrize(
    ("prompts", "columns", "complaint"),
    [
        (["one"], {}, "`prompts` must hold one entry per completion, got 1 for 2"),
        (PROMPTS, {"answer": ["4"]}, "`answer` must hold one entry per completion, got 1 for 2"),
        (PROMPTS, {"completions": ["a", "b"]}, "`columns` must not hold `completions`"),
    ],
)
def test_arguments_of_a_call_are_checked(prompts: list, columns: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RewardFunctions(length)(prompts, COMPLETIONS, columns)


@pytest.mark.parametrize(
    ("functions", "error", "complaint"),
    [
        ([], ValueError, "at least one reward function, got none"),
        ("rewards.py:length", TypeError, "must be a callable .*got 'rewards.py:length'.*load_rewards"),
        (None, TypeError, "must be a callable or a sequence of callables, got None"),
        ([length, "math:sqrt"], TypeError, "must hold callables, got 'math:sqrt' at position 1"),
        (math.sqrt, ValueError, "`sqrt` must be passable by keyword, got `x`, which is positional only"),
        (min, ValueError, "`min` must have a signature that Python can read"),
    ],
)
def test_functions_are_checked_at_once(functions: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        RewardFunctions(functions)


@pytest.mark.parametrize(
    ("weights", "error", "complaint"),
    [
        ([1.0], ValueError, "one number for each of .'length', 'right'., got 1"),
        ([0.0, 0], ValueError, "must not all be 0"),
        ([1.0, math.nan], ValueError, "must be finite, got nan for `right`"),
        ([math.inf, 1.0], ValueError, "must be finite, got inf for `length`"),
        (["1", 1.0], TypeError, "must hold numbers, got '1' for `length`"),
        (0.5, TypeError, "must be a sequence of numbers, got 0.5"),
    ],
)
def test_weights_are_checked_at_once(weights: Any, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        RewardFunctions([length, right], weights=weights)


def test_total_is_the_weighted_sum_of_what_could_be_scored() -> None:
    rewards = RewardFunctions([length, right, length], weights=[1.0, -2.0, 0.5])
    nan = math.nan
    scores = torch.tensor([[1.0, 2.0, 4.0], [1.0, nan, 4.0], [nan, 2.0, nan], [nan, nan, nan], [0.0, nan, nan]])
    expected = torch.tensor([-1.0, 3.0, -4.0, nan, 0.0])
    torch.testing.assert_close(rewards.total(scores), expected, equal_nan=True)


def test_total_weighs_by_one_unless_told() -> None:
    torch.testing.assert_close(RewardFunctions([length, right]).total(torch.tensor([[1.0, 2.0]])), torch.tensor([3.0]))


def test_function_of_weight_zero_is_reported_but_does_not_count() -> None:
    """Otherwise a completion that no counting function could score would get the reward 0 instead of none."""
    rewards = RewardFunctions([length, right], weights=[0.0, 1.0])
    assert rewards(PROMPTS, COMPLETIONS, COLUMNS)[:, 0].tolist() == [1.0, 5.0]
    total = rewards.total(torch.tensor([[3.0, math.nan], [math.nan, 2.0]]))
    torch.testing.assert_close(total, torch.tensor([math.nan, 2.0]), equal_nan=True)


def test_total_refuses_scores_of_other_functions() -> None:
    with pytest.raises(ValueError, match=r"shape \(B, 1\), got \(2, 3\)"):
        RewardFunctions(length).total(torch.zeros(2, 3))


def test_reward_functions_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(RewardFunctions([length, right], weights=[1.0, 2.0])))
    torch.testing.assert_close(copy(PROMPTS, COMPLETIONS, COLUMNS), call(length, right))
    assert copy.weights == [1.0, 2.0]
