"""Rows that share sequences: whole, within the room there is, in few of them."""

import pytest
import torch

from lit_posttrain.batching import first_fit_decreasing


def test_the_longest_first_each_where_it_first_fits():
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], capacity=10) == [[1, 4], [0, 3, 2, 5]]
    assert first_fit_decreasing([5, 5, 5], capacity=5) == [[0], [1], [2]]
    assert first_fit_decreasing([], capacity=3) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_row_once_no_sequence_too_long_none_too_many(seed):
    lengths = torch.randint(1, 30, (80,), generator=torch.Generator().manual_seed(seed)).tolist()
    sequences = first_fit_decreasing(lengths, capacity=30)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(80))
    assert max(sum(lengths[row] for row in sequence) for sequence in sequences) <= 30
    assert len(sequences) <= 11 / 9 * -(-sum(lengths) // 30) + 1


def test_a_row_that_does_not_fit():
    with pytest.raises(ValueError, match="a row of 4 tokens does not fit into a sequence of `capacity` = 3"):
        first_fit_decreasing([2, 4], capacity=3)
