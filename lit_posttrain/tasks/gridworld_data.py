"""Data of the gridworld: seeded prompts, a split that cannot leak, demonstrations.

Equal arguments give equal rows, on every platform.
"""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Literal, TypedDict

from lit_posttrain.tasks.draws import draw_distinct, draw_index
from lit_posttrain.tasks.grid import Grid, moves_to_goal
from lit_posttrain.tasks.gridworld_text import check_size, path_text
from lit_posttrain.tasks.gridworld_walks import noisy_walk

Split = Literal["train", "validation"]

_VALIDATION_ONE_IN = 5
_PATIENCE = 20_000  # draws in a row without a new grid, after which there are taken to be no more


class PromptRow(TypedDict):
    """A prompt and the number of moves of a shortest path."""

    prompt: str
    shortest: int


class DemonstrationRow(TypedDict):
    """A prompt and a path that somebody walked."""

    prompt: str
    completion: str


def is_validation(grid: Grid) -> bool:
    """Say whether a grid belongs to the validation set: one fifth of all, by a hash of size, walls, start and goal.

    It depends on nothing but the grid, so training and validation are disjoint whatever the seeds and counts.
    """
    digest = hashlib.sha256(grid.prompt().encode()).digest()
    return int.from_bytes(digest[:8], "big") % _VALIDATION_ONE_IN == 0


def sample_grid(rng: Random, *, width: int = 5, height: int = 5, min_walls: int = 1, max_walls: int = 4) -> Grid:
    """Draw a grid: first the number of walls, evenly; then, evenly, a grid with that many that can be solved.

    Args:
        rng: the source of randomness.
        width: number of columns, 2 to 8.
        height: number of rows, 2 to 8.
        min_walls: least number of walls, >= 0.
        max_walls: largest number of walls, <= width · height − 2.

    Raises:
        ValueError: if a size is out of range or the walls do not fit.
    """
    _check_walls(width=width, height=height, min_walls=min_walls, max_walls=max_walls)
    num_walls = min_walls + draw_index(rng, max_walls - min_walls + 1)
    cells = [(column, row) for row in range(height) for column in range(width)]
    while True:  # ends: with any number of walls that fits, a start beside the goal is possible
        *wall_cells, start, goal = draw_distinct(rng, cells, num_walls + 2)
        walls = frozenset(wall_cells)
        if start in moves_to_goal(goal, width=width, height=height, walls=walls):
            return Grid(width, height, walls, start=start, goal=goal)


def prompt_rows(
    num_prompts: int,
    *,
    split: Split,
    seed: int = 0,
    width: int = 5,
    height: int = 5,
    min_walls: int = 1,
    max_walls: int = 4,
) -> list[PromptRow]:
    """Make the prompts of `distinct_grids` with the same arguments.

    Raises:
        ValueError: as `distinct_grids`.
    """
    grids = distinct_grids(
        num_prompts, split=split, seed=seed, width=width, height=height, min_walls=min_walls, max_walls=max_walls
    )
    return [{"prompt": grid.prompt(), "shortest": grid.shortest} for grid in grids]


def demonstration_rows(
    num_demonstrations: int,
    *,
    split: Split,
    seed: int = 0,
    noise: float = 0.3,
    max_moves: int | None = None,
    width: int = 5,
    height: int = 5,
    min_walls: int = 1,
    max_walls: int = 4,
) -> list[DemonstrationRow]:
    """Make one noisy demonstration for each prompt of `prompt_rows` with the same split, seed and sizes.

    Args:
        num_demonstrations: how many.
        split: which set of grids.
        seed: seed of the grids and of the walks.
        noise: probability of a random move, see `noisy_walk`.
        max_moves: largest number of moves; None allows width · height, which is enough for every grid.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.

    Raises:
        ValueError: as `prompt_rows` and `noisy_walk`.
    """
    grids = distinct_grids(
        num_demonstrations, split=split, seed=seed, width=width, height=height, min_walls=min_walls, max_walls=max_walls
    )
    rng = Random(f"walks {seed}")  # apart from that of the grids, so that `noise` does not change the prompts
    limit = width * height if max_moves is None else max_moves
    return [
        {"prompt": grid.prompt(), "completion": path_text(noisy_walk(grid, rng, noise=noise, max_moves=limit))}
        for grid in grids
    ]


def distinct_grids(
    num_grids: int, *, split: Split, seed: int, width: int, height: int, min_walls: int, max_walls: int
) -> list[Grid]:
    """Draw the distinct grids of one split that rows are made of. Fewer of them, same seed: the first of these.

    Raises:
        ValueError: if an argument is out of range, or the split does not hold that many distinct grids.
    """
    if split not in ("train", "validation"):
        raise ValueError(f"`split` must be 'train' or 'validation', got {split!r}.")
    if num_grids < 1:
        raise ValueError(f"The number of rows must be >= 1, got {num_grids}.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"`seed` must be an integer, got {seed!r}: equal arguments must give equal rows.")
    rng = Random(f"grids {seed}")
    grids: dict[Grid, None] = {}  # a set that keeps its order
    fruitless = 0
    while len(grids) < num_grids:
        grid = sample_grid(rng, width=width, height=height, min_walls=min_walls, max_walls=max_walls)
        if is_validation(grid) == (split == "validation") and grid not in grids:
            grids[grid] = None
            fruitless = 0
        elif (fruitless := fruitless + 1) >= _PATIENCE:
            raise ValueError(
                f"The number of rows must be at most that of distinct {split} grids, got {num_grids}: "
                f"only {len(grids)} of {width}x{height} with {min_walls} to {max_walls} walls were found, "
                f"the last {_PATIENCE} draws brought no other. "
                "Ask for fewer rows, a larger grid or a wider range of walls."
            )
    return list(grids)


def _check_walls(*, width: int, height: int, min_walls: int, max_walls: int) -> None:
    check_size(width, height)
    if not 0 <= min_walls <= max_walls:
        raise ValueError(f"`min_walls` must be between 0 and `max_walls`, got {min_walls} and {max_walls}.")
    if max_walls > width * height - 2:
        raise ValueError(
            f"`max_walls` must be <= {width * height - 2} on a grid of {width}x{height}, got {max_walls}: "
            "the start and the goal need a free cell each."
        )


@dataclass(frozen=True, kw_only=True)
class PromptGenerator:
    """Makes the prompts of either split: `path` of a `PromptDataModule`.

    The seed chooses the training grids; those of validation are always the same, so that runs can be compared.

    Args:
        num_prompts: training prompts.
        num_validation: validation prompts.
        seed: of the training grids.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.
    """

    num_prompts: int = 4096
    num_validation: int = 256
    seed: int = 0
    width: int = 5
    height: int = 5
    min_walls: int = 1
    max_walls: int = 4

    def __call__(self, split: Split) -> list[PromptRow]:
        """The rows of a split; arguments are checked here, as in `prompt_rows`."""
        training = split == "train"
        return prompt_rows(
            self.num_prompts if training else self.num_validation,
            split=split,
            seed=self.seed if training else 0,
            width=self.width,
            height=self.height,
            min_walls=self.min_walls,
            max_walls=self.max_walls,
        )


@dataclass(frozen=True, kw_only=True)
class DemonstrationGenerator:
    """Makes the demonstrations of either split: `path` of an `InstructDataModule`.

    Completions begin with the space that parts them from the prompt.

    The seed chooses the training rows; those of validation are always the same, so that runs can be compared.

    Args:
        num_demonstrations: training rows.
        num_validation: validation rows.
        seed: of the training rows.
        noise: probability of a random move.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.
    """

    num_demonstrations: int = 20_000
    num_validation: int = 256
    seed: int = 0
    noise: float = 0.3
    width: int = 5
    height: int = 5
    min_walls: int = 1
    max_walls: int = 4

    def __call__(self, split: Split) -> list[DemonstrationRow]:
        """The rows of a split; arguments are checked here, as in `demonstration_rows`."""
        training = split == "train"
        rows = demonstration_rows(
            self.num_demonstrations if training else self.num_validation,
            split=split,
            seed=self.seed if training else 0,
            noise=self.noise,
            width=self.width,
            height=self.height,
            min_walls=self.min_walls,
            max_walls=self.max_walls,
        )
        return [{"prompt": row["prompt"], "completion": f" {row['completion']}"} for row in rows]
