"""Prompts and demonstrations: seeded, distinct, split without leaks, always solvable."""

import random
from collections import Counter

import pytest

from lit_posttrain.tasks.gridworld import (
    Grid,
    demonstration_rows,
    is_validation,
    noisy_walk,
    optimal,
    path_text,
    prompt_rows,
    sample_grid,
    score_path,
    success,
    vocabulary,
)


def test_rows_are_the_same_everywhere() -> None:
    """Stored once: another platform or Python version that draws other rows fails here."""
    assert prompt_rows(2, split="train", seed=0) == [
        {"prompt": "grid 5 5 walls e1 e2 c4 start b1 goal a2 path", "shortest": 2},
        {"prompt": "grid 5 5 walls b1 e1 c2 c4 start c5 goal d4 path", "shortest": 2},
    ]
    assert demonstration_rows(3, split="train", seed=0)[2] == {
        "prompt": "grid 5 5 walls d4 start a1 goal b3 path",
        "completion": "a2 b2 c2 b2 b3",
    }


def test_rows_depend_on_the_arguments_alone() -> None:
    random.seed(1)
    first = prompt_rows(20, split="train", seed=3)
    random.seed(2)
    state = random.getstate()
    assert prompt_rows(20, split="train", seed=3) == first
    assert prompt_rows(5, split="train", seed=3) == first[:5]
    assert prompt_rows(20, split="train", seed=4) != first
    assert random.getstate() == state, "the global generator was used"


def test_rows_are_distinct_and_say_the_shortest_path() -> None:
    rows = prompt_rows(300, split="validation", seed=5, width=4, height=6, min_walls=2, max_walls=3)
    assert len({row["prompt"] for row in rows}) == 300
    words = set(vocabulary(4, 6))
    for row in rows:
        grid = Grid.from_prompt(row["prompt"])
        assert (grid.width, grid.height) == (4, 6)
        assert len(grid.walls) in (2, 3)
        assert row["shortest"] == grid.distances()[grid.start]
        assert set(row["prompt"].split()) <= words


def test_splits_are_disjoint_for_all_seeds_and_counts() -> None:
    """On 3x3 grids the seeds meet the same grids again, so a split by position in the stream would leak."""
    small = {"width": 3, "height": 3, "max_walls": 2}
    train = {row["prompt"] for seed in range(3) for row in prompt_rows(400, split="train", seed=seed, **small)}
    validation = {
        row["prompt"] for seed in range(3) for row in prompt_rows(100, split="validation", seed=seed, **small)
    }
    assert train.isdisjoint(validation)
    assert all(is_validation(Grid.from_prompt(prompt)) for prompt in validation)


def test_one_fifth_of_the_grids_is_validation() -> None:
    rng = random.Random(0)
    share = sum(is_validation(sample_grid(rng)) for _ in range(4000)) / 4000
    assert share == pytest.approx(0.2, abs=0.02)  # three standard errors of a share of 0.2


def test_numbers_of_walls_are_drawn_evenly() -> None:
    rng = random.Random(0)
    counts = Counter(len(sample_grid(rng, min_walls=1, max_walls=4).walls) for _ in range(4000))
    assert sorted(counts) == [1, 2, 3, 4]
    assert all(abs(count - 1000) < 100 for count in counts.values())


def test_starts_and_goals_fall_on_every_cell() -> None:
    rng = random.Random(0)
    grids = [sample_grid(rng, width=3, height=2, max_walls=1) for _ in range(600)]
    assert len({grid.start for grid in grids}) == len({grid.goal for grid in grids}) == 6
    assert len({wall for grid in grids for wall in grid.walls}) == 6


def test_grid_full_of_walls_still_has_a_solution() -> None:
    grid = sample_grid(random.Random(0), width=3, height=3, min_walls=7, max_walls=7)
    assert grid.shortest == 1


def test_all_grids_of_a_small_size_are_found_and_no_more() -> None:
    """2x2 without walls: 4 starts times 3 goals make 12 grids, 8 neighbours and 4 diagonals."""
    sizes = {"width": 2, "height": 2, "min_walls": 0, "max_walls": 0}
    num_validation = sum(
        is_validation(Grid(2, 2, frozenset(), start=(s % 2, s // 2), goal=(g % 2, g // 2)))
        for s in range(4)
        for g in range(4)
        if s != g
    )
    rows = prompt_rows(12 - num_validation, split="train", **sizes)
    assert len({row["prompt"] for row in rows}) == 12 - num_validation
    with pytest.raises(ValueError, match=f"got 13: only {12 - num_validation} of 2x2 with 0 to 0 walls were found"):
        prompt_rows(13, split="train", **sizes)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"width": 9}, "`width` must be between 2 and 8, got 9"),
        ({"height": 1}, "`height` must be between 2 and 8, got 1"),
        ({"min_walls": 3, "max_walls": 2}, "`min_walls` must be between 0 and `max_walls`, got 3 and 2"),
        ({"min_walls": -1}, "`min_walls` must be between 0"),
        ({"width": 2, "height": 2, "max_walls": 3}, "`max_walls` must be <= 2 on a grid of 2x2, got 3"),
        ({"split": "test"}, "`split` must be 'train' or 'validation', got 'test'"),
        ({"seed": None}, "`seed` must be an integer, got None"),
        ({"seed": 1.5}, "`seed` must be an integer, got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        prompt_rows(1, **{"split": "train", **arguments})
    with pytest.raises(ValueError, match=complaint):
        demonstration_rows(1, **{"split": "train", **arguments})


def test_at_least_one_row_is_required() -> None:
    with pytest.raises(ValueError, match="number of rows must be >= 1, got 0"):
        prompt_rows(0, split="train")


def test_walk_without_noise_is_shortest_and_takes_each_of_the_shortest() -> None:
    grid = Grid.from_prompt("grid 3 3 walls b2 start a1 goal c3 path")
    rng = random.Random(0)
    walks = {path_text(noisy_walk(grid, rng, noise=0.0, max_moves=4)) for _ in range(50)}
    assert walks == {"b1 c1 c2 c3", "a2 a3 b3 c3"}


@pytest.mark.parametrize("slack", [0, 1, 6])
def test_noisy_walk_always_arrives_in_time_and_stops(slack: int) -> None:
    grid = Grid.from_prompt("grid 5 5 walls b1 b2 c4 d4 start a1 goal c2 path")
    rng = random.Random(0)
    lengths = set()
    for _ in range(200):
        cells = noisy_walk(grid, rng, noise=1.0, max_moves=grid.shortest + slack)
        score = score_path(grid, path_text(cells))
        assert score.success
        assert cells.index(grid.goal) == len(cells) - 1, "the walk went on from the goal"
        lengths.add(score.moves - grid.shortest)
    assert lengths == set(range(0, slack + 1, 2)), "a detour takes two moves more, up to all that are allowed"


def test_noise_makes_demonstrations_less_often_optimal() -> None:
    def share_optimal(noise: float) -> float:
        rows = demonstration_rows(300, split="train", seed=1, noise=noise)
        prompts, completions = [row["prompt"] for row in rows], [row["completion"] for row in rows]
        assert success(prompts, completions, [False] * 300) == [1.0] * 300
        return sum(optimal(prompts, completions, [False] * 300)) / 300

    assert share_optimal(0.0) == 1.0
    assert 0.45 < share_optimal(0.3) < 0.65
    assert share_optimal(1.0) < 0.2


def test_first_move_follows_the_noise() -> None:
    """From b1, with the goal c1 at its right: right with 0.7 + 0.3 / 3, left and down with 0.3 / 3 each."""
    grid = Grid.from_prompt("grid 3 2 walls start b1 goal c1 path")
    rng = random.Random(0)
    firsts = Counter(noisy_walk(grid, rng, noise=0.3, max_moves=9)[1] for _ in range(3000))
    assert firsts[(2, 0)] / 3000 == pytest.approx(0.8, abs=0.03)
    assert firsts[(0, 0)] / 3000 == pytest.approx(0.1, abs=0.03)
    assert firsts[(1, 1)] / 3000 == pytest.approx(0.1, abs=0.03)


def test_demonstrations_have_the_prompts_of_prompt_rows() -> None:
    prompts = [row["prompt"] for row in prompt_rows(30, split="validation", seed=2)]
    for noise in (0.0, 0.9):
        rows = demonstration_rows(30, split="validation", seed=2, noise=noise)
        assert [row["prompt"] for row in rows] == prompts
    assert demonstration_rows(10, split="validation", seed=2, noise=0.9) == rows[:10]


def test_demonstrations_keep_to_max_moves() -> None:
    rows = demonstration_rows(100, split="train", noise=1.0, max_moves=12, max_walls=3)
    assert max(len(row["completion"].split()) for row in rows) in (11, 12)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"noise": 1.1, "max_moves": 9}, "`noise` must be a probability between 0 and 1, got 1.1"),
        ({"noise": float("nan"), "max_moves": 9}, "`noise` must be a probability"),
        ({"noise": 0.3, "max_moves": 3}, "`max_moves` must be >= 4, got 3"),
    ],
)
def test_walks_that_cannot_be_are_refused(arguments: dict, complaint: str) -> None:
    grid = Grid.from_prompt("grid 3 3 walls b2 start a1 goal c3 path")
    with pytest.raises(ValueError, match=complaint):
        noisy_walk(grid, random.Random(0), **arguments)
