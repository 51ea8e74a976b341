"""What the losses of preference pairs ask of their arguments."""

import math

import torch
from torch import Tensor


def as_pair(chosen: Tensor, rejected: Tensor, *, chosen_name: str, rejected_name: str) -> tuple[Tensor, Tensor]:
    """Both sides of the pairs, in float32 at least.

    Args:
        chosen: shape [B].
        rejected: shape [B].
        chosen_name: of the argument, for the error.
        rejected_name: of the argument, for the error.

    Returns:
        Both, shape [B]; float64 stays, everything else becomes float32.

    Raises:
        ValueError: if the shapes are not one [B].
    """
    if chosen.dim() != 1 or chosen.shape != rejected.shape:
        raise ValueError(
            f"`{chosen_name}` and `{rejected_name}` must have one shape [B], got {tuple(chosen.shape)} and "
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
