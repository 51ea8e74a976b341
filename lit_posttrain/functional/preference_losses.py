"""Losses of preference pairs that see the difference of the two log-ratios: DPO and its relatives.

A log-ratio is logprobs - ref_logprobs of a whole completion, [B] (`sequence_logprobs`), the reference detached by the
caller: the summed log-probabilities, or their means per token for the length-normalised forms, which are the same
functions with another `beta`. Below, h_w and h_l are those of the chosen and the rejected completion, D = h_w - h_l.

Losses come back per pair, [B], and are reduced like those of a single token: `aggregate(loss.unsqueeze(1),
mask.unsqueeze(1), "token")`, with a mask that is False for rows that only fill a batch.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_posttrain.functional.pairs import as_pair, check_beta, check_label_smoothing


def dpo_loss(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Direct preference optimisation: -(1 - e) log sigmoid(beta D) - e log sigmoid(-beta D), e = `label_smoothing`.

    DPO (arXiv:2305.18290, eq. 7) for e = 0, otherwise cDPO (E. Mitchell, "A note on DPO with noisy preferences",
    2023, eq. 3): with labels that are never wrong it stops at beta D = log((1 - e) / e). On means per token it is the
    length-normalised DPO of Tülu 3 (arXiv:2411.15124), with a `beta` near 5.

    Args:
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: reward per nat.
        label_smoothing: the share of pairs whose label is taken to be wrong, in [0, 0.5).

    Returns:
        Shape [B], nats; log 2 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, `label_smoothing` is not in [0, 0.5), or the shapes are not
            one [B].

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
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: reward per nat.
        label_smoothing: e, the share of pairs whose label is wrong, in [0, 0.5); 0 is DPO.

    Returns:
        Shape [B], nats; log 2 where policy and reference agree. Float64 for float64 log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, `label_smoothing` is not in [0, 0.5), or the shapes are not
            one [B].

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
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: reward per nat.

    Returns:
        Shape [B]; 1 where policy and reference agree, 0 without gradient from D = 1 / beta on. Float64 for float64
        log-ratios, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one [B].

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
        chosen_log_ratio: h_w, shape [B], nats.
        rejected_log_ratio: h_l, shape [B], nats.
        beta: strength of the regularisation; 1 / (2 beta) is the lead in nats.

    Returns:
        Shape [B], nats squared; 1 / (2 beta)^2 where policy and reference agree. Float64 for float64 log-ratios,
        otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, or the shapes are not one [B].

    Example:
        >>> ipo_loss(torch.tensor([1.0, 0.2]), torch.tensor([-0.5, -0.0625]), beta=0.1)
        tensor([12.2500, 22.4439])
    """
    return torch.square(_difference(chosen_log_ratio, rejected_log_ratio, beta) - 1 / (2 * beta))


def _difference(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    check_beta(beta)
    chosen, rejected = as_pair(
        chosen_log_ratio, rejected_log_ratio, chosen_name="chosen_log_ratio", rejected_name="rejected_log_ratio"
    )
    return chosen - rejected


def _reward_margin(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    return beta * _difference(chosen_log_ratio, rejected_log_ratio, beta)
