"""The reference policy of a KL term: the policy as it was in the beginning."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_posttrain.batching import TrainingBatch
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.sharding import shard

if TYPE_CHECKING:
    from lit_posttrain.models.adapter import Adapter


Convert = Callable[[nn.Module], nn.Module]  # gives weights the precision that they are trained in


class Reference(ABC):
    """The initial policy. Made before a checkpoint is restored: a resumed run has the one that the first run had.

    Attributes:
        policy: what its log-probs are computed with.
    """

    policy: Policy

    @abstractmethod
    def to(self, device: torch.device, convert: Convert) -> None:
        """Move it to where the policy is, in the precision of the policy."""

    @abstractmethod
    def shard(self, mesh: DeviceMesh, convert: Convert) -> None:
        """Deal its weights out over the processes, as the policy's and in their precision."""

    def as_it_was(self) -> AbstractContextManager[None]:
        """Inside, `policy` is what it was in the beginning."""
        return nullcontext()

    @torch.no_grad()
    def logprobs(self, batch: TrainingBatch, *, temperature: float = 1.0) -> Tensor:
        """Compute log-probs of the completion tokens under the reference: (B, C)."""
        with self.as_it_was():
            return self.policy(batch, temperature=temperature).logprobs


class FrozenReference(Reference):
    """A copy of the policy as it was in the beginning.

    Not an `nn.Module`, so that it stays out of the state dict, the optimiser and the buckets of DDP.

    Args:
        policy: the policy with its initial weights; copied.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = copy.deepcopy(policy).eval().requires_grad_(False)

    def to(self, device: torch.device, convert: Convert) -> None:
        """Move the copy to where the policy is; nobody else would give it the policy's precision."""
        convert(self.policy).to(device)

    def shard(self, mesh: DeviceMesh, convert: Convert) -> None:
        """Deal out the copy's weights."""
        shard(convert(self.policy), mesh)


class AdapterReference(Reference):
    """The policy itself with its adapter as it was in the beginning: no second model in memory.

    A fresh adapter is switched off. One that had been trained before belongs to the initial policy, and has a frozen
    copy beside it that is switched to.

    Args:
        policy: the policy, with its initial weights; not copied.
        adapter: the adapter in it.
    """

    def __init__(self, policy: Policy, adapter: "Adapter") -> None:
        self.policy = policy
        self.adapter = adapter
        adapter.keep_initial()

    def to(self, device: torch.device, convert: Convert) -> None:
        """Nothing to do: it is where the policy is."""

    def shard(self, mesh: DeviceMesh, convert: Convert) -> None:
        """Nothing to do: its weights are the policy's."""

    def as_it_was(self) -> AbstractContextManager[None]:
        """With the adapter off, or its copy on."""
        return self.adapter.initial()
