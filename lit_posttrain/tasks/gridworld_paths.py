"""What a completion is worth: is the path legal, does it end at the goal, is it shortest."""

from typing import NamedTuple

from lit_posttrain.tasks.grid import Grid
from lit_posttrain.tasks.gridworld_text import cell_name


class PathScore(NamedTuple):
    """The verdict on one completion.

    Attributes:
        valid: at least one move, every word a free cell beside the one before it.
        success: valid, the last cell is the goal, and the completion stopped by itself.
        optimal: success in the least possible number of moves.
        moves: number of right moves before the first fault, or in all if there is none.
        shortest: the least possible number of moves.
    """

    valid: bool
    success: bool
    optimal: bool
    moves: int
    shortest: int


def score_path(grid: Grid, completion: str, *, truncated: bool = False) -> PathScore:
    """Follow a completion over the grid.

    Args:
        grid: the task.
        completion: what the model wrote; any text.
        truncated: True if the completion was cut off instead of stopping. Text alone cannot show that, and a path cut
            off at the goal might have gone on.

    >>> grid = Grid(2, 2, frozenset(), start=(0, 0), goal=(1, 0))
    >>> score_path(grid, "b1")
    PathScore(valid=True, success=True, optimal=True, moves=1, shortest=1)
    >>> score_path(grid, "b2").valid
    False
    """
    shortest = grid.shortest
    cell, moves = grid.start, 0
    for word in completion.split():
        entered = {cell_name(neighbor): neighbor for neighbor in grid.neighbors(cell)}
        if word not in entered:
            return PathScore(valid=False, success=False, optimal=False, moves=moves, shortest=shortest)
        cell, moves = entered[word], moves + 1
    success = cell == grid.goal and not truncated  # the start is never the goal: no success without a move
    return PathScore(
        valid=moves > 0, success=success, optimal=success and moves == shortest, moves=moves, shortest=shortest
    )
