"""Where and with which random numbers fresh weights are drawn."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawn_on_cpu(seed: int) -> Iterator[None]:
    """Inside, new tensors are on the CPU and random numbers begin with `seed`; outside, none have been used up.

    The context of another device, such as that of Lightning around `configure_model`, has no effect inside: with the
    numbers of its own generator weights would depend on the device, and not on the seed.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the other devices too, for good
        yield
