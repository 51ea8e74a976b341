"""Estimates of the KL divergence from a reference, their penalty, and the coefficient that steers it."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lit_posttrain.functional.logprobs import bounded

KLEstimator = Literal["k1", "k2", "k3"]
KLGradient = Literal["k2", "k3", "ratio_k1", "ratio_k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) per token; for metrics, and for KL in the reward (use "k1" there).

    l is clamped to +-20 nats, so that k3 stays finite; beyond, the value is that of the bound and the gradient 0.
    The gradient flows to `logprobs` as in the formula, which makes a poor loss: that of "k1" is 0 in expectation, and
    that of "k3" descends the other divergence. Use `kl_penalty` as a loss.

    Args:
        logprobs: of the sampled tokens under the policy, nats, any shape.
        ref_logprobs: of the same tokens under the reference; detached here.
        estimator: see the head of the module.

    Returns:
        Shape of `logprobs`, nats.

    Raises:
        ValueError: if `estimator` is unknown.

    Example:
        >>> l, zero = torch.tensor([1.0, -1.0]), torch.zeros(2)
        >>> kl_estimate(l, zero, estimator="k2"), kl_estimate(l, zero, estimator="k3")
        (tensor([0.5000, 0.5000]), tensor([0.3679, 0.7183]))
    """
    if estimator not in _ESTIMATORS:
        raise ValueError(f"`estimator` must be one of {', '.join(_ESTIMATORS)}, got {estimator!r}.")
    return _ESTIMATORS[estimator](bounded(logprobs - ref_logprobs.detach()))


def kl_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    old_logprobs: Tensor,
    *,
    value: KLEstimator = "k3",
    gradient: KLGradient = "ratio_k3",
) -> Tensor:
    """Per-token loss term that *reads* as one estimator and *descends* by the gradient of another.

    With r = exp(logprobs - old_logprobs) and tokens from the old policy, the expected gradient per token is that of

    ========== ==================== =====================================================================
    gradient   d term / d logprobs  descends
    ========== ==================== =====================================================================
    k2         l                    KL(policy || reference), when exactly on-policy
    k3         1 - e^-l             KL(reference || policy), the other divergence, when exactly on-policy
    ratio_k1   r (l + 1)            KL(policy || reference), off-policy too
    ratio_k3   r l                  KL(policy || reference), off-policy too, with less variance
    ========== ==================== =====================================================================

    "k3" is the loss of the first GRPO paper (arXiv:2402.03300, eq. 4); on its gradient and the ratio that repairs it
    see arXiv:2506.09477 and arXiv:2512.21852. All are per token: the effect of a token on the divergence of *later*
    tokens is only in a KL that is part of the reward (k1, reward-to-go).

    l and logprobs - old_logprobs are clamped to +-20 nats, which bounds value and gradient; unlike that of
    `kl_estimate`, the gradient is held at the bound, not zeroed: a token that far off needs the pull most.

    Takes no mask: a NaN among positions that do not count would reach the gradient as 0 * NaN, so fill those first.

    Args:
        logprobs: of the sampled tokens under the policy, nats, any shape.
        ref_logprobs: under the reference; detached here.
        old_logprobs: under the policy that sampled; detached here. `logprobs.detach()` when exactly on-policy.
        value: the estimator that the result equals, not weighted by r.
        gradient: the row of the table.

    Returns:
        Shape of `logprobs`, nats.

    Raises:
        ValueError: if `value` or `gradient` is unknown.

    Example:
        >>> logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
        >>> penalty = kl_penalty(logprobs, torch.tensor([-2.0, -2.0]), logprobs.detach())
        >>> penalty.detach(), *torch.autograd.grad(penalty.sum(), logprobs)
        (tensor([0.3679, 0.7183]), tensor([ 1., -1.]))
    """
    if gradient not in _GRADIENTS:
        raise ValueError(f"`gradient` must be one of {', '.join(_GRADIENTS)}, got {gradient!r}.")
    fixed = logprobs.detach()
    log_ratio = bounded(fixed - ref_logprobs.detach())
    ratio = bounded(fixed - old_logprobs.detach()).exp()
    slope = _GRADIENTS[gradient](log_ratio, ratio)
    # The second term is exactly 0 and carries the gradient.
    return kl_estimate(fixed, ref_logprobs, estimator=value) + slope * (logprobs - fixed)


# `expm1`: near l = 0, where a policy starts, e^-l - 1 loses every digit of k3 in float32.
_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: log_ratio.square() / 2,
    "k3": lambda log_ratio: torch.expm1(-log_ratio) + log_ratio,
}

# d/d logprobs of the named term, by hand: ratio_k3 is r (k3 + dk3/dl) = r (e^-l - 1 + l + 1 - e^-l) = r l.
_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k2": lambda log_ratio, ratio: log_ratio,
    "k3": lambda log_ratio, ratio: -torch.expm1(-log_ratio),
    "ratio_k1": lambda log_ratio, ratio: ratio * (log_ratio + 1),
    "ratio_k3": lambda log_ratio, ratio: ratio * log_ratio,
}


MAX_ERROR = 0.2


def adapted_kl_coef(kl_coef: float, *, kl: float, target: float, horizon: int, num_sequences: int) -> float:
    """The next coefficient of Ziegler et al. (arXiv:1909.08593, section 2.2): proportional control of its logarithm.

    kl_coef (1 + clip(kl / target - 1, -0.2, 0.2) num_sequences / horizon).

    Args:
        kl_coef: the current coefficient.
        kl: measured from the reference, mean over sequences of the sum over tokens, nats.
        target: what it should be, nats per sequence.
        horizon: sequences after which an error at the clip has changed the coefficient by about a fifth.
        num_sequences: sequences since the last change.

    Raises:
        ValueError: if `target` or `horizon` is not positive, or `num_sequences` is above `horizon` times 5, where the
            coefficient could reach 0.

    Example:
        >>> round(adapted_kl_coef(0.15, kl=7.0, target=6.0, horizon=10_000, num_sequences=512), 6)
        0.15128
    """
    if not target > 0:
        raise ValueError(f"`target` must be > 0, got {target}: nats per sequence.")
    if horizon < 1:
        raise ValueError(f"`horizon` must be >= 1, got {horizon}: it counts sequences.")
    if num_sequences * MAX_ERROR >= horizon:
        raise ValueError(
            f"`horizon` must be above {MAX_ERROR:.1f} x the sequences of a rollout, got {horizon} for {num_sequences}: "
            "the coefficient could reach 0 at once. Raise it; 10000 is common."
        )
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return kl_coef * (1 + error * num_sequences / horizon)
