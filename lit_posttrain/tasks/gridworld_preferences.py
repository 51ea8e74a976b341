"""Preference pairs of the gridworld, ranked by the true return of a path."""

from dataclasses import dataclass
from random import Random
from typing import TypedDict

from lit_posttrain.tasks.draws import draw_index
from lit_posttrain.tasks.grid import Grid, cells_beside
from lit_posttrain.tasks.gridworld_data import Split, prompt_rows
from lit_posttrain.tasks.gridworld_paths import score_path
from lit_posttrain.tasks.gridworld_text import Cell, cell_name
from lit_posttrain.tasks.gridworld_walks import noisy_walk

MIN_DIFFERENCE, MAX_DIFFERENCE = 0.1, 0.9
_NOISE = {"shortest": 0.0, "noisy": 0.5, "unfinished": 0.3, "invalid": 0.3}


class PreferenceRow(TypedDict):
    """Two completions of a prompt; the margin is the difference of their returns."""

    prompt: str
    chosen: str
    rejected: str
    margin: float


class JudgedCompletion(TypedDict):
    """A completion of a prompt, and whether it is desirable."""

    prompt: str
    completion: str
    label: bool


def path_return(prompt: str, completion: str) -> float:
    """The true return of a path: moves of the shortest one / moves made if it ends at the goal, else 0.

    It orders paths as the task's reward does, whose part for arriving is left out: margins tell lengths apart.

    >>> task = "grid 5 5 walls start a1 goal b1 path"
    >>> [path_return(task, text) for text in ("b1", "a2 b2 b1", "", "a2", "a1")]
    [1.0, 0.3333333333333333, 0.0, 0.0, 0.0]
    """
    score = score_path(Grid.from_prompt(prompt), completion)
    return score.shortest / score.moves if score.success else 0.0


def preference_rows(
    num_pairs: int,
    *,
    split: Split,
    seed: int = 0,
    min_difference: float = MIN_DIFFERENCE,
    width: int = 5,
    height: int = 5,
    min_walls: int = 1,
    max_walls: int = 4,
) -> list[PreferenceRow]:
    """Make one pair for each prompt of `prompt_rows` with the same split, seed and sizes.

    Completions begin with the space that parts them from the prompt. Each is, evenly, a shortest path, a noisy walk to
    the goal, a walk cut off before its end (perhaps at once), or one that enters walls or jumps. Of two, the one with
    the higher true return is chosen; pairs whose returns are closer than `min_difference` are drawn again.

    Args:
        num_pairs: how many.
        split: which set of grids.
        seed: seed of the grids and of the paths.
        min_difference: least difference of the returns, from above 0 to 0.9.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.

    Raises:
        ValueError: as `prompt_rows`, or if `min_difference` is out of range.
    """
    if not 0 < min_difference <= MAX_DIFFERENCE:
        raise ValueError(f"`min_difference` must be above 0 and at most {MAX_DIFFERENCE}, got {min_difference}.")
    prompts = prompt_rows(
        num_pairs, split=split, seed=seed, width=width, height=height, min_walls=min_walls, max_walls=max_walls
    )
    rng = Random(f"pairs {seed}")  # apart from that of the grids
    return [_pair(row["prompt"], rng, min_difference) for row in prompts]


def _pair(prompt: str, rng: Random, min_difference: float) -> PreferenceRow:
    grid = Grid.from_prompt(prompt)
    while True:  # ends: a shortest path and one with a fault are far enough apart
        first, second = _completion(grid, rng), _completion(grid, rng)
        ahead = path_return(prompt, first) - path_return(prompt, second)
        if abs(ahead) >= min_difference:
            chosen, rejected = (first, second) if ahead > 0 else (second, first)
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": round(abs(ahead), 6)}


def _completion(grid: Grid, rng: Random) -> str:
    kind = list(_NOISE)[draw_index(rng, len(_NOISE))]
    cells = noisy_walk(grid, rng, noise=_NOISE[kind], max_moves=grid.width * grid.height)
    if kind == "unfinished":
        cells = cells[: 1 + draw_index(rng, len(cells) - 1)]
    if kind == "invalid":
        cells = _with_faults(grid, cells, rng)
    return "".join(f" {cell_name(cell)}" for cell in cells[1:])  # as it stands behind the prompt


def _with_faults(grid: Grid, cells: list[Cell], rng: Random) -> list[Cell]:
    """A walk with at least one cell, and on average half of them, that no move enters from the one before it."""
    certain = 1 + draw_index(rng, len(cells) - 1)
    faulty = list(cells)
    for place in range(1, len(cells)):
        if place == certain or draw_index(rng, 2):
            wrong = _wrong_cells(grid, faulty[place - 1])
            faulty[place] = wrong[draw_index(rng, len(wrong))]
    return faulty


def _wrong_cells(grid: Grid, cell: Cell) -> list[Cell]:
    """The walls beside a cell, the fault to learn from; where there are none, all cells that no move from it enters."""
    beside = cells_beside(cell)
    everywhere = [(column, row) for row in range(grid.height) for column in range(grid.width)]
    return [wall for wall in beside if wall in grid.walls] or [there for there in everywhere if there not in beside]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The pairs of either split.

    The seed chooses the training pairs; those of validation are always the same, so that runs can be compared.

    Args:
        num_pairs: training pairs.
        num_validation: validation pairs.
        seed: of the training pairs.
        min_difference: least difference of the two returns.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.
    """

    num_pairs: int = 20_000
    num_validation: int = 512
    seed: int = 0
    min_difference: float = MIN_DIFFERENCE
    width: int = 5
    height: int = 5
    min_walls: int = 1
    max_walls: int = 4

    def pairs(self, split: Split) -> list[PreferenceRow]:
        """Those of a split; arguments are checked here, as in `preference_rows`."""
        training = split == "train"
        return preference_rows(
            self.num_pairs if training else self.num_validation,
            split=split,
            seed=self.seed if training else 0,
            min_difference=self.min_difference,
            width=self.width,
            height=self.height,
            min_walls=self.min_walls,
            max_walls=self.max_walls,
        )


class PreferenceGenerator(_Pairs):
    """Makes the preference pairs of either split: `path` of a `PreferenceDataModule`."""

    def __call__(self, split: Split) -> list[PreferenceRow]:
        """The rows of a split."""
        return self.pairs(split)


class UnpairedGenerator(_Pairs):
    """Makes completions that are desirable or not, for KTO: the two of each pair, apart.

    All desirable ones come first, so that a row and the next one have different prompts.
    """

    def __call__(self, split: Split) -> list[JudgedCompletion]:
        """The rows of a split, two for each pair."""
        pairs = self.pairs(split)
        desirable = [JudgedCompletion(prompt=p["prompt"], completion=p["chosen"], label=True) for p in pairs]
        return desirable + [JudgedCompletion(prompt=p["prompt"], completion=p["rejected"], label=False) for p in pairs]
