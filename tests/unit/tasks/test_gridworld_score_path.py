"""Scores of paths, one by one and with the signature of reward functions."""

import pytest

from lit_posttrain.tasks.gridworld import Grid, PathScore, optimal, score_completions, score_path, success

PROMPT = "grid 3 3 walls b2 start a1 goal c1 path"


@pytest.fixture
def grid() -> Grid:
    return Grid.from_prompt(PROMPT)


def test_shortest_path_is_optimal(grid: Grid) -> None:
    assert score_path(grid, "b1 c1") == PathScore(True, True, True, moves=2, shortest=2)


def test_detour_is_a_success_but_not_optimal(grid: Grid) -> None:
    around = "a2 a3 b3 c3 c2 c1"
    assert score_path(grid, around) == PathScore(True, True, False, moves=6, shortest=2)


def test_going_on_from_the_goal_is_no_success(grid: Grid) -> None:
    assert score_path(grid, "b1 c1 c2") == PathScore(True, False, False, moves=3, shortest=2)


def test_coming_back_to_the_goal_is_a_success_but_not_optimal(grid: Grid) -> None:
    assert score_path(grid, "b1 c1 c2 c1") == PathScore(True, True, False, moves=4, shortest=2)


def test_truncated_completion_is_valid_but_no_success(grid: Grid) -> None:
    cut = score_path(grid, "b1 c1", truncated=True)
    assert cut == PathScore(True, False, False, moves=2, shortest=2)


def test_stopping_early_is_valid_but_no_success(grid: Grid) -> None:
    assert score_path(grid, "b1") == PathScore(True, False, False, moves=1, shortest=2)


@pytest.mark.parametrize(
    ("completion", "moves"),
    [
        ("", 0),
        ("   \n", 0),
        ("a0", 0),  # off the grid
        ("a1", 0),  # staying where it is
        ("b1 b2", 1),  # into the wall
        ("c1", 0),  # too far
        ("b2", 0),  # across a corner
        ("b1 c1 d1", 2),  # off the grid
        ("b1 right", 1),
        ("b1 c1 path", 2),
        ("b1 c1 c1", 2),
        ("a1 b1 c1", 0),  # the start is not entered
        ("B1", 0),
        ("b1, c1", 0),
        ("b1 c1 <eos>", 2),
        ("右 b1 🙂 ٣ \x00 ￿", 0),
        ("right " * 100_000, 0),
        ("b1 a1 " * 20_000 + "up", 40_000),
    ],
)
def test_any_fault_makes_the_completion_invalid(grid: Grid, completion: str, moves: int) -> None:
    assert score_path(grid, completion) == PathScore(False, False, False, moves=moves, shortest=2)


def test_scores_have_the_signature_of_reward_functions() -> None:
    completions = ["b1 c1", "b1 a1 b1 c1", "b1 c1", "nothing"]
    batch = {
        "prompts": [PROMPT] * 4,
        "completions": completions,
        "truncated": [False, False, True, False],
        "shortest": [2] * 4,
    }
    assert success(**batch) == [1.0, 1.0, 0.0, 0.0]
    assert optimal(**batch) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "prompt",
    [
        f"Find a way.\n{PROMPT}",
        f"{PROMPT}\nYour answer:",
        f"{PROMPT}: answer with words from the grid only.",
        f"grid 2 2 walls start a1 goal b1 path b1\n\n{PROMPT}",
        [{"role": "system", "content": "grid 2 2 walls start a1 goal b1 path"}, {"role": "user", "content": PROMPT}],
        [
            {"role": "user", "content": "grid 2 2 walls start a1 goal b1 path"},
            {"role": "assistant", "content": "b1"},
            {"role": "user", "content": f"And now: {PROMPT}"},
        ],
    ],
)
def test_the_last_grid_of_the_prompt_is_the_task(prompt: str | list[dict[str, str]]) -> None:
    assert optimal([prompt], ["b1 c1"], [False]) == [1.0]


def test_completions_may_be_messages() -> None:
    completion = [{"role": "assistant", "content": "b1 c1"}]
    assert success([PROMPT], [completion], [False]) == [1.0]


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("What is 2 + 2?", "Prompt 1 must hold a grid .*at least 9 words"),
        ("grid 3 3 walls start a1 goal d1 path", "Prompt 1 must hold a grid .*`goal` must lie inside"),
        ([{"role": "system", "content": PROMPT}], "role `user`, got the roles .'system'"),
        ([{"role": "user", "content": None}], "last `user` message must be text, got NoneType"),
    ],
)
def test_prompts_without_a_grid_are_refused(prompt: str | list[dict[str, str]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        success([PROMPT, prompt], ["b1", "b1"], [False, False])


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths, got 2, 2 and 1"):
        score_completions([PROMPT] * 2, ["b1"] * 2, [False])
