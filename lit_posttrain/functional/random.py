"""Random numbers as a function of what they are for, instead of a stream that everybody draws from.

A number depends on (seed, stream, prompt, sample, position) alone. What is sampled for a prompt does not change with
the batch it is in, the rank it is on, or the moment at which a run was resumed.
"""

import math

import torch
from torch import Tensor

from lit_posttrain.functional.accumulation import accumulation_dtype

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; `>>` of a signed tensor would copy the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014); int64 products wrap around as its own do."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


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
    return _shift_right(bits, 64 - digits).to(dtype) * 2.0**-digits
