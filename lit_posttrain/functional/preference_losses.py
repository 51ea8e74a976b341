"""Losses of preferences: of log-ratios to a reference, of single completions, and of mean log-probs without one."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_posttrain.functional.logprobs import MAX_LOG_RATIO


def as_pair(chosen: Tensor, rejected: Tensor, *, chosen_name: str, rejected_name: str) -> tuple[Tensor, Tensor]:
    """Both sides of the pairs, in float32 at least.

    Args:
        chosen: shape (B,).
        rejected: shape (B,).
        chosen_name: of the argument, for the error.
        rejected_name: of the argument, for the error.

    Returns:
        Both, shape (B,); float64 stays, everything else becomes float32.

    Raises:
        ValueError: if the shapes are not one (B,).
    """
    if chosen.dim() != 1 or chosen.shape != rejected.shape:
        raise ValueError(
            f"`{chosen_name}` and `{rejected_name}` must have one shape (B,), got {tuple(chosen.shape)} and "
            f"{tuple(rejected.shape)}: one number per completion, row i of both being a pair; broadcasting would "
            "compare completions of different prompts."
        )
    return upcast(chosen), upcast(rejected)


def upcast(x: Tensor) -> Tensor:
    """To float32 at least: in bfloat16 a sigmoid has 3 digits, and small margins are lost in rounding."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_beta(beta: float) -> None:
    """Refuse a scale that would turn the preference round or drop it.

    Raises:
        ValueError: if `beta` is not positive and finite.
    """
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(
            f"`beta` must be > 0 and finite, got {beta}: it scales log-probabilities to rewards; 0.1 is common for "
            "sums over tokens, 2 to 10 for means."
        )


def check_label_smoothing(label_smoothing: float) -> None:
    """Refuse a share of wrong labels that leaves nothing to learn.

    Raises:
        ValueError: if `label_smoothing` is not in [0, 0.5).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"`label_smoothing` must be in [0, 0.5), got {label_smoothing}: it is the share of pairs whose label is "
            "wrong, and at one half the labels say nothing."
        )


def check_not_negative(name: str, value: float, reason: str) -> None:
    """Refuse a number below 0, infinity and NaN.

    Raises:
        ValueError: if `value` is negative or not finite.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be >= 0 and finite, got {value}: {reason}")


def dpo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Direct preference optimisation: -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D), e = `label_smoothing`.

    DPO (arXiv:2305.18290, eq. 7) for e = 0, otherwise cDPO (E. Mitchell, "A note on DPO with noisy preferences",
    2023, eq. 3): with labels that are never wrong it stops at beta D = log((1 - e) / e). On means per token it is the
    length-normalised DPO of Tülu 3 (arXiv:2411.15124), with a `beta` near 5.

    Args:
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: reward per nat.
        label_smoothing: the share of pairs whose label is taken to be wrong, in [0, 0.5).

    Returns:
        Shape (B,), nats; log 2 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, `label_smoothing` is not in [0, 0.5), or the shapes are not
            one (B,).

    Example:
        >>> h_w, h_l = torch.tensor([0.0, 1.0]), torch.tensor([0.0, -0.5])
        >>> dpo_loss(h_w, h_l, beta=0.1), dpo_loss(h_w, h_l, beta=0.1, label_smoothing=0.1)
        (tensor([0.6931, 0.6210]), tensor([0.6931, 0.6360]))
    """
    check_label_smoothing(label_smoothing)
    margin = _reward_margin(chosen_log_ratio, rejected_log_ratio, beta)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def robust_dpo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """DPO freed of wrong labels: (-(1 - e) log sigmoid(beta D) + e log sigmoid(-beta D)) / (1 - 2 e).

    Robust DPO (arXiv:2403.00409, section 3): where a share e of the labels is flipped at random, its expectation is
    the DPO loss of the right labels. Unlike `dpo_loss` with smoothing it has no lower bound.

    Args:
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: reward per nat.
        label_smoothing: e, the share of pairs whose label is wrong, in [0, 0.5); 0 is DPO.

    Returns:
        Shape (B,), nats; log 2 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, `label_smoothing` is not in [0, 0.5), or the shapes are not
            one (B,).

    Example:
        >>> robust_dpo_loss(torch.tensor([1.0]), torch.tensor([-0.5]), beta=0.1, label_smoothing=0.1)
        tensor([0.6022])
    """
    check_label_smoothing(label_smoothing)
    margin = _reward_margin(chosen_log_ratio, rejected_log_ratio, beta)
    kept = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return kept / (1 - 2 * label_smoothing)


def hinge_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Hinge on the difference: max(0, 1 - beta D).

    The calibration loss of SLiC-HF (arXiv:2305.10425), on log-ratios as in RSO (arXiv:2309.06657, "hinge-norm").
    Differs from SLiC-HF: relative to the reference, with a lead of 1 / `beta` nats, scaled by `beta`, and without
    its regularisation term.

    Args:
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: reward per nat.

    Returns:
        Shape (B,); 1 where policy and reference agree, 0 without gradient from D = 1 / beta on. Float64 for float64
        log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one (B,).

    Example:
        >>> hinge_loss(torch.tensor([1.0, 9.0]), torch.tensor([-0.5, -2.0]), beta=0.1)
        tensor([0.8500, 0.0000])
    """
    return torch.relu(1 - _reward_margin(chosen_log_ratio, rejected_log_ratio, beta))


def ipo_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Regression of the difference to a fixed lead: (D - 1 / (2 beta))^2.

    IPO (arXiv:2310.12036, eq. 17; tau there is `beta` here). A pair preferred with probability p ends at
    D = (2 p - 1) / (2 beta), so that labels that are never wrong do not drive the policy ever further away. The
    equation sums over tokens; the common implementations pass means per token, at the authors' advice.

    Args:
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: strength of the regularisation; 1 / (2 beta) is the lead in nats.

    Returns:
        Shape (B,), nats squared; 1 / (2 beta)^2 where policy and reference agree. Float64 for float64 log-ratios,
        otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one (B,).

    Example:
        >>> ipo_loss(torch.tensor([1.0, 0.2]), torch.tensor([-0.5, -0.0625]), beta=0.1)
        tensor([12.2500, 22.4439])
    """
    return torch.square(_difference(chosen_log_ratio, rejected_log_ratio, beta) - 1 / (2 * beta))


def _difference(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    check_beta(beta)
    chosen, rejected = _log_ratios(chosen_log_ratio, rejected_log_ratio)
    return chosen - rejected


def _reward_margin(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    return beta * _difference(chosen_log_ratio, rejected_log_ratio, beta)


def apo_zero_loss(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float) -> Tensor:
    """Chosen up, rejected down: 1 - sigmoid(beta h_w) + sigmoid(beta h_l).

    APO-zero (arXiv:2408.06266, eq. 7), for chosen completions that are better than what the policy writes. Differs
    from the paper: 1 is added, so that the loss is never negative.

    Args:
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: reward per nat.

    Returns:
        Shape (B,), in (0, 2); 1 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one (B,).

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
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: reward per nat.

    Returns:
        Shape (B,), in (0, 2); 1 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one (B,).

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
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: reward per nat.

    Returns:
        Shape (B,), nats; 2 log 2 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one (B,).

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
        chosen_log_ratio: h_w, shape (B,), nats.
        rejected_log_ratio: h_l, shape (B,), nats.
        beta: 1 / (2 beta) is the goal in nats.

    Returns:
        Shape (B,), nats squared; 1 / (2 beta^2) where policy and reference agree. Float64 for float64 log-ratios,
        otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one (B,).

    Example:
        >>> sppo_loss(torch.tensor([1.0]), torch.tensor([-0.5]), beta=0.1)
        tensor([36.2500])
    """
    check_beta(beta)
    chosen, rejected = _log_ratios(chosen_log_ratio, rejected_log_ratio)
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
        log_ratio: h, shape (B,), nats.
        desirable: bool, shape (B,).
        kl: mean log-ratio of mismatched completions, shape (), nats; detached and clamped at 0 here.
        beta: reward per nat.
        desirable_weight: w_d. With few desirable completions choose it so that w_d times their number is about w_u
            times the number of the others.
        undesirable_weight: w_u.

    Returns:
        Shape (B,), in (0, weight); weight / 2 where policy and reference agree. Float64 for float64 log-ratios,
        otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, a weight is negative, `desirable` is not bool, `log_ratio`
            and `desirable` have not one shape (B,), or `kl` is not a scalar.

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
            f"`desirable` must be bool and of shape (B,) as `log_ratio`, got {desirable.dtype} "
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


def _log_ratios(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    return as_pair(
        chosen_log_ratio, rejected_log_ratio, chosen_name="chosen_log_ratio", rejected_name="rejected_log_ratio"
    )


def _rewards(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    check_beta(beta)
    chosen, rejected = _log_ratios(chosen_log_ratio, rejected_log_ratio)
    return beta * chosen, beta * rejected


def simpo_loss(chosen_mean_logprob: Tensor, rejected_mean_logprob: Tensor, *, beta: float, margin: float) -> Tensor:
    """Difference of the mean log-probabilities, with a lead: -log sigmoid(beta (l_w - l_l) - margin).

    SimPO (arXiv:2405.14734, eq. 6).

    Args:
        chosen_mean_logprob: l_w, shape (B,), nats per token.
        rejected_mean_logprob: l_l, shape (B,), nats per token.
        beta: reward per nat; 2 to 10 in the paper.
        margin: gamma, by how much the reward of the chosen one should lead; not its ratio to `beta`, which some
            implementations ask for.

    Returns:
        Shape (B,), nats; float64 for float64 log-probabilities, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, `margin` is negative, or the shapes are not one (B,).

    Example:
        >>> simpo_loss(torch.tensor([-2.0]), torch.tensor([-1.5]), beta=2.5, margin=1.375)
        tensor([2.6949])
    """
    check_beta(beta)
    check_not_negative("margin", margin, "it is how far the chosen completion should lead.")
    chosen, rejected = _mean_logprobs(chosen_mean_logprob, rejected_mean_logprob)
    return -logsigmoid(beta * (chosen - rejected) - margin)


def odds_ratio_loss(chosen_mean_logprob: Tensor, rejected_mean_logprob: Tensor) -> Tensor:
    """Log-odds of the chosen over the rejected: -log sigmoid(logit p_w - logit p_l), p = exp(mean log-probability).

    The second term of ORPO (arXiv:2403.07691, eq. 7). ORPO adds lambda (0.1) times this to the negative
    log-likelihood of the chosen completion; the caller does. Differs from the paper: log-odds end at +20 (log-probs
    at -e^-20, with gradient 0 beyond), since those of a completion that is certain are infinite.

    Args:
        chosen_mean_logprob: log p_w, shape (B,), nats per token.
        rejected_mean_logprob: log p_l, shape (B,), nats per token.

    Returns:
        Shape (B,), nats; log 2 where both are equally likely. Float64 for float64 log-probabilities, otherwise float32.

    Raises:
        ValueError: if the shapes are not one (B,).

    Example:
        >>> odds_ratio_loss(torch.tensor([-2.0]), torch.tensor([-1.5]))
        tensor([1.0421])
    """
    chosen, rejected = _mean_logprobs(chosen_mean_logprob, rejected_mean_logprob)
    return -logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)); `expm1`, because 1 - p loses all its digits near p = 1."""
    logprob = logprob.clamp(max=-math.exp(-MAX_LOG_RATIO))
    return logprob - torch.log(-torch.expm1(logprob))


def _mean_logprobs(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    return as_pair(chosen, rejected, chosen_name="chosen_mean_logprob", rejected_name="rejected_mean_logprob")
