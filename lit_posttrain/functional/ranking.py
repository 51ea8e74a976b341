"""How well scores rank pairs: numbers for a whole set, not differentiated."""

import torch
from torch import Tensor

from lit_posttrain.functional.pairs import as_pair


def pair_accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Share of pairs whose chosen one has the higher score; a tie counts one half.

    Args:
        chosen_scores: shape [B].
        rejected_scores: shape [B], of the same prompts.

    Returns:
        Shape [].

    Raises:
        ValueError: if the shapes are not one [B].

    Example:
        >>> pair_accuracy(torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
        tensor(0.6250)
    """
    chosen, rejected = as_pair(
        chosen_scores, rejected_scores, chosen_name="chosen_scores", rejected_name="rejected_scores"
    )
    return ((chosen > rejected).to(chosen.dtype) + 0.5 * (chosen == rejected).to(chosen.dtype)).mean()


def calibration_error(chosen_scores: Tensor, rejected_scores: Tensor, *, num_bins: int = 10) -> Tensor:
    """How far the stated certainty of a preference is from how often it is right, on average over pairs.

    A pair's certainty is sigmoid(|chosen - rejected|), from 1/2 to 1. Pairs are put into bins of equal width by it; in
    each the mean certainty is compared with the accuracy (the expected calibration error of arXiv:1706.04599).

    Args:
        chosen_scores: shape [B].
        rejected_scores: shape [B], of the same prompts.
        num_bins: between 1/2 and 1.

    Returns:
        Shape [], from 0 to 1.

    Raises:
        ValueError: if the shapes are not one [B], or there is no bin.

    Example:
        >>> ahead = torch.tensor([3.0, 1.0, 1.0, 1.0]).log()  # certain to 3/4, and to 1/2
        >>> calibration_error(ahead, torch.zeros(4))
        tensor(0.0625)
    """
    if num_bins < 1:
        raise ValueError(f"`num_bins` must be >= 1, got {num_bins}.")
    chosen, rejected = as_pair(
        chosen_scores, rejected_scores, chosen_name="chosen_scores", rejected_name="rejected_scores"
    )
    ahead = chosen - rejected
    certainty = torch.sigmoid(ahead.abs())
    right = (ahead > 0).to(ahead.dtype) + 0.5 * (ahead == 0).to(ahead.dtype)
    bins = ((certainty - 0.5) * 2 * num_bins).long().clamp(max=num_bins - 1)
    gaps = torch.zeros(num_bins, dtype=ahead.dtype, device=ahead.device).index_add(0, bins, right - certainty)
    return gaps.abs().sum() / len(ahead)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's coefficient; NaN where one of the two does not vary.

    Args:
        x: shape [B].
        y: shape [B].

    Returns:
        Shape [], from -1 to 1.

    Example:
        >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 7.0, 9.0]))
        tensor(1.)
    """
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()
