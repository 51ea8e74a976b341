"""A grid with walls, a start and a goal, and its exact solution."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from types import MappingProxyType

from lit_posttrain.tasks.gridworld_text import (
    MOVES,
    Cell,
    PromptFields,
    cell_name,
    check_size,
    parse_prompt,
    prompt_text,
    reading_order,
)


@dataclass(frozen=True)
class Grid:
    """One task: walk from the start to the goal. Every instance has a solution.

    Args:
        width: number of columns, 2 to 8.
        height: number of rows, 2 to 8.
        walls: cells that cannot be entered; a cell is (column, row), both from 0.
        start: where the path begins.
        goal: where it must end; not the start.

    Raises:
        ValueError: if a size is out of range, a cell lies outside the grid, the start or the goal is a wall, they are
            the same cell, or the walls cut them off from each other.

    >>> grid = Grid(3, 2, frozenset({(1, 0)}), start=(0, 0), goal=(2, 0))
    >>> grid.shortest, grid.prompt()
    (4, 'grid 3 2 walls b1 start a1 goal c1 path')
    >>> grid.values()[(1, 1)]
    -2
    """

    width: int
    height: int
    walls: frozenset[Cell]
    start: Cell
    goal: Cell

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        for wall in sorted(self.walls, key=reading_order):
            self._check_inside(wall, role="walls")
        for role, cell in (("start", self.start), ("goal", self.goal)):
            self._check_inside(cell, role=role)
            if cell in self.walls:
                raise ValueError(f"`{role}` must be a free cell, got {cell_name(cell)}, which is a wall.")
        if self.start == self.goal:
            raise ValueError(f"`goal` must differ from `start`, got {cell_name(self.goal)} for both: no path to write.")
        if self.start not in self._distances:
            raise ValueError(
                f"`goal` must be reachable, got {cell_name(self.goal)}: walls cut it off from {cell_name(self.start)}."
            )

    @classmethod
    def from_prompt(cls, text: str) -> "Grid":
        """Read a grid from the text of `prompt`, its inverse.

        Raises:
            ValueError: if the words do not follow the layout of a prompt, or the grid that they say is none.
        """
        return cls(*parse_prompt(text))

    def prompt(self) -> str:
        """Write the grid as prompt text, walls in reading order."""
        return prompt_text(PromptFields(self.width, self.height, self.walls, self.start, self.goal))

    def neighbors(self, cell: Cell) -> list[Cell]:
        """Return the cells that a move from this one can enter: above, below, left and right of it, where free."""
        return free_neighbors(cell, width=self.width, height=self.height, walls=self.walls)

    def distances(self) -> dict[Cell, int]:
        """Return the number of moves to the goal, for every free cell from which it can be reached."""
        return dict(self._distances)

    def values(self) -> dict[Cell, int]:
        """Return V* with −1 per move, no discount: the best neighbour's value − 1, and 0 at the goal."""
        return {cell: -distance for cell, distance in self._distances.items()}

    @property
    def shortest(self) -> int:
        """Number of moves of a shortest path from the start to the goal."""
        return self._distances[self.start]

    @cached_property
    def _distances(self) -> Mapping[Cell, int]:
        return moves_to_goal(self.goal, width=self.width, height=self.height, walls=self.walls)

    def _check_inside(self, cell: Cell, *, role: str) -> None:
        column, row = cell
        if not (0 <= column < self.width and 0 <= row < self.height):
            raise ValueError(
                f"`{role}` must lie inside the grid of {self.width} columns and {self.height} rows, "
                f"got (column {column}, row {row}), counted from 0."
            )


def free_neighbors(cell: Cell, *, width: int, height: int, walls: frozenset[Cell]) -> list[Cell]:
    """Return the cells one move away that are on the grid and no wall, in the order of MOVES."""
    return [there for there in _beside_on_grid(cell, width, height) if there not in walls]


@cache  # a data set asks for the same few cells a million times
def _beside_on_grid(cell: Cell, width: int, height: int) -> tuple[Cell, ...]:
    return tuple(there for there in cells_beside(cell) if 0 <= there[0] < width and 0 <= there[1] < height)


def cells_beside(cell: Cell) -> list[Cell]:
    """Return the cells one move away, be they walls or off the grid, in the order of MOVES."""
    column, row = cell
    return [(column + across, row + along) for across, along in MOVES]


@lru_cache(maxsize=1024)  # a rollout asks for the same grid again and again
def moves_to_goal(goal: Cell, *, width: int, height: int, walls: frozenset[Cell]) -> Mapping[Cell, int]:
    """Count the moves to the goal from every cell that reaches it, breadth first from the goal.

    With equal costs this visits cells in the order in which dynamic programming settles their values.
    """
    distances = {goal: 0}
    frontier = deque([goal])
    while frontier:
        cell = frontier.popleft()
        for neighbor in free_neighbors(cell, width=width, height=height, walls=walls):
            if neighbor not in distances:
                distances[neighbor] = distances[cell] + 1
                frontier.append(neighbor)
    return MappingProxyType(distances)
