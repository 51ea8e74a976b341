"""Weights dealt out over processes (FSDP2): sharded, whole again for a while, gathered on the first process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Deal the weights out: each transformer block by itself, and all that is left with the network around them.

    From then on a block's weights are whole while it computes and at no other time, and only the network's own forward
    works. All processes call it together; twice is once.

    Args:
        network: whose forward is called; its weights may not be those of another network that is sharded.
        mesh: the processes, one-dimensional.
    """
    if isinstance(network, FSDPModule):
        reshard(network)  # an exception may have come in between
        return
    for module in reversed(list(network.modules())):  # blocks before what contains them
        if type(module).__name__ in _block_names(network):
            fully_shard(module, mesh=mesh)
    # torch keeps the weights around the blocks whole from forward to backward, which a frozen network never reaches
    frozen = not any(parameter.requires_grad for parameter in network.parameters())
    fully_shard(network, mesh=mesh, reshard_after_forward=True if frozen else None)


def unshard(network: nn.Module) -> None:
    """Make sharded weights whole until `reshard`: all of the network can be called, and no process waits for another.

    All processes call it together. Whole weights, and a network that is not sharded, stay as they are.
    """
    for module in _shards(network):
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)


def reshard(network: nn.Module) -> None:
    """Deal the weights out again that `unshard` made whole, each process by itself."""
    trained = any(parameter.requires_grad for parameter in network.parameters())
    for module in _shards(network):
        module.reshard()
        module.set_reshard_after_forward(module is not network or not trained, recurse=False)


@contextmanager
def unsharded(*networks: nn.Module) -> Iterator[None]:
    """`unshard` and `reshard`; inside another one of the same network nothing happens."""
    sharded = [
        network
        for network in networks
        if isinstance(network, FSDPModule) and any(isinstance(p, DTensor) for p in network.parameters())
    ]
    for network in sharded:
        unshard(network)
    try:
        yield
    finally:
        for network in sharded:
            reshard(network)


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state dict; of sharded weights the whole ones on the CPU of the first process, and nothing on the others.

    All processes call it together where weights are sharded. Tied weights remain one tensor.
    """
    state = module.state_dict(keep_vars=True)
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return module.state_dict()
    first = dist.get_rank() == 0
    gathered: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in gathered:
            full = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
            gathered[id(tensor)] = full.cpu() if first else full.new_empty(0)  # one at a time
    return {name: gathered[id(tensor)] for name, tensor in state.items()} if first else {}


def sharded_like(module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of whole tensors as `module` can load it: this process's part of those that it has sharded."""
    own = module.state_dict()
    return {name: _part_of(tensor, own.get(name)) for name, tensor in state_dict.items()}


def begin_states(optimizer: Optimizer) -> None:
    """Give an optimiser of sharded weights the state of every parameter that it has before its first step.

    torch stores and loads the state of such an optimiser as a whole. A parameter that has not been stepped yet, such as
    one that rests at first, could not be loaded, and where none has been, saving would count as a step. Any other
    optimiser stays as it is.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"] * 0


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, of the parts on all processes where they are sharded: ()."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _block_names(network: nn.Module) -> set[str]:
    """The classes that transformers keeps in one piece when it spreads a model over devices: the blocks."""
    models = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    return {name for model in models for name in model._no_split_modules or ()}


def _shards(network: nn.Module) -> list[FSDPModule]:
    if not isinstance(network, FSDPModule):
        return []
    return [module for module in network.modules() if isinstance(module, FSDPModule)]


def _part_of(tensor: Any, own: Any) -> Any:
    if not isinstance(own, DTensor) or isinstance(tensor, DTensor):
        return tensor
    # every process has the whole tensor: nothing has to be sent
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


WAY_OUT = "use FSDP2: `Trainer(strategy=ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1))`"


def sharding_mesh(strategy: Strategy) -> DeviceMesh | None:
    """The processes that a strategy deals weights out to, None where each of them has all weights.

    Raises:
        ValueError: if the strategy is FSDP1, or splits layers.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "the strategy `fsdp` of Lightning is FSDP1, whose weights cannot be made whole while completions are "
            f"sampled: {WAY_OUT}."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    layers = strategy.device_mesh["tensor_parallel"].size()
    if layers > 1:
        raise ValueError(
            f"`ModelParallelStrategy` was given `tensor_parallel_size={layers}` (all devices of a node unless said "
            f"otherwise); splitting layers is not supported: {WAY_OUT}."
        )
    return strategy.device_mesh["data_parallel"]
