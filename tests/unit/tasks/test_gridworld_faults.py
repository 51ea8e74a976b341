"""Faulty paths: what makes each of them one."""

from itertools import pairwise
from random import Random

from lit_posttrain.tasks.gridworld import Grid
from lit_posttrain.tasks.gridworld_faults import leap, walk_through_wall


def test_a_leap_is_never_a_walk_and_keeps_start_and_goal():
    there_and_back = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2)]  # without two of its cells it is a walk again
    paths = [leap(there_and_back, Random(seed)) for seed in range(200)]
    assert None in paths
    drawn = [path for path in paths if path is not None]
    assert {(path[0], path[-1]) for path in drawn} == {(there_and_back[0], there_and_back[-1])}
    assert {len(path) for path in drawn} == {2, 3, 4}
    for path in drawn:
        assert sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) != 1 for a, b in pairwise(path)) == 1
    assert leap(there_and_back[:2], Random(0)) is None


def test_a_wall_out_of_the_way_is_not_walked_through():
    beside = Grid(5, 5, frozenset({(4, 4)}), start=(0, 0), goal=(0, 1))
    between = Grid(5, 5, frozenset({(1, 0), (1, 1)}), start=(0, 0), goal=(2, 0))
    assert walk_through_wall(beside, Random(0), noise=0.0, max_moves=25) is None
    through = walk_through_wall(between, Random(0), noise=0.0, max_moves=25)
    assert through == [(0, 0), (1, 0), (2, 0)]
