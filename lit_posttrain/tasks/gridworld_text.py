"""The words of the gridworld: names of cells, prompts and paths as text."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

Cell = tuple[int, int]  # (column, row), from 0

MIN_SIZE, MAX_SIZE = 2, 8
MOVES: tuple[Cell, ...] = ((0, -1), (0, 1), (-1, 0), (1, 0))  # up, down, left, right
LAYOUT = "grid WIDTH HEIGHT walls CELL ... start CELL goal CELL path"

_KEYWORDS = {0: "grid", 3: "walls", -5: "start", -3: "goal", -1: "path"}
_MIN_WORDS = 9  # those of a grid without walls
_COLUMNS = "abcdefgh"
_SIZES = {str(size): size for size in range(MIN_SIZE, MAX_SIZE + 1)}
_CELL = re.compile("[a-h][1-8]")


class PromptFields(NamedTuple):
    """What a prompt says, word by word, before anything is checked against the size of the grid."""

    width: int
    height: int
    walls: frozenset[Cell]
    start: Cell
    goal: Cell


@cache  # a data set asks for the same few names a million times
def cell_name(cell: Cell) -> str:
    """Name a cell: column letter and row digit.

    >>> cell_name((1, 2))
    'b3'
    """
    column, row = cell
    if not (0 <= column < MAX_SIZE and 0 <= row < MAX_SIZE):
        raise ValueError(
            f"`cell` must be (column, row) with both from 0 to {MAX_SIZE - 1}, got {cell}: no name for it."
        )
    return f"{_COLUMNS[column]}{row + 1}"


def reading_order(cell: Cell) -> tuple[int, int]:
    """Sort key that lists cells row by row, each from left to right."""
    return cell[1], cell[0]


def path_text(cells: Sequence[Cell]) -> str:
    """Write a path as completion text: the cell that each move enters.

    A move is named by where it leads, not by its direction: to keep off a wall the model then only has to leave out a
    word that the prompt holds, where a direction would ask for the place behind it first.

    Args:
        cells: the cells of the path, its start first; neighbours in the list are neighbours on the grid.

    Returns:
        A word per move; the empty text if `cells` holds the start alone.

    Raises:
        ValueError: if two cells in a row are not one move apart.

    >>> path_text([(0, 0), (1, 0), (1, 1)])
    'b1 b2'
    """
    for left, entered in pairwise(cells):
        if (entered[0] - left[0], entered[1] - left[1]) not in MOVES:
            raise ValueError(
                f"`cells` must be one move apart, got {cell_name(left)} then {cell_name(entered)}: "
                "a path goes up, down, left or right by one cell."
            )
    return " ".join(cell_name(cell) for cell in cells[1:])


def prompt_text(fields: PromptFields) -> str:
    """Write a prompt, walls in reading order: one text for one grid."""
    walls = [cell_name(cell) for cell in sorted(fields.walls, key=reading_order)]
    words = ["grid", str(fields.width), str(fields.height), "walls", *walls]
    return " ".join([*words, "start", cell_name(fields.start), "goal", cell_name(fields.goal), "path"])


def parse_prompt(text: str) -> PromptFields:
    """Read the words of a prompt, in any order of the walls.

    Raises:
        ValueError: if the words do not follow the layout; says which word is wrong.
    """
    words = text.split()
    if len(words) < _MIN_WORDS:
        raise ValueError(
            f"A gridworld prompt must have at least {_MIN_WORDS} words, got {len(words)} in {_shorten(text)}: "
            f"it reads `{LAYOUT}`."
        )
    for position, keyword in _KEYWORDS.items():
        if words[position] != keyword:
            place = f"word {position + 1}" if position >= 0 else f"word {-position} from the end"
            raise ValueError(
                f"A gridworld prompt must have `{keyword}` as {place}, got {words[position]!r} in {_shorten(text)}: "
                f"it reads `{LAYOUT}`."
            )
    walls = [_read_cell(word, role="wall") for word in words[4:-5]]
    if len(set(walls)) < len(walls):
        raise ValueError(f"`walls` must name each cell once, got {' '.join(words[4:-5])}.")
    return PromptFields(
        width=_read_size(words[1], role="width"),
        height=_read_size(words[2], role="height"),
        walls=frozenset(walls),
        start=_read_cell(words[-4], role="start"),
        goal=_read_cell(words[-2], role="goal"),
    )


def vocabulary(width: int, height: int) -> list[str]:
    """List the words that prompts and completions of grids up to this size can hold, in a fixed order.

    The words of smaller grids are among them, so a tokenizer made for 8×8 serves every grid.

    Raises:
        ValueError: if `width` or `height` is not between 2 and 8.

    >>> vocabulary(2, 2)
    ['grid', 'walls', 'start', 'goal', 'path', '2', 'a1', 'b1', 'a2', 'b2']
    """
    check_size(width, height)
    sizes = [str(size) for size in range(MIN_SIZE, max(width, height) + 1)]
    cells = [cell_name((column, row)) for row in range(height) for column in range(width)]
    return [*_KEYWORDS.values(), *sizes, *cells]


def check_size(width: int, height: int) -> None:
    """Refuse sizes that the words cannot express."""
    for name, size in (("width", width), ("height", height)):
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(
                f"`{name}` must be between {MIN_SIZE} and {MAX_SIZE}, got {size}: columns are a to h, rows 1 to 8."
            )


def _read_size(word: str, *, role: str) -> int:
    if word not in _SIZES:
        raise ValueError(f"`{role}` must be a number between {MIN_SIZE} and {MAX_SIZE}, got {word!r}.")
    return _SIZES[word]


def _read_cell(word: str, *, role: str) -> Cell:
    if not _CELL.fullmatch(word):
        raise ValueError(f"`{role}` must be a cell from a1 to h8 (column letter, row digit), got {word!r}.")
    return _COLUMNS.index(word[0]), int(word[1]) - 1


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:117]}...")
