"""Advantages from a value function: how much better a token was than what was expected before it."""

import torch
from torch import Tensor

from lit_posttrain.functional.masking import check_mask


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gae_lambda: float, discount: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv:1506.02438), and the returns that a value function is fitted to.

    With delta_t = r_t + discount V_{t+1} - V_t the advantage is A_t = sum over s >= t of (discount gae_lambda)^(s-t)
    delta_s, and the return R_t = A_t + V_t. `gae_lambda=1` gives R_t = the discounted sum of what follows, without
    bias; `gae_lambda=0` gives r_t + discount V_{t+1}, with little variance. A sequence ends behind its last unmasked
    token, where the value is 0. Masked tokens between others are stepped over: they earn nothing and no time passes.

    A policy and its critic may take a lambda of their own: call it twice.

    Args:
        rewards: of each token, shape [B, C].
        values: of the state *before* each token, shape [B, C].
        mask: bool, shape [B, C].
        gae_lambda: in [0, 1].
        discount: of the next token, in [0, 1].

    Returns:
        Advantages and returns, both [B, C], detached, 0 where `mask` is False.

    Raises:
        ValueError: if `gae_lambda` or `discount` is not in [0, 1], or the shapes do not match.

    Example:
        >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.6]])
        >>> gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gae_lambda=0.95)
        (tensor([[0.7510, 0.5800, 0.4000]]), tensor([[0.9510, 0.9800, 1.0000]]))
    """
    for name, number in (("gae_lambda", gae_lambda), ("discount", discount)):
        if not 0 <= number <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {number}: it weighs what comes later.")
    check_mask(mask, rewards)
    check_mask(mask, values)
    dtype = torch.promote_types(rewards.dtype, values.dtype)
    rewards, values = rewards.detach().to(dtype), values.detach().to(dtype)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        counts = mask[:, step]
        delta = rewards[:, step] + discount * next_value - values[:, step]
        next_advantage = torch.where(counts, delta + discount * gae_lambda * next_advantage, next_advantage)
        next_value = torch.where(counts, values[:, step], next_value)
        advantages[:, step] = torch.where(counts, next_advantage, 0)
    return advantages, torch.where(mask, advantages + values, 0)
