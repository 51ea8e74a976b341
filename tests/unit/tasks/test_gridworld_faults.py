"""Faulty paths: what makes each of them one."""

from itertools import pairwise
from random import Random

import pytest

from lit_posttrain.tasks import gridworld_faults as faults
from lit_posttrain.tasks.gridworld import Grid

# the walk a1 b1 b2 c2 c3, beside the walls c1 and b3
GRID = Grid(3, 3, frozenset({(2, 0), (1, 2)}), start=(0, 0), goal=(2, 2))
WALK = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)]


def drawn(fault, grid=GRID, walk=WALK) -> set[tuple]:
    """All that it makes of a walk."""
    paths = [fault(grid, list(walk), Random(seed)) for seed in range(200)]
    return {path if path is None else tuple(path) for path in paths}


def colors(path) -> list[int]:
    return [(column + row) % 2 for column, row in path]


def test_cut_off_anywhere_before_the_goal():
    assert drawn(faults.cut_off) == {tuple(WALK[:length]) for length in (1, 2, 3, 4)}


def test_standing_still_names_the_last_cell_twice():
    assert drawn(faults.stand_still) == {(*WALK[:length], WALK[length - 1]) for length in (1, 2, 3, 4)}


def test_through_a_wall_that_is_beside_both_neighbors_of_the_cell():
    by_c1 = ((0, 0), (1, 0), (2, 0), (2, 1), (2, 2))
    by_b3 = ((0, 0), (1, 0), (1, 1), (1, 2), (2, 2))
    assert drawn(faults.through_wall) == {by_c1, by_b3}
    out_of_the_way = Grid(5, 5, frozenset({(4, 4)}), start=(0, 0), goal=(1, 1))
    assert drawn(faults.through_wall, out_of_the_way, [(0, 0), (1, 0), (1, 1)]) == {None}


def test_astray_is_one_wrong_cell_of_the_same_color():
    paths = drawn(faults.astray)
    assert len(paths) > 1
    for path in paths:
        (place,) = [place for place, (a, b) in enumerate(zip(path, WALK, strict=True)) if a != b]
        assert 0 < place < len(WALK) - 1
        column, row = path[place]
        assert 0 <= column < 3
        assert 0 <= row < 3
        assert path[place] not in {*GRID.walls, GRID.goal}
        assert colors(path) == colors(WALK)
        assert not legal(path)
    assert drawn(faults.astray, walk=WALK[:2]) == {None}  # nothing between start and goal


def legal(path) -> bool:
    return all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in pairwise(path))


def test_a_leap_is_never_a_walk_and_keeps_start_and_goal():
    assert drawn(faults.leap) == {((0, 0), (2, 1), (2, 2)), ((0, 0), (1, 0), (2, 2))}
    there_and_back = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2)]  # without the first two it is a walk again
    assert drawn(faults.leap, walk=there_and_back) == {((0, 0), (1, 0), (0, 2))}
    assert drawn(faults.leap, walk=there_and_back[:4]) == {None}
    assert drawn(faults.leap, walk=WALK[:3]) == {None}


@pytest.mark.parametrize("walls", [GRID.walls, frozenset()])
def test_many_faults_are_walls_where_there_are_some_and_jumps_elsewhere(walls):
    grid = Grid(3, 3, walls, start=(0, 0), goal=(2, 2))
    counts = set()
    for seed in range(200):
        path = faults.many_faults(grid, WALK, Random(seed))
        assert (len(path), path[0]) == (len(WALK), WALK[0])
        wrong = sum(b in walls or abs(a[0] - b[0]) + abs(a[1] - b[1]) != 1 for a, b in pairwise(path))
        assert wrong >= 1
        counts.add(wrong)
        assert any(b in walls for b in path) or not walls or (1, 0) not in path[:-1]
    assert counts >= {1, 2, 3}
