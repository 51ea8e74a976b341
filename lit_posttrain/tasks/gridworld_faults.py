"""Paths that are not allowed: what a policy tries, and a reward model has to see through."""

from random import Random

from lit_posttrain.tasks.draws import draw_index
from lit_posttrain.tasks.grid import Grid, cells_beside
from lit_posttrain.tasks.gridworld_text import Cell
from lit_posttrain.tasks.gridworld_walks import noisy_walk

_TRIES = 5  # walls that are out of the way are seldom walked into


def many_faults(grid: Grid, cells: list[Cell], rng: Random) -> list[Cell]:
    """A walk with at least one cell, and on average half of them, that no move enters from the one before it."""
    certain = 1 + draw_index(rng, len(cells) - 1)
    faulty = list(cells)
    for place in range(1, len(cells)):
        if place == certain or draw_index(rng, 2):
            wrong = _wrong_cells(grid, faulty[place - 1])
            faulty[place] = wrong[draw_index(rng, len(wrong))]
    return faulty


def walk_through_wall(grid: Grid, rng: Random, *, noise: float, max_moves: int) -> list[Cell] | None:
    """The walk of one who sees no walls, and enters one; None if none was in the way."""
    unwalled = Grid(grid.width, grid.height, frozenset(), start=grid.start, goal=grid.goal)
    for _ in range(_TRIES):
        cells = noisy_walk(unwalled, rng, noise=noise, max_moves=max_moves)
        if not grid.walls.isdisjoint(cells):
            return cells
    return None


def leap(cells: list[Cell], rng: Random) -> list[Cell] | None:
    """A walk without one of its cells, one time in four without several in a row; None if that is a walk again."""
    if len(cells) < 3:
        return None
    place = 1 + draw_index(rng, len(cells) - 2)  # start and goal stay
    missing = 1 if draw_index(rng, 4) else 1 + draw_index(rng, len(cells) - 1 - place)
    before, after = cells[:place], cells[place + missing :]
    return None if after[0] in cells_beside(before[-1]) else before + after


def stand_still(cells: list[Cell], rng: Random) -> list[Cell]:
    """A walk that is cut off, perhaps at its start, and whose last cell is named again."""
    kept = cells[: 1 + draw_index(rng, len(cells) - 1)]
    return [*kept, kept[-1]]


def _wrong_cells(grid: Grid, cell: Cell) -> list[Cell]:
    """The walls beside a cell, the fault to learn from; where there are none, all cells that no move from it enters."""
    beside = cells_beside(cell)
    everywhere = [(column, row) for row in range(grid.height) for column in range(grid.width)]
    return [wall for wall in beside if wall in grid.walls] or [there for there in everywhere if there not in beside]
