"""The chance that at least one of k samples is right."""

import torch
from torch import Tensor


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
