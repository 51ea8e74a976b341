"""How well scores tell completions apart: accuracy, calibration, correlation, pass@k."""

import torch
from torch import Tensor

from lit_posttrain.functional.preference_losses import as_pair


def pair_accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """Share of pairs whose chosen one has the higher score; a tie counts one half.

    Args:
        chosen_scores: shape (B,).
        rejected_scores: shape (B,), of the same prompts.

    Returns:
        Shape [].

    Raises:
        ValueError: if the shapes are not one (B,).

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
        chosen_scores: shape (B,).
        rejected_scores: shape (B,), of the same prompts.
        num_bins: between 1/2 and 1.

    Returns:
        Shape [], from 0 to 1.

    Raises:
        ValueError: if the shapes are not one (B,), or there is no bin.

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
        x: shape (B,).
        y: shape (B,).

    Returns:
        Shape [], from -1 to 1.

    Example:
        >>> correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 7.0, 9.0]))
        tensor(1.)
    """
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def pass_at_k(num_samples: int, num_correct: Tensor, *, k: int) -> Tensor:
    """Unbiased estimate from n >= k samples per problem: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021 (arXiv:2107.03374, eq. 1), as the product of (1 - k / i) over i = n - c + 1 .. n, in which no
    binomial overflows. The plug-in estimate 1 - (1 - c / n)^k is too low.

    Args:
        num_samples: n, samples per problem.
        num_correct: c, how many of them were right, shape [N].
        k: number of attempts.

    Returns:
        Shape [N], in [0, 1].

    Raises:
        ValueError: if `k` is not in 1..`num_samples`, or a count is not in 0..`num_samples`.

    Example:
        >>> pass_at_k(5, torch.tensor([0, 1, 2, 5]), k=2)
        tensor([0.0000, 0.4000, 0.7000, 1.0000])
    """
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"`k` must be in 1..num_samples ({num_samples}), got {k}: the estimate draws k of the samples; "
            "sample more, or ask for a smaller k."
        )
    if ((num_correct < 0) | (num_correct > num_samples)).any():
        raise ValueError(f"`num_correct` must be in 0..num_samples ({num_samples}), got {num_correct.tolist()}.")
    counts = num_correct.to(torch.promote_types(num_correct.dtype, torch.float32)).unsqueeze(-1)  # [N, 1]
    i = torch.arange(1, num_samples + 1, dtype=counts.dtype, device=counts.device)  # [n]
    # With fewer than k wrong samples some i equals k, its factor is 0, and the estimate exactly 1.
    factors = torch.where(i > num_samples - counts, 1 - k / i, 1)  # [N, n]
    return 1 - factors.prod(dim=-1)
