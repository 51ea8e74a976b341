"""Statistics over the positions that count.

A mask is bool and True marks what counts. What stands under False may be anything, NaN and infinity included: it
reaches neither the result nor the gradient. Each function replaces it *before* any arithmetic, because multiplying
by a zero mask afterwards would leave 0 * NaN = NaN in the gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def _alone(value: Tensor) -> Tensor:
    """What a reduction over one process is."""
    return value


def check_mask(mask: Tensor, values: Tensor | None = None) -> None:
    """Refuse a mask that torch would silently broadcast or read as weights.

    Raises:
        ValueError: if `mask` is not bool, or has another shape than `values`.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be bool, got {mask.dtype}: True marks what counts; convert with `mask.bool()`.")
    if values is not None and mask.shape != values.shape:
        raise ValueError(
            f"`mask` must have the shape of the values, {tuple(values.shape)}, got {tuple(mask.shape)}: "
            "broadcasting would count positions that do not exist; use `expand_as`."
        )


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over what counts: sum(mask * x) / sum(mask).

    Args:
        x: values of any shape; bool and integer values are averaged as numbers.
        mask: bool, shape of `x`.

    Returns:
        Scalar; 0 with a zero gradient when nothing counts.

    Raises:
        ValueError: if `mask` is not bool or has another shape than `x`.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    check_mask(mask, x)
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, *, unbiased: bool = False) -> Tensor:
    """Variance over what counts: sum(mask * (x - mean)^2) / n, or / (n - 1) when unbiased.

    Args:
        x: values of any shape.
        mask: bool, shape of `x`.
        unbiased: divide by n - 1 (Bessel's correction) instead of n.

    Returns:
        Scalar; 0 with a zero gradient when nothing counts, and for a single value either way.

    Raises:
        ValueError: if `mask` is not bool or has another shape than `x`.

    Example:
        >>> x, mask = torch.tensor([1.0, 2.0, 3.0, 4.0, 1e9]), torch.tensor([True, True, True, True, False])
        >>> masked_var(x, mask)
        tensor(1.2500)
        >>> masked_var(x, mask, unbiased=True)
        tensor(1.6667)
    """
    deviation = _deviation(x, mask, masked_mean(x, mask))
    degrees_of_freedom = mask.sum() - 1 if unbiased else mask.sum()
    return deviation.square().sum() / degrees_of_freedom.clamp(min=1)


def whiten(
    x: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    sum_over_ranks: Callable[[Tensor], Tensor] = _alone,
    max_over_ranks: Callable[[Tensor], Tensor] = _alone,
) -> Tensor:
    """Scale to unit variance, and to zero mean unless told otherwise: (x - mean) / sqrt(var + eps) [+ mean].

    The variance is the biased one, as in the code of Ziegler et al. (arXiv:1909.08593). The statistics are those of
    all that is given on all ranks: whiten a whole rollout at once, since those of a small micro-batch are mostly noise.

    Args:
        x: values of any shape.
        mask: bool, shape of `x`.
        shift_mean: move the mean to 0. False keeps the mean: wanted for per-token rewards, whose sign has a meaning.
        eps: added to the variance, in squared units of `x`.
        sum_over_ranks: all-reduce; none by default.
        max_over_ranks: all-reduce; none by default.

    Returns:
        Shape of `x`; 0 where `mask` is False.

    Raises:
        ValueError: if `eps` is not positive, or `mask` is not bool or has another shape than `x`.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> whiten(x, torch.ones(4, dtype=torch.bool))
        tensor([-1.3416, -0.4472,  0.4472,  1.3416])
    """
    if not eps > 0:
        raise ValueError(f"`eps` must be > 0, got {eps}: equal values have variance 0, and 0 / 0 is no number.")
    check_mask(mask, x)
    # Measured from the highest: equal values are then exact zeros, and so is their mean, in any precision.
    highest = max_over_ranks(torch.where(mask, x, -torch.inf).amax().detach())
    x = torch.where(mask, x - highest, 0)
    count, total = sum_over_ranks(torch.stack([mask.sum().to(x.dtype), x.sum()]))
    mean = total / count.clamp(min=1)
    centred = _deviation(x, mask, mean)
    variance = sum_over_ranks(centred.square().sum()) / count.clamp(min=1)
    whitened = centred / (variance + eps).sqrt()
    return whitened if shift_mean else torch.where(mask, whitened + highest + mean, 0)


def _deviation(x: Tensor, mask: Tensor, mean: Tensor) -> Tensor:
    """Distance from the mean, 0 where `mask` is False."""
    return torch.where(mask, x - mean, 0)
