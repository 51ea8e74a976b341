"""Paths that are not allowed, made of walks by one change: what a policy tries, and a reward model has to see through.

A change is as small as it can be, and leaves the length alone where it can: whoever compares walk and path then has
nothing else to go by. Each of these takes the walk from the start to the goal, and gives None where it does not apply.
"""

from itertools import pairwise
from random import Random

from lit_posttrain.tasks.draws import draw_index
from lit_posttrain.tasks.grid import Grid, cells_beside
from lit_posttrain.tasks.gridworld_text import Cell

Walk = list[Cell]


def cut_off(grid: Grid, walk: Walk, rng: Random) -> Walk:
    """Stop before the goal, perhaps at once."""
    return walk[: 1 + draw_index(rng, len(walk) - 1)]


def stand_still(grid: Grid, walk: Walk, rng: Random) -> Walk:
    """Stop before the goal, perhaps at once, and name the last cell again."""
    kept = cut_off(grid, walk, rng)
    return [*kept, kept[-1]]


def through_wall(grid: Grid, walk: Walk, rng: Random) -> Walk | None:
    """Enter a wall in place of a cell, where a wall is beside the cells before and after it."""
    ways = [
        [*walk[:place], wall, *walk[place + 1 :]]
        for place in range(1, len(walk) - 1)
        for wall in cells_beside(walk[place - 1])
        if wall in grid.walls and wall in cells_beside(walk[place + 1])
    ]
    return _one_of(ways, rng)


def astray(grid: Grid, walk: Walk, rng: Random) -> Walk | None:
    """Name another cell in place of one, two moves away from it.

    The number of moves is then still one that a walk can have: on a chessboard, it would be of the same colour.
    """
    ways: list[Walk] = []
    for place in range(1, len(walk) - 1):
        two_away = {there for near in cells_beside(walk[place]) for there in grid.neighbors(near)}
        ways += [[*walk[:place], cell, *walk[place + 1 :]] for cell in two_away - {walk[place], grid.goal}]
    return _one_of(sorted(way for way in ways if _leaps(way)), rng)


def leap(grid: Grid, walk: Walk, rng: Random) -> Walk | None:
    """Leave out two cells in a row, where that is no walk again: with one, its colour would show it."""
    ways = [walk[:place] + walk[place + 2 :] for place in range(1, len(walk) - 2)]
    return _one_of([way for way in ways if _leaps(way)], rng)


def many_faults(grid: Grid, walk: Walk, rng: Random) -> Walk:
    """Enter, by at least one move and on average half of them, a cell that the move does not lead to, or a wall."""
    certain = 1 + draw_index(rng, len(walk) - 1)
    faulty = list(walk)
    for place in range(1, len(walk)):
        if place == certain or draw_index(rng, 2):
            wrong = _wrong_cells(grid, faulty[place - 1])
            faulty[place] = wrong[draw_index(rng, len(wrong))]
    return faulty


def _one_of(ways: list[Walk], rng: Random) -> Walk | None:
    return ways[draw_index(rng, len(ways))] if ways else None


def _leaps(path: Walk) -> bool:
    return any(there not in cells_beside(here) for here, there in pairwise(path))


def _wrong_cells(grid: Grid, cell: Cell) -> list[Cell]:
    """The walls beside a cell, the fault to learn from; where there are none, all cells that no move from it enters."""
    beside = cells_beside(cell)
    everywhere = [(column, row) for row in range(grid.height) for column in range(grid.width)]
    return [wall for wall in beside if wall in grid.walls] or [there for there in everywhere if there not in beside]
