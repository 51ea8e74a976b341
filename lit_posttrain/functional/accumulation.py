"""In which precision a device adds up."""

from functools import cache

import torch
from torch import Tensor


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


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; float64 becomes what the device adds up in.

    Args:
        tensor: of any shape.
        device: where to.

    Returns:
        Shape of `tensor`.
    """
    wide = tensor.dtype == torch.float64
    return tensor.to(accumulation_dtype(device) if wide else tensor.dtype).to(device)
