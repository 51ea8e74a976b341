"""Advantages: rewards compared with their group, with what is still to come, or with what a critic expected."""

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_posttrain.functional.masking import check_mask, masked_var

Baseline = Literal["mean", "leave_one_out"]
AdvantageScale = Literal["group", "batch", "none"]


def group_advantages(
    rewards: Tensor,
    *,
    group_size: int,
    baseline: Baseline = "mean",
    scale: AdvantageScale = "group",
    eps: float = 1e-4,
) -> Tensor:
    """How much better each completion is than the others of its prompt: (r - baseline) / (std + eps).

    "mean" with "group" is GRPO (arXiv:2402.03300, section 4.1.2), "mean" with "none" is Dr. GRPO (arXiv:2503.20783),
    "leave_one_out" with "none" is RLOO (arXiv:2402.14740): the baseline of a completion is the mean of the *others*,
    so that A = G / (G - 1) (r - mean).

    Differs from the papers: the standard deviation has G - 1 in the denominator (ddof 1) and `eps` beside it, as in
    the common implementations. A reward that is not finite (NaN: could not be scored) is left out of mean and
    standard deviation and has advantage 0, as has a reward that is alone in its group.

    Args:
        rewards: shape (B,), B = prompts x `group_size`, the completions of a prompt contiguous; integers become
            float32.
        group_size: G, completions per prompt.
        baseline: what is subtracted.
        scale: "group" divides by the standard deviation of the group's rewards, "batch" by that of all rewards
            given (before any baseline), "none" does not divide.
        eps: added to the standard deviation, in units of reward.

    Returns:
        Shape (B,), detached. Exactly 0 for a group of equal rewards.

    Raises:
        ValueError: if `group_size` is below 2 or does not divide B, `rewards` is not (B,), `eps` is not positive, or
            `baseline` or `scale` is unknown.

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4)
        tensor([ 1.4997, -0.4999, -0.4999, -0.4999])
        >>> group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4, baseline="leave_one_out", scale="none")
        tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    if group_size < 2:
        raise ValueError(f"`group_size` must be >= 2, got {group_size}: the completions of one prompt are compared.")
    if rewards.dim() != 1:
        raise ValueError(f"`rewards` must have shape (B,), got {tuple(rewards.shape)}: one number per completion.")
    if len(rewards) % group_size != 0:
        raise ValueError(
            f"`group_size` must divide the number of rewards, got {group_size} and {len(rewards)}: "
            "groups are contiguous and complete; mark what could not be scored with NaN."
        )
    if baseline not in get_args(Baseline):
        raise ValueError(f"`baseline` must be one of {', '.join(get_args(Baseline))}, got {baseline!r}.")
    if scale not in get_args(AdvantageScale):
        raise ValueError(f"`scale` must be one of {', '.join(get_args(AdvantageScale))}, got {scale!r}.")
    if not eps > 0:
        raise ValueError(f"`eps` must be > 0, got {eps}: equal rewards have a standard deviation of 0.")
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    grouped = rewards.reshape(len(rewards) // group_size, group_size)  # (B / G, G)
    scorable = grouped.isfinite()
    count = scorable.sum(dim=1, keepdim=True)

    # Measured from the group's best: equal rewards are then exact zeros, and so is their mean, in any precision.
    best = torch.where(scorable, grouped, -torch.inf).amax(dim=1, keepdim=True)
    shifted = torch.where(scorable, grouped - best, 0)
    mean = shifted.sum(dim=1, keepdim=True) / count.clamp(min=1)
    centered = torch.where(scorable, shifted - mean, 0)

    advantages = centered
    if baseline == "leave_one_out":
        advantages = centered * count / (count - 1).clamp(min=1)
    if scale == "group":
        variance = centered.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)
        advantages = advantages / (variance.sqrt() + eps)
    elif scale == "batch":
        advantages = advantages / (masked_var(grouped, scorable, unbiased=True).sqrt() + eps)
    return advantages.reshape(-1)


def rewards_of_tokens(
    rewards: Tensor,
    mask: Tensor,
    *,
    given: Tensor | None = None,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
) -> Tensor:
    """Lay the reward of a completion on its tokens: the last one gets it, and each pays for its KL.

    Args:
        rewards: of whole completions, shape (B,), what is `given` included.
        mask: bool, shape (B, C), True on the tokens of a completion, which are its first ones.
        given: the part that was given token by token, shape (B, C); None = nothing was.
        kl: from the reference at each token, shape (B, C), nats; None = none is paid for.
        kl_coef: units of reward per nat.

    Returns:
        Shape (B, C), 0 where `mask` is False.

    Raises:
        ValueError: if `mask` is not bool.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> rewards_of_tokens(torch.tensor([1.0]), mask, kl=torch.tensor([[0.5, 0.25, 9.0]]), kl_coef=0.1)
        tensor([[-0.0500,  0.9750,  0.0000]])
    """
    check_mask(mask)
    dtype = rewards.dtype if kl is None else torch.promote_types(rewards.dtype, kl.dtype)
    earned = torch.zeros(mask.shape, dtype=dtype, device=mask.device) if given is None else given.to(dtype)
    last = mask.sum(1, keepdim=True) - 1
    earned = earned.scatter_add(1, last, (rewards.to(dtype) - earned.sum(1))[:, None])
    if kl is not None:
        earned = earned - kl_coef * kl
    return earned.masked_fill(~mask, 0)


def reward_to_go(rewards: Tensor, mask: Tensor, *, discount: float = 1.0) -> Tensor:
    """What a sequence still earns from each token on: sum over s >= t of discount^(s - t) rewards_s.

    Masked tokens between others are stepped over: they earn nothing and no time passes at them.

    Args:
        rewards: per token, shape (B, C).
        mask: bool, shape (B, C).
        discount: of the next token, in [0, 1].

    Returns:
        Shape (B, C), 0 where `mask` is False.

    Raises:
        ValueError: if `mask` is not bool or has another shape than `rewards`.

    Example:
        >>> reward_to_go(torch.tensor([[-0.5, -0.5, 1.0, 9.0]]), torch.tensor([[True, True, True, False]]))
        tensor([[0.0000, 0.5000, 1.0000, 0.0000]])
    """
    check_mask(mask, rewards)
    returns = torch.zeros_like(rewards)
    ahead = torch.zeros_like(rewards[:, 0])
    for step in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, step], rewards[:, step] + discount * ahead, ahead)
        returns[:, step] = torch.where(mask[:, step], ahead, 0)
    return returns


def has_spread(rewards: Tensor, *, group_size: int) -> Tensor:
    """Which groups have something to compare: two rewards that differ.

    Args:
        rewards: shape (B,), the completions of a prompt contiguous; NaN = not scorable, which counts for nothing.
        group_size: G.

    Returns:
        Bool, shape [B / G].

    Example:
        >>> has_spread(torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, torch.nan]), group_size=2)
        tensor([ True, False, False])
    """
    grouped = rewards.view(-1, group_size)
    scorable = grouped.isfinite()
    highest = torch.where(scorable, grouped, -torch.inf).amax(1)
    return highest > torch.where(scorable, grouped, torch.inf).amin(1)


def overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int, factor: float = 1.0) -> Tensor:
    """What to add to the reward of a long completion: 0 up to `max_length - buffer`, then linear down to -`factor`.

    DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13). Differs from the paper: `factor` scales it.

    Args:
        lengths: completion lengths in tokens, shape (B,).
        max_length: where the penalty reaches -`factor`, in tokens.
        buffer: over how many tokens it builds up.
        factor: the largest penalty, in units of reward.

    Returns:
        Shape (B,), in [-factor, 0].

    Raises:
        ValueError: if `buffer` is not in 1..`max_length`, or `factor` is negative.

    Example:
        >>> overlong_penalty(torch.tensor([6, 8, 10]), max_length=10, buffer=4)
        tensor([ 0.0000, -0.5000, -1.0000])
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(
            f"`buffer` must be in 1..max_length ({max_length}), got {buffer}: the penalty builds up over the last "
            "`buffer` tokens."
        )
    if not factor >= 0:
        raise ValueError(f"`factor` must be >= 0, got {factor}: it is the size of the penalty, subtracted here.")
    return factor * ((max_length - buffer - lengths) / buffer).clamp(min=-1, max=0)


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
        rewards: of each token, shape (B, C).
        values: of the state *before* each token, shape (B, C).
        mask: bool, shape (B, C).
        gae_lambda: in [0, 1].
        discount: of the next token, in [0, 1].

    Returns:
        Advantages and returns, both (B, C), detached, 0 where `mask` is False.

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
