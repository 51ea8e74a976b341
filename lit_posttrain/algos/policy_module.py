"""What every module that trains a language model shares: loading it, its tokenizer, optimiser and export."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.models.loading import Pretrained, as_pretrained
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.tokenizers import check_tokenizer

PolicySource: TypeAlias = str | Path | Pretrained | PreTrainedModel | Callable[[], PreTrainedModel]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class PolicyModule(L.LightningModule):
    """A LightningModule around one policy.

    Args:
        policy: name or path of a model, a `Pretrained`, a built model, or a function that builds one. Names,
            `Pretrained` and functions are loaded in `configure_model`, after all arguments have been checked.
        tokenizer: needed with a built model that carries no name, otherwise found by the policy's name.
        optimizer: makes the optimiser from the parameters; None = AdamW with lr 1e-6 and no weight decay.
        scheduler: makes the learning-rate schedule from the optimiser, stepped once per optimiser step; None = linear
            warm-up over 10 steps, then constant.
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
        super().__init__()
        if logits_chunk_size < 1:
            raise ValueError(f"`logits_chunk_size` must be >= 1, got {logits_chunk_size}: it counts positions.")
        source = as_pretrained(policy)
        if not (isinstance(source, Pretrained | PreTrainedModel) or callable(source)):
            raise TypeError(
                "`policy` must be the name or path of a model, a `Pretrained`, a transformers model or a function that "
                f"builds one, got {type(policy).__name__}."
            )
        # held in a function, since a module among the attributes would be registered before `configure_model`
        self._policy_source: Callable[[], Any] = lambda: source
        self._given_tokenizer = tokenizer
        self._make_optimizer = optimizer or partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0)
        self._make_scheduler = scheduler or partial(LinearLR, start_factor=0.1, total_iters=10)
        self._logits_chunk_size = logits_chunk_size
        self.policy: Policy | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use.

        Raises:
            ValueError: if none was given and the policy has no name to find one by.
        """
        if self._given_tokenizer is None:
            source = self._policy_source()
            if isinstance(source, PreTrainedModel) and source.name_or_path:
                source = Pretrained(source.name_or_path)
            if not isinstance(source, Pretrained):
                raise ValueError(
                    "`tokenizer` is needed: the policy was given as an object that has no name to load it by."
                )
            self._given_tokenizer = source.load_tokenizer()
        return self._given_tokenizer

    @property
    def language_model(self) -> PreTrainedModel:
        """The transformers model inside the policy; there once `configure_model` has run."""
        if self.policy is None:
            raise RuntimeError("the policy is not loaded yet: `configure_model` builds it when the Trainer starts.")
        return self.policy.model

    def check_policy(self) -> None:
        """Fail now, before data are read or weights loaded, where the policy cannot be found."""
        source = self._policy_source()
        if isinstance(source, Pretrained):
            source.check()

    def configure_model(self) -> None:
        """Load the policy; Lightning calls this once for every fit, validate or predict."""
        if self.policy is not None:
            return
        source = self._policy_source()
        if isinstance(source, Pretrained):
            model = source.load()
        else:
            model = source if isinstance(source, PreTrainedModel) else source()
        check_tokenizer(self.tokenizer, vocab_size=model.get_input_embeddings().weight.shape[0])
        self.policy = Policy(model, chunk_size=self._logits_chunk_size).train()  # for gradient checkpointing

    def configure_optimizers(self) -> Any:
        """One optimiser over all trainable parameters, and a schedule by optimiser steps."""
        optimizer = self._make_optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._make_scheduler(optimizer), "interval": "step"},
        }

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the whole step's gradient, before clipping."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.log("grad_norm", nn.utils.get_total_norm(gradients))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose checkpoint it is."""
        checkpoint["algorithm"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another algorithm."""
        self.check_checkpoint(checkpoint)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find out whether this module can go on from a checkpoint, before anything else is done.

        Raises:
            ValueError: if another class wrote it.
        """
        algorithm = checkpoint.get("algorithm", "something else than this library")
        if algorithm != type(self).__name__:
            raise ValueError(
                f"the checkpoint was written by {algorithm}, this run is {type(self).__name__}: optimiser and loops do "
                "not fit. To start from its weights use its run's export: `model=local model.path=<run>/export`."
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write policy and tokenizer as a Hugging Face folder that `AutoModelForCausalLM` loads."""
        self.language_model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def sum_over_ranks(self, tensor: Tensor) -> Tensor:
        """All-reduce, on the module's device."""
        return self._reduce(tensor, "sum")

    def max_over_ranks(self, tensor: Tensor) -> Tensor:
        """All-reduce, on the module's device."""
        return self._reduce(tensor, "max")

    def gather_over_ranks(self, thing: Any) -> list[Any]:
        """Any picklable thing of each rank, on all of them."""
        gathered: list[Any] = [thing] * self.trainer.world_size
        if self.trainer.world_size > 1:
            dist.all_gather_object(gathered, thing)
        return gathered

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        reduced = self.trainer.strategy.reduce(tensor.to(self.device), reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced
