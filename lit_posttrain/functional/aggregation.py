"""From per-token losses to the one number that is differentiated.

The loss of an optimiser step is sum(numerators) / N, with N counted over all micro-batches and ranks of the step.
Dividing each micro-batch by its own count and averaging instead weighs a token by the company it happens to be in.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_posttrain.functional.masking import check_mask

Aggregation = Literal["token", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
"""How the tokens of a step are weighted.

- "token": every token alike (DAPO, arXiv:2503.14476, eq. 8; also SFT and PPO). Long sequences weigh more.
- "seq-mean-token-mean": every sequence alike, its tokens averaged (GRPO, arXiv:2402.03300, eq. 3; GSPO).
- "seq-mean-token-sum": every sequence alike, its tokens summed (RLOO, arXiv:2402.14740; the exact policy gradient).
- "constant": as the sum, divided by one fixed length for all (Dr. GRPO, arXiv:2503.20783).
"""


def normalizer(mask: Tensor, mode: Aggregation, *, max_length: int | None = None) -> Tensor:
    """What these rows contribute to the denominator N of an optimiser step.

    Contributions add up: sum them over the micro-batches and ranks of a step, then pass the total to `aggregate`.

    Args:
        mask: bool, shape [B, C].
        mode: see `Aggregation`.
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
    return _count(mask, mode, max_length)


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
        loss: per-token losses, shape [B, C].
        mask: bool, shape [B, C]. A row without a token contributes nothing.
        mode: see `Aggregation`.
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
    _check_mode(mode)
    check_mask(mask, loss)
    total = _count(mask, mode, max_length) if normalizer is None else torch.as_tensor(normalizer)
    kept = torch.where(mask, loss, 0)
    if mode == "seq-mean-token-mean":
        kept = kept / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return kept.sum() / total.clamp(min=1)


def _count(mask: Tensor, mode: Aggregation, max_length: int | None) -> Tensor:
    """The body of `normalizer`, under a name that the argument of `aggregate` does not hide."""
    _check_mode(mode)
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


def _check_mode(mode: str) -> None:
    if mode not in get_args(Aggregation):
        raise ValueError(f"`mode` must be one of {', '.join(get_args(Aggregation))}, got {mode!r}.")
