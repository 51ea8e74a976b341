"""What has to be known of an optimiser before its gradients can be clipped."""

from typing import Any

from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import nn
from torch.optim import Optimizer


def unscale(optimizer: Optimizer, precision: Precision) -> None:
    """Take the scale of the loss off the gradients of a fused optimiser, for `16-mixed`.

    Lightning has done so for any other by now. A fused one would do it in its step, behind all that reads or clips
    gradients; torch's scaler remembers that it has been done.
    """
    scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
    if scaler is not None and _optimizer_handles_unscaling(optimizer):
        scaler.unscale_(optimizer)


def parameters_by_name(optimizer: Optimizer) -> list[list[nn.Parameter]]:
    """The parameters of groups of one name together, and those of all groups without a name."""
    found: dict[Any, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group.get("name"), []).extend(group["params"])
    return list(found.values())
