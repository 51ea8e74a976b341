"""From logits to the log-probabilities of tokens and of completions.

Log-probabilities are exact to at least float32: half precision is upcast first, because in bfloat16 two computations
of one log-probability differ by more than the ratios and margins that are made of them.
"""

import torch
from torch import Tensor

from lit_posttrain.functional.masking import check_mask

MAX_LOG_RATIO = 20.0
"""Where differences of log-probabilities are cut before `exp`, in nats: e^20 = 4.9e8 is far outside any trust region,
and still finite, with room to sum, in float32."""


def token_logprobs(logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token under softmax(logits / temperature).

    Logits at a position predict the *next* token: the caller aligns them, logits [.., P-1:-1, :] to ids [.., P:].

    Args:
        logits: shape [..., V].
        token_ids: int64, shape [...].
        temperature: of the sampling; the policy, the old policy and the reference must all be given the same.

    Returns:
        Shape [...], nats; float64 for float64 logits, otherwise float32.

    Raises:
        ValueError: if `temperature` is not positive, or the shapes do not match.

    Example:
        >>> token_logprobs(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        tensor([-0.6931, -0.3133])
    """
    if token_ids.shape != logits.shape[:-1]:
        # `gather` would accept fewer ids than positions, and take the first ones: an error of one, unseen.
        raise ValueError(
            f"`token_ids` must have the shape of `logits` without V, {tuple(logits.shape[:-1])}, "
            f"got {tuple(token_ids.shape)}: one token per distribution."
        )
    logprobs = _log_softmax(logits, temperature)
    return logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def sequence_logprobs(logprobs: Tensor, mask: Tensor, *, average: bool = False) -> Tensor:
    """Log-probability of each completion: the sum over its tokens, or their mean.

    The mean does not depend on length; it is what length-normalised preference losses compare.

    Args:
        logprobs: per token, shape (B, C), nats.
        mask: bool, shape (B, C): the tokens of the completion, its EOS included.
        average: divide by the number of tokens.

    Returns:
        Shape (B,), nats; float64 for float64 log-probabilities, otherwise float32. 0 with a zero gradient for a row
        without tokens.

    Raises:
        ValueError: if `mask` is not bool or has another shape than `logprobs`.

    Example:
        >>> logprobs, mask = torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[True, True, False]])
        >>> sequence_logprobs(logprobs, mask), sequence_logprobs(logprobs, mask, average=True)
        (tensor([-3.]), tensor([-1.5000]))
    """
    check_mask(mask, logprobs)
    logprobs = logprobs.to(torch.promote_types(logprobs.dtype, torch.float32))
    total = torch.where(mask, logprobs, 0).sum(dim=-1)
    return total / mask.sum(dim=-1).clamp(min=1) if average else total


def token_entropy(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Exact entropy of softmax(logits / temperature): -sum_v p_v log p_v.

    Args:
        logits: shape [..., V]; -inf forbids a token.
        temperature: of the sampling.

    Returns:
        Shape [...], nats; float64 for float64 logits, otherwise float32.

    Raises:
        ValueError: if `temperature` is not positive.

    Example:
        >>> token_entropy(torch.tensor([0.0, 0.0, 0.0, 0.0]))  # log 4
        tensor(1.3863)
    """
    logprobs = _log_softmax(logits, temperature)
    # 0 log 0 = 0, where the plain product would be 0 * -inf.
    return -(logprobs.exp() * torch.where(logprobs.isneginf(), 0, logprobs)).sum(dim=-1)


def bounded(log_ratio: Tensor) -> Tensor:
    """Clamp log-ratios to +-20 nats, with gradient 0 beyond, so that `exp` of them is finite."""
    return log_ratio.clamp(min=-MAX_LOG_RATIO, max=MAX_LOG_RATIO)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"`temperature` must be > 0, got {temperature}: greedy decoding has no log-probabilities.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # A division by 1 would be one more [..., V] tensor.
    return torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
