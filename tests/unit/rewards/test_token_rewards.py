"""Rewards that are given token by token: the protocol, and those of the gridworld."""

import math

import pytest
import torch

from lit_posttrain.rewards import RewardFunctions
from lit_posttrain.rewards.gridworld import MOVES_PER_GOAL, step_rewards
from lit_posttrain.tasks.grid import Grid

COLUMNS = {"completion_ids": [[4, 5, 1], [4, 1], [6, 6, 6, 6]]}
MOVE = -1 / MOVES_PER_GOAL


def ramp(completion_ids):
    """Token t gets t."""
    return [[float(t) for t in range(len(ids))] for ids in completion_ids]


def length(completion_ids):
    return [float(len(ids)) for ids in completion_ids]


def scores_of(*functions, weights=None):
    return RewardFunctions(list(functions), weights=weights).scores(["p"] * 3, ["c"] * 3, COLUMNS)


def test_the_sum_is_the_reward_of_the_completion():
    scores = scores_of(ramp, length)
    assert scores.values.tolist() == [[3.0, 3.0], [1.0, 2.0], [6.0, 4.0]]
    assert scores.token_rewards == [[0.0, 1.0, 2.0], [0.0, 1.0], [0.0, 1.0, 2.0, 3.0]]
    assert RewardFunctions(ramp)(["p"] * 3, ["c"] * 3, COLUMNS).tolist() == [[3.0], [1.0], [6.0]]


def test_weights_count_for_each_token():
    scores = scores_of(ramp, length, ramp, weights=[0.5, 1.0, 2.0])
    assert scores.token_rewards == [[0.0, 2.5, 5.0], [0.0, 2.5], [0.0, 2.5, 5.0, 7.5]]
    assert scores_of(ramp, length, weights=[0.0, 1.0]).token_rewards == [[], [], []]


def test_some_by_token_some_as_a_whole_some_not_at_all():
    def mixed(completion_ids):
        return [torch.tensor([1.0, 2.0, 3.0]), 0.5, None]

    scores = scores_of(mixed)
    assert scores.values[:2].tolist() == [[6.0], [0.5]]
    assert scores.values[2].isnan()
    assert scores.token_rewards == [[1.0, 2.0, 3.0], [], []]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([[1.0], 0.0, 0.0], ValueError, "`completion_ids`, got 1 numbers for 3 tokens in row 0"),
        ([0.0, [1.0, None], 0.0], TypeError, "a number for every token of row 1"),
        ([0.0, [1.0, math.inf], 0.0], ValueError, "finite in 32-bit"),
        ([0.0, ["a", "b"], 0.0], TypeError, "must return numbers"),
        ([0.0, [1.0, 1.0]], ValueError, "got 2 values for 3 completions"),
    ],
)
def test_what_does_not_fit_is_refused(returned, error, message):
    with pytest.raises(error, match=message):
        scores_of(lambda completion_ids: returned)


def test_without_tokens_there_is_nothing_to_count():
    with pytest.raises(ValueError, match="for an unknown number of tokens"):
        RewardFunctions(lambda completions: [[1.0]])(["p"], ["c"], {})


GRID = Grid(3, 3, frozenset({(1, 1)}), start=(0, 0), goal=(2, 0))


@pytest.mark.parametrize(
    ("completion", "cut", "ids", "expected"),
    [
        ("b1 c1", False, [7, 8, 1], [MOVE, MOVE, 1.0]),  # a shortest path
        ("b1 c1", True, [7, 8], [MOVE, MOVE]),  # it might have gone on
        ("b1", False, [7, 1], [MOVE, 0.0]),  # stopped before the goal
        ("b1 b2 b3", False, [7, 9, 9, 1], [MOVE, MOVE, 0.0, 0.0]),  # into the wall
        ("", False, [1], [0.0]),
        ("b1 c1 b1 c1", False, [7, 8, 7, 8, 1], [MOVE] * 4 + [1.0]),
        ("b1 c1", False, [2, 3, 4, 5, 1], [0.0] * 4 + [2 * MOVE + 1.0]),  # tokens that are no words
    ],
)
def test_moves_and_goal(completion, cut, ids, expected):
    (rewards,) = step_rewards([GRID.prompt()], [completion], [cut], [ids])
    assert rewards == pytest.approx(expected)


def test_the_best_value_of_a_prefix_is_that_of_the_distance():
    """Dynamic programming over what is still to come: it pays to go on from every cell."""
    for cell, distance in GRID.distances().items():
        if cell == GRID.goal:
            continue
        path, here = [], cell
        grid = Grid(3, 3, GRID.walls, start=cell, goal=GRID.goal)
        while here != GRID.goal:
            here = max(grid.neighbors(here), key=grid.values().__getitem__)
            path.append("abc"[here[0]] + str(here[1] + 1))
        (rewards,) = step_rewards([grid.prompt()], [" ".join(path)], [False], [[9] * len(path) + [1]])
        assert sum(rewards) == pytest.approx(1 - distance / MOVES_PER_GOAL)
        assert sum(rewards) > 0
