"""Masks: made of lengths, and statistics and losses over the positions that count.

A mask is bool and True marks what counts. What stands under False may be anything, NaN and infinity included: it
reaches neither the result nor the gradient. Each function replaces it *before* any arithmetic, because multiplying
by a zero mask afterwards would leave 0 * NaN = NaN in the gradient.

The loss of an optimiser step is sum(numerators) / N, with N counted over all micro-batches and ranks of the step.
Dividing each micro-batch by its own count and averaging instead weighs a token by the company it happens to be in.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
"""How the tokens of a step are weighted.

- "token": every token alike (DAPO, arXiv:2503.14476, eq. 8; also SFT and PPO). Long sequences weigh more.
- "seq-mean-token-mean": every sequence alike, its tokens averaged (GRPO, arXiv:2402.03300, eq. 3; GSPO).
- "seq-mean-token-sum": every sequence alike, its tokens summed (RLOO, arXiv:2402.14740; the exact policy gradient).
- "constant": as the sum, divided by one fixed length for all (Dr. GRPO, arXiv:2503.20783).
"""


def pad_left(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Make one tensor of rows of token ids, padded on the left, and its mask: both (B, P)."""
    ids, mask = pad_right([row[::-1] for row in rows], pad_id=pad_id)
    return ids.flip(1), mask.flip(1)


def pad_right(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Make one tensor of rows of token ids, padded on the right, and its mask: both (B, C)."""
    lengths = torch.tensor([len(row) for row in rows])
    width = max(1, int(lengths.max()))
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows])
    return ids, lengths_to_mask(lengths, width)


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """Make a mask that is True at the first `lengths[i]` positions of row i: (B,) to (B, width)."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


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
    centered = _deviation(x, mask, mean)
    variance = sum_over_ranks(centered.square().sum()) / count.clamp(min=1)
    whitened = centered / (variance + eps).sqrt()
    return whitened if shift_mean else torch.where(mask, whitened + highest + mean, 0)


def _deviation(x: Tensor, mask: Tensor, mean: Tensor) -> Tensor:
    """Distance from the mean, 0 where `mask` is False."""
    return torch.where(mask, x - mean, 0)


def normalizer(mask: Tensor, mode: Aggregation, *, max_length: int | None = None) -> Tensor:
    """What these rows contribute to the denominator N of an optimiser step.

    Contributions add up: sum them over the micro-batches and ranks of a step, then pass the total to `aggregate`.

    Args:
        mask: bool, shape (B, C).
        mode: how tokens are weighted, one of `Aggregation`.
        max_length: the longest completion that sampling allows, in tokens; needed by "constant" only.

    Returns:
        Scalar, float32 (whole numbers are exact up to 2^24). "token": the number of tokens; the sequence modes: the
        number of rows with at least one token; "constant": that number times `max_length`.

    Raises:
        ValueError: if `mode` is unknown, `mask` is not bool, or "constant" lacks a positive `max_length`.

    Example:
        >>> mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
        >>> normalizer(mask, "token"), normalizer(mask, "seq-mean-token-mean")
        (tensor(3.), tensor(2.))
        >>> normalizer(mask, "constant", max_length=8)
        tensor(16.)
    """
    if mode not in get_args(Aggregation):
        raise ValueError(f"`mode` must be one of {', '.join(get_args(Aggregation))}, got {mode!r}.")
    check_mask(mask)
    if mode == "token":
        return mask.sum().to(torch.float32)
    rows = mask.any(dim=-1).sum().to(torch.float32)
    if mode != "constant":
        return rows
    if max_length is None or max_length < 1:
        raise ValueError(
            f'`max_length` must be >= 1 for "constant", got {max_length}: it is the length that every sequence is '
            "divided by; give the sampler's largest number of new tokens."
        )
    return rows * max_length


_own_normalizer = normalizer  # a name that the argument of `aggregate` does not hide


def aggregate(
    loss: Tensor,
    mask: Tensor,
    mode: Aggregation,
    *,
    normalizer: Tensor | float | None = None,
    max_length: int | None = None,
) -> Tensor:
    """Reduce per-token losses to a scalar: sum over what counts / max(N, 1).

    The only function that reduces a loss. With the N of the whole optimiser step, the results of its micro-batches
    add up to the result of the undivided batch, gradients included. Frameworks that average over ranks or
    micro-batches have to be compensated by their number; that is the caller's part.

    Args:
        loss: per-token losses, shape (B, C).
        mask: bool, shape (B, C). A row without a token contributes nothing.
        mode: how tokens are weighted, one of `Aggregation`.
        normalizer: N of the whole optimiser step; None takes this batch's own (the function of that name).
        max_length: for "constant" without a `normalizer`: the longest completion that sampling allows, in tokens.

    Returns:
        Scalar. Where nothing counts it is 0 and still part of the graph, so that backward gives zeros and every rank
        takes part in the gradient reduction.

    Raises:
        ValueError: if `mode` is unknown, `mask` is not bool or has another shape than `loss`, or "constant" has
            neither a `normalizer` nor a positive `max_length`.

    Example:
        >>> loss = torch.tensor([[1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
        >>> mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
        >>> aggregate(loss, mask, "token"), aggregate(loss, mask, "seq-mean-token-mean")
        (tensor(1.6667), tensor(1.5000))
    """
    check_mask(mask, loss)
    own = _own_normalizer(mask, mode, max_length=max_length if normalizer is None else 1)
    total = own if normalizer is None else torch.as_tensor(normalizer)
    kept = torch.where(mask, loss, 0)
    if mode == "seq-mean-token-mean":
        kept = kept / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return kept.sum() / total.clamp(min=1)
