"""Losses of preference pairs that need no reference: they compare mean log-probabilities per token.

The means come from `sequence_logprobs(..., average=True)`. Sums would make the longer completion the less likely one.
Nothing is reduced.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lit_posttrain.functional.logprobs import MAX_LOG_RATIO
from lit_posttrain.functional.pairs import as_pair, check_beta, check_not_negative


def simpo_loss(chosen_mean_logprob: Tensor, rejected_mean_logprob: Tensor, *, beta: float, margin: float) -> Tensor:
    """Difference of the mean log-probabilities, with a lead: -log sigmoid(beta (l_w - l_l) - margin).

    SimPO (arXiv:2405.14734, eq. 6).

    Args:
        chosen_mean_logprob: l_w, shape [B], nats per token.
        rejected_mean_logprob: l_l, shape [B], nats per token.
        beta: reward per nat; 2 to 10 in the paper.
        margin: gamma, by how much the reward of the chosen one should lead; not its ratio to `beta`, which some
            implementations ask for.

    Returns:
        Shape [B], nats; float64 for float64 log-probabilities, otherwise float32.

    Raises:
        ValueError: if `beta` is not positive and finite, `margin` is negative, or the shapes are not one [B].

    Example:
        >>> simpo_loss(torch.tensor([-2.0]), torch.tensor([-1.5]), beta=2.5, margin=1.375)
        tensor([2.6949])
    """
    check_beta(beta)
    check_not_negative("margin", margin, "it is how far the chosen completion should lead.")
    chosen, rejected = _pair(chosen_mean_logprob, rejected_mean_logprob)
    return -logsigmoid(beta * (chosen - rejected) - margin)


def odds_ratio_loss(chosen_mean_logprob: Tensor, rejected_mean_logprob: Tensor) -> Tensor:
    """Log-odds of the chosen over the rejected: -log sigmoid(logit p_w - logit p_l), p = exp(mean log-probability).

    The second term of ORPO (arXiv:2403.07691, eq. 7). ORPO adds lambda (0.1) times this to the negative
    log-likelihood of the chosen completion; the caller does. Differs from the paper: log-odds end at +20 (log-probs
    at -e^-20, with gradient 0 beyond), since those of a completion that is certain are infinite.

    Args:
        chosen_mean_logprob: log p_w, shape [B], nats per token.
        rejected_mean_logprob: log p_l, shape [B], nats per token.

    Returns:
        Shape [B], nats; log 2 where both are equally likely. Float64 for float64 log-probabilities, otherwise float32.

    Raises:
        ValueError: if the shapes are not one [B].

    Example:
        >>> odds_ratio_loss(torch.tensor([-2.0]), torch.tensor([-1.5]))
        tensor([1.0421])
    """
    chosen, rejected = _pair(chosen_mean_logprob, rejected_mean_logprob)
    return -logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)); `expm1`, because 1 - p loses all its digits near p = 1."""
    logprob = logprob.clamp(max=-math.exp(-MAX_LOG_RATIO))
    return logprob - torch.log(-torch.expm1(logprob))


def _pair(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    return as_pair(chosen, rejected, chosen_name="chosen_mean_logprob", rejected_name="rejected_mean_logprob")
