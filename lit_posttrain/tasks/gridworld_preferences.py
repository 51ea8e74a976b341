"""Preference pairs of the gridworld, ranked by the true return of a path."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TypedDict

from lit_posttrain.tasks.draws import draw_index
from lit_posttrain.tasks.grid import Grid
from lit_posttrain.tasks.gridworld_data import Split, distinct_grids
from lit_posttrain.tasks.gridworld_faults import (
    Walk,
    astray,
    cut_off,
    leap,
    many_faults,
    stand_still,
    through_wall,
)
from lit_posttrain.tasks.gridworld_paths import score_path
from lit_posttrain.tasks.gridworld_text import cell_name
from lit_posttrain.tasks.gridworld_walks import noisy_walk

MIN_DIFFERENCE, MAX_DIFFERENCE = 0.1, 0.9
FAULTS: Mapping[str, Callable[[Grid, Walk, Random], Walk | None]] = {
    "unfinished": cut_off,
    "invalid": many_faults,
    "through_wall": through_wall,
    "astray": astray,
    "leap": leap,
    "standing": stand_still,
}
LONGER = "longer"  # no fault: a walk to the goal, by a longer way
# How often the rejected completion is of each kind, as weights. The first three teach what counts; a policy that is
# trained on the scores for long finds out what single faults cost, and the others teach that.
SHARES: Mapping[str, float] = {LONGER: 1, **dict.fromkeys(FAULTS, 0), "unfinished": 2, "invalid": 2}
_ON_EVERY_GRID = ("unfinished", "invalid", "standing")
_SHORTEST_ONE_IN = 3  # of the chosen ones, so that long walks are told from faulty ones too
_NOISE = 0.3  # that of the demonstrations: pairs are of paths as a model taught by them writes
_TRIES = 20  # walks that a fault may not apply to, before another kind is drawn


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
    return _return_on(Grid.from_prompt(prompt), completion)


def _return_on(grid: Grid, completion: str) -> float:
    score = score_path(grid, completion)
    return score.shortest / score.moves if score.success else 0.0


def preference_rows(
    num_pairs: int,
    *,
    split: Split,
    seed: int = 0,
    min_difference: float = MIN_DIFFERENCE,
    shares: Mapping[str, float] = SHARES,
    width: int = 5,
    height: int = 5,
    min_walls: int = 1,
    max_walls: int = 4,
) -> list[PreferenceRow]:
    """Make one pair for each prompt of `prompt_rows` with the same split, seed and sizes.

    Completions begin with the space that parts them from the prompt. The chosen one leads to the goal, by a shortest
    way or by a noisy walk. The rejected one is a `longer` noisy walk, or the chosen one with a fault put in it:
    `unfinished` is cut off before its end, perhaps at once; `invalid` has several faults, enters walls or jumps;
    `through_wall` enters a wall, once; `astray` names a wrong cell, once; a `leap` leaves out two cells; `standing` is
    cut off where a cell is named twice. Pairs whose returns are closer than `min_difference` are drawn again.

    Args:
        num_pairs: how many.
        split: which set of grids.
        seed: seed of the grids and of the paths.
        min_difference: least difference of the returns, from above 0 to 0.9.
        shares: how often the rejected one is of each kind, as weights; of a kind that is not named, never. Where a
            kind does not apply to a grid, as walls that are out of the way, another is drawn.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.

    Raises:
        ValueError: as `prompt_rows`, or if `min_difference` or `shares` is out of range.
    """
    _check_shares(shares)
    if not 0 < min_difference <= MAX_DIFFERENCE:
        raise ValueError(f"`min_difference` must be above 0 and at most {MAX_DIFFERENCE}, got {min_difference}.")
    grids = distinct_grids(
        num_pairs, split=split, seed=seed, width=width, height=height, min_walls=min_walls, max_walls=max_walls
    )
    rng = Random(f"pairs {seed}")  # apart from that of the grids
    return [_pair(grid, rng, min_difference, shares) for grid in grids]


def _check_shares(shares: Mapping[str, float]) -> None:
    if not isinstance(shares, Mapping):
        raise ValueError(f"`shares` must give a weight to each of {', '.join(SHARES)} that is wanted, got {shares!r}.")
    for kind, share in shares.items():
        if kind not in SHARES:
            raise ValueError(f"`shares` has no kind {kind!r}: there are {', '.join(SHARES)}.")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ValueError(f"`shares` must be finite and >= 0, got {share} for `{kind}`.")
    if not any(shares.get(kind) for kind in _ON_EVERY_GRID):
        raise ValueError(
            f"`shares` must give a weight above 0 to one of {', '.join(_ON_EVERY_GRID)}, got {dict(shares)}: the "
            "others do not apply to every grid."
        )


def _pair(grid: Grid, rng: Random, min_difference: float, shares: Mapping[str, float]) -> PreferenceRow:
    while True:  # ends: a shortest path and one that does not arrive are far enough apart
        kind = _draw_kind(rng, shares)
        for _ in range(_TRIES):
            chosen = _walk(grid, rng, noise=0.0 if draw_index(rng, _SHORTEST_ONE_IN) == 0 else _NOISE)
            rejected = _walk(grid, rng, noise=_NOISE) if kind == LONGER else FAULTS[kind](grid, chosen, rng)
            if rejected is None:
                continue
            texts = _text(chosen), _text(rejected)
            ahead = _return_on(grid, texts[0]) - _return_on(grid, texts[1])
            if ahead >= min_difference:
                return {"prompt": grid.prompt(), "chosen": texts[0], "rejected": texts[1], "margin": round(ahead, 6)}


def _draw_kind(rng: Random, shares: Mapping[str, float]) -> str:
    left = rng.random() * sum(shares.values())
    for kind in SHARES:  # in an order that does not depend on how they were written
        left -= shares.get(kind, 0)
        if left < 0:
            return kind
    return next(kind for kind in _ON_EVERY_GRID if shares.get(kind))  # the sum was rounded up


def _walk(grid: Grid, rng: Random, *, noise: float) -> Walk:
    return noisy_walk(grid, rng, noise=noise, max_moves=grid.width * grid.height)


def _text(path: Walk) -> str:
    """The path as it stands behind the prompt."""
    return "".join(f" {cell_name(cell)}" for cell in path[1:])


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The pairs of either split.

    The seed chooses the training pairs; those of validation are always the same, so that runs can be compared.

    Args:
        num_pairs: training pairs.
        num_validation: validation pairs.
        seed: of the training pairs.
        min_difference: least difference of the two returns.
        shares: of training, see `preference_rows`; validation always has the same.
        width: number of columns.
        height: number of rows.
        min_walls: least number of walls.
        max_walls: largest number of walls.
    """

    num_pairs: int = 20_000
    num_validation: int = 512
    seed: int = 0
    min_difference: float = MIN_DIFFERENCE
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))
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
            shares=self.shares if training else SHARES,
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
