"""How tokens are drawn from the policy's logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_posttrain.functional.accumulation import accumulation_dtype

UNITS = 2.0**62  # that make up a probability of 1; their sum stays below 2^63


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler. Nothing is taken over from a model's `generation_config`.

    Args:
        max_new_tokens: the longest completion, in tokens, EOS included.
        temperature: logits are divided by it; 0 is greedy decoding.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.

    Raises:
        ValueError: if a number is out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"`sampling.max_new_tokens` must be >= 1, got {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise ValueError(
                f"`sampling.temperature` must be >= 0, got {self.temperature}: logits are divided by it (0 = greedy)."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`sampling.top_p` must be in (0, 1], got {self.top_p}; 1 keeps every token.")
        if self.top_k < 0:
            raise ValueError(f"`sampling.top_k` must be >= 0, got {self.top_k}; 0 keeps every token.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken instead of a drawn one."""
        return self.temperature == 0


def pick_tokens(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """One token for each row, by inversion of the cumulative distribution.

    Probabilities, in fp64 where the device has it, are added up as whole numbers of a small unit: exactly, in whatever
    order a device adds. A sum of floats would make a draw depend on the batch that it is in, and has no deterministic
    kernel on CUDA.

    Args:
        logits: (B, V).
        sampling: temperature, top-k and top-p, applied in this order as transformers does.
        uniform: numbers in [0, 1), (B,); not used when greedy.

    Returns:
        Token ids, (B,).
    """
    if sampling.greedy:
        return logits.argmax(-1)
    dtype = torch.promote_types(logits.dtype, accumulation_dtype(logits.device))
    scores = logits.to(dtype) / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        threshold = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if sampling.top_p < 1:
        ordered, index = scores.sort(dim=-1, descending=True)
        probabilities = _in_units(ordered)
        before = probabilities.cumsum(-1) - probabilities  # of all that is more likely
        left_out = before >= int(sampling.top_p * UNITS)
        scores = scores.masked_fill(left_out.gather(-1, index.argsort(-1)), -torch.inf)
    cumulative = _in_units(scores).cumsum_(-1)
    total = cumulative[:, -1:]
    # the first token whose cumulative probability exceeds the number: one of probability 0 is never picked
    target = (uniform[:, None] * total).long().minimum(total - 1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


def _in_units(scores: Tensor) -> Tensor:
    """Probabilities of logits as whole numbers of units, (B, V) int64."""
    return scores.softmax(-1).mul_(UNITS).long()
