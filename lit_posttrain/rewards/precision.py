"""The precision in which reward functions compute."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_precision() -> Iterator[None]:
    """Let torch compute inside as it does by itself: in float32, without autocast.

    In validation and prediction functions are called in the precision of the Trainer, in rollouts they are not; a
    network that judges shall give the same score there as here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for device_type in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
