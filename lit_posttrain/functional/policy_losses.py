"""Per-token policy-gradient losses. They are reduced by `aggregate` alone.

`log_ratio` is logprobs - old_logprobs, with the old ones detached by the caller; exactly on-policy it is
`logprobs - logprobs.detach()`. No loss here takes a mask: `aggregate` does. Fill what does not count before the call,
`torch.where(mask, logprobs - old_logprobs, 0)`, or a NaN there reaches the gradient as 0 * NaN.

Log-ratios are clamped to +-20 nats before `exp`, with gradient 0 beyond: a ratio of e^20 comes from a token that is
broken, and its gradient would drown all others.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_posttrain.functional.logprobs import bounded
from lit_posttrain.functional.masking import check_mask


class PolicyLoss(NamedTuple):
    """Per-token loss and where it was clipped, both (B, C).

    Attributes:
        loss: not reduced.
        clipped: bool. For `clipped_policy_loss`: the clipped branch is strictly the larger loss, and no gradient
            flows. For `cispo_loss`: the ratio is outside its bounds, and the gradient flows with the clipped weight.
    """

    loss: Tensor
    clipped: Tensor


def clipped_policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate: max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)), r = exp(log_ratio).

    PPO (arXiv:1707.06347, eq. 7) as a loss to descend, with DAPO's two bounds (arXiv:2503.14476, eq. 8). The dual
    clip (arXiv:1912.09729) bounds what is left unbounded: for A < 0 the loss is at most -A * `dual_clip`, and its
    gradient beyond is 0. `clipped` does not include that second bound.

    Args:
        log_ratio: shape (B, C), nats. Of the token, or of its sequence (`sequence_log_ratio`).
        advantages: shape (B, C), or (B, 1) for one per sequence; detached here.
        clip_low: how far the ratio may fall below 1; `math.inf` for no bound.
        clip_high: how far the ratio may rise above 1; `math.inf` for no bound.
        dual_clip: the largest ratio that counts where A < 0; None for no bound.

    Returns:
        Loss and clip mask, both (B, C).

    Raises:
        ValueError: if a bound is negative, `dual_clip` is not above 1, or the shapes do not match.

    Example:
        >>> log_ratio = torch.tensor([[0.5, 1.5, 1.5]]).log()
        >>> clipped_policy_loss(log_ratio, torch.tensor([[1.0, 1.0, -1.0]]), clip_low=0.2, clip_high=0.2)
        PolicyLoss(loss=tensor([[-0.5000, -1.2000,  1.5000]]), clipped=tensor([[False,  True, False]]))
    """
    _check(log_ratio, advantages, clip_low, clip_high, dual_clip)
    advantages = advantages.detach()
    ratio = bounded(log_ratio).exp()
    surrogate = -advantages * ratio
    held = -advantages * ratio.detach().clamp(min=1 - clip_low, max=1 + clip_high)
    clipped = held > surrogate
    # Not `maximum`: at a tie, which is every token inside the range, it would split the gradient between branches.
    loss = torch.where(clipped, held, surrogate)
    if dual_clip is not None:
        ceiling = -advantages * dual_clip
        loss = torch.where((advantages < 0) & (loss > ceiling), ceiling, loss)
    return PolicyLoss(loss, clipped)


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor, *, reduction: Literal["mean", "sum"]) -> Tensor:
    """One log-ratio per sequence, written at each of its tokens.

    "mean" is the ratio of GSPO (arXiv:2507.18071, in eq. 5), (pi(y) / pi_old(y))^(1 / length); "sum" that of whole
    sequences, pi(y) / pi_old(y), as RLOO has it. The result takes the place of the token's log-ratio in
    `clipped_policy_loss`. Every token then carries the loss of its sequence, and "seq-mean-token-mean" makes of it
    the mean over sequences, value and gradient; other modes weigh sequences by length.

    Args:
        log_ratio: per token, shape (B, C), nats.
        mask: bool, shape (B, C).
        reduction: over the tokens of a sequence.

    Returns:
        Shape (B, C), nats, the same number along a row; 0 for a row without tokens.

    Raises:
        ValueError: if `reduction` is unknown, or `mask` is not bool or has another shape than `log_ratio`.

    Example:
        >>> sequence_log_ratio(torch.tensor([[0.1, -0.05, 0.2]]), torch.tensor([[True, True, True]]), reduction="sum")
        tensor([[0.2500, 0.2500, 0.2500]])
    """
    check_mask(mask, log_ratio)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be mean or sum, got {reduction!r}.")
    total = torch.where(mask, log_ratio, 0).sum(dim=-1, keepdim=True)
    if reduction == "mean":
        total = total / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    return total.expand_as(log_ratio)


def cispo_loss(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """REINFORCE with a clipped importance weight: -detach(clip(r, 1 - clip_low, 1 + clip_high)) A logprobs.

    CISPO (arXiv:2506.13585, eq. 4): the weight is bounded and the gradient of no token is zeroed. The paper sets no
    lower bound, which is `clip_low=1` here. Only the gradient has a meaning; the value is no surrogate objective.

    Args:
        logprobs: shape (B, C), nats.
        log_ratio: shape (B, C), nats; of the token, or of its sequence (`sequence_log_ratio`); detached here.
        advantages: shape (B, C), or (B, 1) for one per sequence; detached here.
        clip_low: how far the weight may fall below 1; 1 or more for no bound.
        clip_high: how far the weight may rise above 1; `math.inf` for no bound.

    Returns:
        Loss and where the ratio is outside its bounds, both (B, C).

    Raises:
        ValueError: if a bound is negative, or the shapes do not match.

    Example:
        >>> log_ratio = torch.tensor([[1.5, 0.5]]).log()
        >>> cispo_loss(torch.tensor([[-1.0, -1.0]]), log_ratio, torch.ones(1, 1), clip_low=1.0, clip_high=0.28)
        PolicyLoss(loss=tensor([[1.2800, 0.5000]]), clipped=tensor([[ True, False]]))
    """
    _check(logprobs, advantages, clip_low, clip_high, None)
    ratio = bounded(log_ratio.detach()).exp()
    weight = ratio.clamp(min=1 - clip_low, max=1 + clip_high)
    return PolicyLoss(-weight * advantages.detach() * logprobs, weight != ratio)


def importance_weights(log_ratio: Tensor, *, cap: float) -> Tensor:
    """Truncated importance sampling: min(exp(log_ratio), cap), detached, to multiply a per-token loss with.

    Corrects for samples of another policy than the one that the ratio of the loss starts from, such as those of an
    inference engine (Ionides 2008, "Truncated Importance Sampling"). The cap trades variance for bias.

    Args:
        log_ratio: log-probability under the trained model minus that of the sampler, any shape, nats.
        cap: the largest weight; `math.inf` for no bound.

    Returns:
        Shape of `log_ratio`.

    Raises:
        ValueError: if `cap` is not positive.

    Example:
        >>> importance_weights(torch.tensor([0.1, 1.2, -0.3]), cap=2.0)
        tensor([1.1052, 2.0000, 0.7408])
    """
    if not cap > 0:
        raise ValueError(f"`cap` must be > 0, got {cap}: weights are positive, and 2 to 3 is common.")
    return bounded(log_ratio.detach()).exp().clamp(max=cap)


def _check(tokens: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    for name, bound in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not bound >= 0:
            raise ValueError(f"`{name}` must be >= 0, got {bound}: it is a distance of the ratio from 1.")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"`dual_clip` must be > 1, got {dual_clip}: it bounds the ratio itself; 3 is common.")
    if advantages.shape not in (tokens.shape, (*tokens.shape[:-1], 1)):
        raise ValueError(
            f"`advantages` must have shape {tuple(tokens.shape)} or {(*tokens.shape[:-1], 1)}, "
            f"got {tuple(advantages.shape)}: broadcasting (B,) over tokens would mix up the sequences; unsqueeze it."
        )
