"""Weights as a whole: where fresh ones are drawn, their digest, whether they are finite."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over the state dict sorted by name: name, dtype, shape and bytes of every tensor."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors that are no module, as `weights_sha256` computes it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


SHOWN = 3  # names in a message


class NonFiniteError(RuntimeError):
    """A weight, a loss, a gradient or an advantage is infinite or not a number: training on would only spread it."""


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of tensors that hold an infinite number or NaN, of the part on this process where they are sharded."""
    local = [(name, tensor.to_local() if isinstance(tensor, DTensor) else tensor) for name, tensor in tensors]
    floating = [(name, tensor.detach()) for name, tensor in local if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return []
    # the largest magnitude of each: not finite if one of its numbers is not, and one host sync for all
    largest = torch.stack([torch.linalg.vector_norm(tensor, torch.inf).float() for _, tensor in floating])
    return [name for (name, _), good in zip(floating, largest.isfinite().tolist(), strict=True) if not good]


def check_weights(module: nn.Module, *, when: str, any_rank: Callable[[bool], bool] = bool) -> None:
    """Find out whether all weights of a module are finite.

    Args:
        module: on all ranks where its weights are sharded.
        when: the moment, for the error.
        any_rank: whether something holds on any of several ranks; asked where weights are sharded.

    Raises:
        NonFiniteError: on all ranks, naming tensors.
    """
    parameters = list(module.named_parameters())
    names = non_finite(parameters)
    sharded = any(isinstance(parameter, DTensor) for _, parameter in parameters)
    if any_rank(bool(names)) if sharded else names:
        which = named(names) or "weights on another process"
        raise NonFiniteError(f"{when}: not all numbers in {which} are finite.")


def named(names: list[str]) -> str:
    """Write out a few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more tensors" if len(names) > SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:SHOWN]) + more


@contextmanager
def drawn_on_cpu(seed: int) -> Iterator[None]:
    """Inside, new tensors are on the CPU and random numbers begin with `seed`; outside, none have been used up.

    The context of another device, such as that of Lightning around `configure_model`, has no effect inside: with the
    numbers of its own generator weights would depend on the device, and not on the seed.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the other devices too, for good
        yield
