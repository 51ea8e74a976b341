"""Per-token losses of a value function, and how much it explains. Losses are reduced by `aggregate` alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_posttrain.functional.masking import check_mask


class ValueLoss(NamedTuple):
    """Per-token loss and where it was clipped, both (B, C).

    Attributes:
        loss: not reduced.
        clipped: bool; the clipped branch is strictly the larger loss.
    """

    loss: Tensor
    clipped: Tensor


def clipped_value_loss(values: Tensor, returns: Tensor, old_values: Tensor, *, clip: float | None) -> ValueLoss:
    """Half the squared error, of the value or of the value held near the old one, whichever is larger.

    max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2) / 2, as in the code of Ziegler et al.
    (arXiv:1909.08593): a value that has moved further than `clip` in the right direction has no gradient.

    Args:
        values: shape (B, C).
        returns: what they should be, shape (B, C); detached here.
        old_values: those of the rollout, shape (B, C); detached here.
        clip: in units of value; None = the plain squared error.

    Returns:
        Loss and clip mask, both (B, C).

    Raises:
        ValueError: if `clip` is not positive, or the shapes differ.

    Example:
        >>> clipped_value_loss(torch.tensor([[1.0]]), torch.tensor([[0.9]]), torch.tensor([[0.5]]), clip=0.2)
        ValueLoss(loss=tensor([[0.0200]]), clipped=tensor([[True]]))
    """
    if clip is not None and not clip > 0:
        raise ValueError(f"`clip` must be > 0 or None, got {clip}: it is a distance from the old value.")
    if not values.shape == returns.shape == old_values.shape:
        raise ValueError(
            f"`values`, `returns` and `old_values` must have one shape, got {tuple(values.shape)}, "
            f"{tuple(returns.shape)} and {tuple(old_values.shape)}."
        )
    returns, old_values = returns.detach(), old_values.detach()
    error = (values - returns).square()
    if clip is None:
        return ValueLoss(error / 2, torch.zeros_like(error, dtype=torch.bool))
    held = old_values + (values - old_values).clamp(min=-clip, max=clip)
    bounded = (held - returns).square()
    clipped = bounded > error
    # Not `maximum`: at a tie, which is every value inside the range, it would split the gradient between branches.
    return ValueLoss(torch.where(clipped, bounded, error) / 2, clipped)


def explained_variance(
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    punish_bias: bool = False,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Share of the variance of the returns that the values account for: 1 - Var(R - V) / Var(R).

    1 is a perfect critic, 0 one that is no better than a constant, negative one that is worse.

    Args:
        values: shape (B, C).
        returns: shape (B, C).
        mask: bool, shape (B, C).
        punish_bias: 1 - mean((R - V)^2) / Var(R) instead, for which a constant offset of the values is an error too.
        sum_over_ranks: adds a tensor up over processes; None = there is one.

    Returns:
        Scalar; NaN where the returns do not vary.

    Raises:
        ValueError: if `mask` is not bool or has another shape.

    Example:
        >>> values, returns = torch.tensor([[1.5, 2.0, 2.5, 4.5]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
        >>> everywhere = torch.ones(1, 4, dtype=torch.bool)
        >>> explained_variance(values, returns, everywhere)
        tensor(0.8625)
        >>> explained_variance(values, returns, everywhere, punish_bias=True)
        tensor(0.8500)
    """
    check_mask(mask, values)
    check_mask(mask, returns)
    total = sum_over_ranks or (lambda tensor: tensor)
    dtype = torch.promote_types(torch.promote_types(values.dtype, returns.dtype), torch.float32)
    chosen, errors = returns[mask].to(dtype), (returns - values)[mask].to(dtype)
    count, *sums = total(torch.stack([chosen.new_tensor(float(len(chosen))), chosen.sum(), errors.sum()]))
    mean, mean_error = (each / count.clamp(min=1) for each in sums)
    center = torch.zeros_like(mean_error) if punish_bias else mean_error
    spread, rest = total(torch.stack([(chosen - mean).square().sum(), (errors - center).square().sum()]))
    return torch.where(spread > 0, 1 - rest / spread, torch.nan)
