"""Random numbers as a function of what they are for, instead of a stream that everybody draws from.

A number depends on (seed, stream, prompt, sample, position) alone. What is sampled for a prompt does not change with
the batch it is in, the rank it is on, or the moment at which a run was resumed.
"""

import hashlib
import math
from functools import cache

import torch
from torch import Tensor

UNITS = 2.0**62  # that make up a probability of 1; their sum stays below 2^63

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_LOW_33, _LOW_34, _LOW_37 = (1 << 33) - 1, (1 << 34) - 1, (1 << 37) - 1


@cache
def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The widest floating point numbers of a device: float64, or float32 where it has none, as on Apple's GPUs.

    Example:
        >>> accumulation_dtype(torch.device("cpu"))
        torch.float64
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):  # torch has no other way to ask
        return torch.float32
    return torch.float64


def stable_hash(*parts: object) -> int:
    """A 63-bit hash of the parts' text that is equal in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014); int64 products wrap around as its own do."""
    x = (x ^ (x >> 30 & _LOW_34)) * _MIX_1  # `>>` of a signed tensor copies the sign bit
    x = (x ^ (x >> 27 & _LOW_37)) * _MIX_2
    return x ^ (x >> 31 & _LOW_33)


def sample_keys(prompt_keys: Tensor, *, num_samples: int, seed: int) -> Tensor:
    """One key for each sample of each prompt.

    Args:
        prompt_keys: what tells the prompts apart, int64 of shape (N,).
        num_samples: samples of each prompt, G.
        seed: any integer of 64 bits.

    Returns:
        int64 of shape (N * G,), the samples of a prompt next to each other.
    """
    prompts = _mix(prompt_keys + _mix(torch.tensor(seed, device=prompt_keys.device)))
    samples = torch.arange(1, num_samples + 1, device=prompt_keys.device)
    return _mix(prompts[:, None] + samples * _GOLDEN).flatten()


def uniforms(keys: Tensor, position: int) -> Tensor:
    """One number in [0, 1) for each key at this position: (B,), as many digits as the device's widest numbers have."""
    dtype = accumulation_dtype(keys.device)
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    counter = torch.tensor(position + 1, device=keys.device) * _GOLDEN  # in a tensor, since Python's do not wrap around
    bits = _mix(keys + counter)
    return (bits >> (64 - digits) & ((1 << digits) - 1)).to(dtype) * 2.0**-digits


def pick_tokens(
    logits: Tensor, uniform: Tensor, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> Tensor:
    """Pick one token for each row, by inversion of the cumulative distribution.

    Probabilities, in fp64 where the device has it, are added up as whole numbers of a small unit: exactly, in whatever
    order a device adds. A sum of floats would make a draw depend on the batch that it is in, and has no deterministic
    kernel on CUDA.

    Args:
        logits: (B, V).
        uniform: numbers in [0, 1), (B,); not used at temperature 0.
        temperature: logits are divided by it first; 0 = the most likely token.
        top_p: keep the smallest set of tokens whose probability reaches this, last of all as transformers does.
        top_k: keep this many tokens; 0 keeps all.

    Returns:
        Token ids, (B,).
    """
    if temperature == 0:
        return logits.argmax(-1)
    dtype = torch.promote_types(logits.dtype, accumulation_dtype(logits.device))
    scores = logits.to(dtype) / temperature
    if 0 < top_k < scores.shape[-1]:
        threshold = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if top_p < 1:
        ordered, index = scores.sort(dim=-1, descending=True)
        probabilities = _in_units(ordered)
        before = probabilities.cumsum(-1) - probabilities  # of all that is more likely
        left_out = before >= int(top_p * UNITS)
        scores = scores.masked_fill(left_out.gather(-1, index.argsort(-1)), -torch.inf)
    cumulative = _in_units(scores).cumsum_(-1)
    total = cumulative[:, -1:]
    # the first token whose cumulative probability exceeds the number: one of probability 0 is never picked
    target = (uniform[:, None] * total).long().minimum(total - 1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=scores.shape[-1] - 1)


def _in_units(scores: Tensor) -> Tensor:
    """Probabilities of logits as whole numbers of units, (B, V) int64."""
    return scores.softmax(-1).mul_(UNITS).long()
