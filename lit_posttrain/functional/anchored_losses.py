"""Losses of preferences that hold each completion against the reference, not only against its partner.

The losses of `preference_losses` see a difference alone: they also fall when both completions become less likely, the
rejected one faster. These here see where each stands. Log-ratios are as there: h = logprobs - ref_logprobs of whole
completions, [B], in nats; h_w of the chosen and h_l of the rejected one, D = h_w - h_l. Nothing is reduced.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_posttrain.functional.pairs import as_pair, check_beta, check_not_negative, upcast


def apo_zero_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Chosen up, rejected down: 1 - sigmoid(beta h_w) + sigmoid(beta h_l).

    APO-zero (arXiv:2408.06266, eq. 7), for chosen completions that are better than what the policy writes. Differs
    from the paper: 1 is added, so that the loss is never negative.

    Args:
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: reward per nat.

    Returns:
        Shape [B], in (0, 2); 1 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one [B].

    Example:
        >>> apo_zero_loss(torch.tensor([1.0]), torch.tensor([-0.5]), beta=0.1)
        tensor([0.9625])
    """
    chosen, rejected = _rewards(chosen_log_ratio, rejected_log_ratio, beta)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Both down, rejected further: sigmoid(beta h_w) + 1 - sigmoid(beta D).

    APO-down (arXiv:2408.06266, eq. 8), for chosen completions that are worse than what the policy writes. Differs
    from the paper: 1 is added, so that the loss is never negative.

    Args:
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: reward per nat.

    Returns:
        Shape [B], in (0, 2); 1 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one [B].

    Example:
        >>> apo_down_loss(torch.tensor([1.0]), torch.tensor([-0.5]), beta=0.1)
        tensor([0.9875])
    """
    chosen, rejected = _rewards(chosen_log_ratio, rejected_log_ratio, beta)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def nca_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Noise-contrastive: -log sigmoid(beta h_w) - (log sigmoid(-beta h_w) + log sigmoid(-beta h_l)) / 2.

    NCA (arXiv:2402.05369) for two completions, the chosen one with all the preference. The chosen one is told from
    noise that is either of the two, which raises its likelihood until beta h_w = log 2.

    Args:
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: reward per nat.

    Returns:
        Shape [B], nats; 2 log 2 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one [B].

    Example:
        >>> nca_loss(torch.tensor([1.0]), torch.tensor([-0.5]), beta=0.1)
        tensor([1.3508])
    """
    chosen, rejected = _rewards(chosen_log_ratio, rejected_log_ratio, beta)
    return -logsigmoid(chosen) - (logsigmoid(-chosen) + logsigmoid(-rejected)) / 2


def sppo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Regression of each log-ratio to its own goal: (h_w - 1 / (2 beta))^2 + (h_l + 1 / (2 beta))^2.

    SPPO (arXiv:2405.00675) with hard labels: the paper regresses to (P - 1/2) / beta, P the estimated probability of
    winning against the policy, which is 1 and 0 here; its eta is 1 / `beta`, and its reference is the policy of the
    last round.

    Args:
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: 1 / (2 beta) is the goal in nats.

    Returns:
        Shape [B], nats squared; 1 / (2 beta^2) where policy and reference agree. Float64 for float64 log-ratios,
        otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one [B].

    Example:
        >>> sppo_loss(torch.tensor([1.0]), torch.tensor([-0.5]), beta=0.1)
        tensor([36.2500])
    """
    check_beta(beta)
    chosen, rejected = _pair(chosen_log_ratio, rejected_log_ratio)
    goal = 1 / (2 * beta)
    return torch.square(chosen - goal) + torch.square(rejected + goal)


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Completions without partners: w_d (1 - sigmoid(beta (h - z))) if desirable, else w_u (1 - sigmoid(beta (z - h))).

    KTO (arXiv:2402.01306, section 4). z = max(0, `kl`) is the reference point of all completions, and not trained.
    The paper estimates the divergence of policy and reference with *mismatched* pairs, a prompt and the completion of
    another one: `kl` is the mean log-ratio of such completions, which can come out negative. Take the mean over a
    whole optimiser step, or the loss depends on how the step is cut into micro-batches.

    Args:
        log_ratio: h, shape [B], nats.
        desirable: bool, shape [B].
        kl: mean log-ratio of mismatched completions, shape (), nats; detached and clamped at 0 here.
        beta: reward per nat.
        desirable_weight: w_d. With few desirable completions choose it so that w_d times their number is about w_u
            times the number of the others.
        undesirable_weight: w_u.

    Returns:
        Shape [B], in (0, weight); weight / 2 where policy and reference agree. Float64 for float64 log-ratios,
        otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, a weight is negative, `desirable` is not bool, `log_ratio`
            and `desirable` have not one shape [B], or `kl` is not a scalar.

    Example:
        >>> desirable = torch.tensor([True, False])
        >>> kto_loss(torch.tensor([1.0, -0.5]), desirable, torch.tensor(0.2), beta=0.1)
        tensor([0.4800, 0.4825])
    """
    check_beta(beta)
    for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        check_not_negative(name, weight, "below 0 the loss would teach the opposite; 0 leaves that side out.")
    if desirable.dtype != torch.bool or desirable.dim() != 1 or desirable.shape != log_ratio.shape:
        raise ValueError(
            f"`desirable` must be bool and of shape [B] as `log_ratio`, got {desirable.dtype} "
            f"{tuple(desirable.shape)} for {tuple(log_ratio.shape)}: one label per completion."
        )
    if kl.dim() != 0:
        raise ValueError(
            f"`kl` must have shape (), got {tuple(kl.shape)}: one reference point for all completions; take the mean."
        )
    advance = beta * (upcast(log_ratio) - upcast(kl).detach().clamp(min=0))
    return torch.where(
        desirable, desirable_weight * torch.sigmoid(-advance), undesirable_weight * torch.sigmoid(advance)
    )


def _pair(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    return as_pair(
        chosen_log_ratio, rejected_log_ratio, chosen_name="chosen_log_ratio", rejected_name="rejected_log_ratio"
    )


def _rewards(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    check_beta(beta)
    chosen, rejected = _pair(chosen_log_ratio, rejected_log_ratio)
    return beta * chosen, beta * rejected
