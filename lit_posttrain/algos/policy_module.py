"""What every module that trains a policy shares: loading it, and its export."""

from functools import partial
from pathlib import Path

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.algos.language_model_module import LanguageModelModule, ModelSource
from lit_posttrain.algos.training_module import MakeOptimizer, MakeScheduler
from lit_posttrain.models.export import export_folder
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reference import AdapterReference, FrozenReference, Reference
from lit_posttrain.models.sharding import full_state_dict, release

PolicySource = ModelSource


class PolicyModule(LanguageModelModule):
    """A LightningModule around one policy.

    Args:
        policy: name or path of a model, a `Pretrained`, a built model, or a function that builds one. Names,
            `Pretrained` and functions are loaded in `configure_model`, after all arguments have been checked.
        tokenizer: needed with a built model that carries no name, otherwise found by the policy's name.
        optimizer: see `TrainingModule`.
        scheduler: see `TrainingModule`.
        logits_chunk_size: positions whose logits exist at the same time; bounds memory, does not change the result.
    """

    def __init__(
        self,
        policy: PolicySource,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        logits_chunk_size: int = 512,
    ) -> None:
        super().__init__(policy, argument="policy", tokenizer=tokenizer, optimizer=optimizer, scheduler=scheduler)
        if logits_chunk_size < 1:
            raise ValueError(f"`logits_chunk_size` must be >= 1, got {logits_chunk_size}: it counts positions.")
        self._logits_chunk_size = logits_chunk_size
        self.policy: Policy | None = None

    @property
    def language_model(self) -> PreTrainedModel:
        """The transformers model inside the policy; there once `configure_model` has run."""
        if self.policy is None:
            raise RuntimeError("the policy is not loaded yet: `configure_model` builds it when the Trainer starts.")
        return self.policy.model

    @property
    def main_network(self) -> nn.Module:
        """The policy."""
        assert self.policy is not None
        return self.policy

    def build_networks(self) -> None:
        """Load the policy."""
        if self.policy is None:  # train() for gradient checkpointing
            model = self.load_model()
            self.attach_adapter(model)
            self.policy = Policy(model, chunk_size=self._logits_chunk_size).train()

    def shard_networks(self, mesh: DeviceMesh) -> None:
        """Deal out the policy's weights, and let it run: torch takes what runs first for the whole of a network.

        Sampling runs a part of the policy.
        """
        super().shard_networks(mesh)
        assert self.policy is not None
        with self.trainer.precision_plugin.forward_context():
            self.policy.try_out()
        release(self.policy)

    def make_reference(self) -> Reference:
        """The policy as it is now, for later: a copy of it or, with an adapter, of as little as is needed."""
        assert self.policy is not None
        return FrozenReference(self.policy) if self.adapter is None else AdapterReference(self.policy, self.adapter)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write policy and tokenizer as a Hugging Face folder that `AutoModelForCausalLM` loads.

        With `Lora(export="adapter")` the adapter alone: a folder that `AutoPeftModelForCausalLM` loads. The first of
        several processes writes; all call it where weights are sharded.
        """
        self.check_weights("in the export")
        if self.adapter is not None and self.adapter.export == "adapter":
            write = self.adapter.save_pretrained
        else:
            model = self.merged_model()
            write = partial(model.save_pretrained, state_dict=full_state_dict(model))
        if self.global_rank == 0:
            with export_folder(folder) as draft:
                write(draft)
                self.tokenizer.save_pretrained(draft)
