from itertools import combinations

import pytest
import torch

from lit_posttrain.functional import pass_at_k


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_equals_the_share_of_all_subsets_with_a_right_sample(k):
    n = 6
    expected = []
    for correct in range(n + 1):
        subsets = list(combinations(range(n), k))
        expected.append(sum(min(subset) < correct for subset in subsets) / len(subsets))
    counts = torch.arange(n + 1, dtype=torch.float64)
    assert pass_at_k(n, counts, k=k).tolist() == pytest.approx(expected, abs=1e-12)


def test_one_attempt_is_the_mean_and_large_numbers_do_not_overflow():
    assert pass_at_k(1000, torch.tensor([250.0], dtype=torch.float64), k=1).item() == pytest.approx(0.25, abs=1e-12)
    # one right sample among n is drawn by k of n attempts with chance k / n
    assert pass_at_k(1000, torch.tensor([1.0], dtype=torch.float64), k=500).item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("k", [0, 7])
def test_k_outside_of_the_samples_is_refused(k):
    with pytest.raises(ValueError, match=rf"`k` must be in 1..num_samples \(6\), got {k}"):
        pass_at_k(6, torch.tensor([1]), k=k)


@pytest.mark.parametrize("count", [-1, 7])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=rf"`num_correct` must be in 0..num_samples \(6\), got \[{count}\]"):
        pass_at_k(6, torch.tensor([count]), k=1)
