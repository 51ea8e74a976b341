"""Demonstrations: a walker who knows the way and strays from it now and then."""

from random import Random

from lit_posttrain.tasks.draws import draw_index
from lit_posttrain.tasks.grid import Grid
from lit_posttrain.tasks.gridworld_text import Cell


def noisy_walk(grid: Grid, rng: Random, *, noise: float = 0.3, max_moves: int) -> list[Cell]:
    """Walk to the goal, now and then by a random move.

    Each move is, with probability `noise`, any legal one that still allows arriving within `max_moves`, and otherwise
    one of the best. The walk ends when it first enters the goal, and it always does.

    Args:
        grid: the task.
        rng: the source of randomness.
        noise: probability of a random move, 0 to 1.
        max_moves: largest number of moves, at least `grid.shortest`.

    Returns:
        The cells from the start to the goal, both included.

    Raises:
        ValueError: if `noise` or `max_moves` is out of range.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"`noise` must be a probability between 0 and 1, got {noise}.")
    if max_moves < grid.shortest:
        raise ValueError(f"`max_moves` must be >= {grid.shortest}, got {max_moves}: the shortest path is that long.")
    distances = grid.distances()
    cells = [grid.start]
    while cells[-1] != grid.goal:
        moves_left = max_moves - len(cells)  # after the one about to be made
        farthest = moves_left if rng.random() < noise else distances[cells[-1]] - 1
        choices = [cell for cell in grid.neighbors(cells[-1]) if distances[cell] <= farthest]
        cells.append(choices[draw_index(rng, len(choices))])
    return cells
