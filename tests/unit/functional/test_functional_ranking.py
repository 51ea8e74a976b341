"""How well scores rank pairs."""

import math

import pytest
import torch

from lit_posttrain.functional import calibration_error, correlation, pair_accuracy


def test_a_tie_is_half_right():
    chosen, rejected = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 4.0])
    assert pair_accuracy(chosen, rejected) == 0.5
    assert pair_accuracy(rejected, chosen) == 0.5
    assert pair_accuracy(chosen[:2], rejected[:2]) == 0.75


def test_calibration_error_by_hand():
    """Certain to 0.9 and right in 3 of 4; certain to 0.6 and right in 1 of 2."""
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    ahead = torch.tensor([logit(0.9)] * 3 + [-logit(0.9)] + [logit(0.6), -logit(0.6)])
    want = (4 * abs(0.75 - 0.9) + 2 * abs(0.5 - 0.6)) / 6
    assert calibration_error(ahead, torch.zeros(6)).item() == pytest.approx(want, abs=1e-6)


def test_scores_that_sample_the_preferences_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    ahead = torch.randn(40_000, generator=generator) * 2
    right = torch.rand(40_000, generator=generator) < torch.sigmoid(ahead)
    ahead = torch.where(right, ahead, -ahead)
    assert calibration_error(ahead, torch.zeros_like(ahead)) < 0.01
    assert calibration_error(5 * ahead, torch.zeros_like(ahead)) > 0.1


def test_certainty_of_one_has_a_bin():
    assert calibration_error(torch.tensor([1e4]), torch.tensor([0.0])) == 0.0


def test_calibration_error_needs_a_bin():
    with pytest.raises(ValueError, match="`num_bins` must be >= 1, got 0"):
        calibration_error(torch.zeros(1), torch.zeros(1), num_bins=0)


def test_correlation_is_that_of_torch():
    x, y = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(correlation(x, y + x), torch.corrcoef(torch.stack([x, y + x]))[0, 1])
    assert correlation(x, torch.ones_like(x)).isnan()
