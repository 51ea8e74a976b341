"""The grid: exact distances and values, prompts and their inverse, what is refused."""

import pytest

from lit_posttrain.tasks.gridworld import Grid, cell_name, path_text, vocabulary

# . # G      a wall at b1 and at b2: the way from a1 leads down, below the walls and up again
# . # .
# . . .
PROMPT = "grid 3 3 walls b1 b2 start a1 goal c1 path"


@pytest.fixture
def grid() -> Grid:
    return Grid(3, 3, frozenset({(1, 0), (1, 1)}), start=(0, 0), goal=(2, 0))


def test_distances_count_moves_around_the_walls(grid: Grid) -> None:
    by_name = {cell_name(cell): distance for cell, distance in grid.distances().items()}
    assert by_name == {"c1": 0, "c2": 1, "c3": 2, "b3": 3, "a3": 4, "a2": 5, "a1": 6}
    assert grid.shortest == 6


def test_cells_that_cannot_reach_the_goal_have_no_distance() -> None:
    cornered = Grid(3, 3, frozenset({(1, 0), (0, 1)}), start=(2, 2), goal=(2, 0))
    assert (0, 0) not in cornered.distances()
    assert len(cornered.distances()) == 6


def test_values_satisfy_the_bellman_equation() -> None:
    grid = Grid.from_prompt("grid 5 4 walls b2 c2 d3 start a1 goal e4 path")
    values = grid.values()
    assert values[grid.goal] == 0
    assert len(values) == 17
    for cell, value in values.items():
        if cell != grid.goal:
            assert value == max(values[neighbor] for neighbor in grid.neighbors(cell)) - 1


def test_down_increases_the_row_and_right_the_column(grid: Grid) -> None:
    assert grid.neighbors((0, 2)) == [(0, 1), (1, 2)]
    assert grid.neighbors((2, 1)) == [(2, 0), (2, 2)]


def test_prompt_lists_walls_in_reading_order() -> None:
    grid = Grid(5, 5, frozenset({(0, 4), (4, 1), (1, 1), (2, 0)}), start=(3, 3), goal=(4, 4))
    assert grid.prompt() == "grid 5 5 walls c1 b2 e2 a5 start d4 goal e5 path"


def test_from_prompt_is_the_inverse_of_prompt(grid: Grid) -> None:
    assert grid.prompt() == PROMPT
    assert Grid.from_prompt(PROMPT) == grid
    tall = Grid(2, 8, frozenset(), start=(1, 7), goal=(0, 0))
    assert tall.prompt() == "grid 2 8 walls start b8 goal a1 path"
    assert Grid.from_prompt(tall.prompt()) == tall


def test_from_prompt_takes_walls_in_any_order(grid: Grid) -> None:
    assert Grid.from_prompt("grid 3 3 walls b2 b1\nstart a1 goal c1 path") == grid


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at least 9 words, got 0"),
        ("grid 3 3 walls start a1 goal c1", "at least 9 words, got 8"),
        ("maze 3 3 walls start a1 goal c1 path", "must have `grid` as word 1, got 'maze'"),
        ("grid 3 3 wall start a1 goal c1 path", "must have `walls` as word 4, got 'wall'"),
        ("grid 3 3 walls start a1 b1 goal c1 path", "must have `start` as word 5 from the end, got 'a1'"),
        ("grid 3 3 walls start a1 goal c1 path right", "must have `start` as word 5 from the end"),
        ("grid 3 9 walls start a1 goal c1 path", "`height` must be a number between 2 and 8, got '9'"),
        ("grid ٣ 3 walls start a1 goal c1 path", "`width` must be a number between 2 and 8, got '٣'"),
        ("grid 3 3 walls b² start a1 goal c1 path", "`wall` must be a cell from a1 to h8"),
        ("grid 3 3 walls start a0 goal c1 path", "`start` must be a cell from a1 to h8 .*got 'a0'"),
        ("grid 3 3 walls start a11 goal c1 path", "`start` must be a cell .*got 'a11'"),
        ("grid 3 3 walls start a1 goal C1 path", "`goal` must be a cell from a1 to h8"),
        ("grid 3 3 walls b2 b2 start a1 goal c1 path", "`walls` must name each cell once, got b2 b2"),
        ("grid 3 3 walls d1 start a1 goal c1 path", "`walls` must lie inside the grid of 3 columns and 3 rows"),
        ("grid 3 2 walls start a1 goal a3 path", "`goal` must lie inside"),
        ("grid 3 3 walls a1 start a1 goal c1 path", "`start` must be a free cell, got a1"),
        ("grid 3 3 walls start a1 goal a1 path", "`goal` must differ from `start`, got a1"),
        ("grid 3 3 walls b1 b2 b3 start a1 goal c1 path", "`goal` must be reachable, got c1"),
    ],
)
def test_from_prompt_names_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Grid.from_prompt(text)


@pytest.mark.parametrize(("width", "height", "name"), [(1, 3, "width"), (3, 9, "height")])
def test_sizes_that_words_cannot_express_are_refused(width: int, height: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be between 2 and 8"):
        Grid(width, height, frozenset(), start=(0, 0), goal=(0, 1))
    with pytest.raises(ValueError, match=f"`{name}` must be between 2 and 8"):
        vocabulary(width, height)


def test_distances_are_the_callers_own(grid: Grid) -> None:
    grid.distances().clear()
    assert grid.shortest == 6


def test_path_text_names_every_move_and_the_cell_entered() -> None:
    assert path_text([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) == "b1 b2 a2 a1"
    assert path_text([(0, 0)]) == ""
    with pytest.raises(ValueError, match="one move apart, got a1 then b2"):
        path_text([(0, 0), (1, 1)])


def test_vocabulary_holds_every_word_once() -> None:
    words = vocabulary(8, 8)
    assert len(words) == len(set(words)) == 5 + 7 + 64
    assert words == vocabulary(8, 8)
    assert set(PROMPT.split()) | {"h8"} <= set(words)
    assert set(vocabulary(3, 5)) <= set(words)
    assert "d1" not in vocabulary(3, 5)
    assert "c6" not in vocabulary(3, 5)


def test_cells_without_a_name_are_refused() -> None:
    assert cell_name((7, 7)) == "h8"
    with pytest.raises(ValueError, match="both from 0 to 7"):
        cell_name((-1, 0))
