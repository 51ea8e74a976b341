"""The LightningModule that every algorithm is: optimiser steps of several micro-batches, checkpoints, exports."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning import Callback
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.batching import PassLoader, Ranks, StepStatistics
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.supervised import SupervisedDataModule
from lit_posttrain.models.networks.layout import PacksRows
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reference import Reference
from lit_posttrain.models.sharding import (
    begin_states,
    reshard,
    shard,
    sharded_like,
    sharding_mesh,
    total_norm,
    unshard,
)
from lit_posttrain.models.source import ModelSource, frozen_names
from lit_posttrain.models.tokenizers import context_length
from lit_posttrain.models.weights import NonFiniteError, check_weights, named, non_finite
from lit_posttrain.modules.attachment import attach_training_loader, detach_training_loader
from lit_posttrain.modules.exact_resume import ExactResume
from lit_posttrain.modules.standing import refuse_callbacks
from lit_posttrain.rollout.engine import check_prompt_lengths
from lit_posttrain.rollout.evaluator import PromptEvaluator

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class Stateful(Protocol):
    """A thing with a state of its own, which checkpoints hold."""

    def state_dict(self) -> dict[str, Any]:
        """Give it as plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it."""


class PostTrainingModule(L.LightningModule):
    """Automatic optimisation of a loss whose denominator is that of the whole optimiser step.

    Args:
        source: the causal language model to start from.
        optimizer: makes the optimiser from the parameters; None = the algorithm's default.
        scheduler: makes the learning-rate schedule from the optimiser, stepped once per optimiser step; None = the
            algorithm's default.

    Attributes:
        progress_bar: metrics that the progress bar shows.
        unsaved: arguments that are no plain values, and so no hyper-parameters that checkpoints hold.
        policy: what is trained, but in a reward model; there once `configure_model` has run.
        reference: the policy as it was in the beginning, where an algorithm keeps it.
        evaluator: judges the policy by completions of prompts, where an algorithm does.
        states: what checkpoints hold beside weights and optimiser, by name.
        statistics: what `loss` adds up over an optimiser step.
        ranks: the processes that train together.
        exact_resume: makes a fit go on exactly where another one was interrupted.
    """

    progress_bar: tuple[str, ...] = ()
    unsaved: tuple[str, ...] = ("policy", "model", "rewards", "optimizer", "scheduler")
    _step_loss: Tensor  # of the whole step, the same on all ranks

    def __init__(
        self, source: ModelSource, *, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None
    ) -> None:
        super().__init__()
        self.source = source
        self.policy: Policy | None = None
        self.reference: Reference | None = None
        self.evaluator: PromptEvaluator | None = None
        self.states: dict[str, Stateful] = {}
        self.statistics = StepStatistics()
        self.ranks = Ranks(self)
        self.exact_resume = ExactResume()
        self._make_optimizer = optimizer or self.default_optimizer()
        self._make_scheduler = scheduler or self.default_scheduler()

    # What an algorithm is.

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Compute this micro-batch's share of the optimiser step's loss: ()."""

    @abstractmethod
    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make metrics, by name, of what `loss` added to the statistics."""

    @abstractmethod
    def make_training_loader(self, loader: Any) -> PassLoader:
        """Make the loader to train from of the one that the Trainer was given."""

    def default_optimizer(self) -> MakeOptimizer:
        """Give AdamW with lr 1e-6 and no weight decay."""
        return partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0)

    def default_scheduler(self) -> MakeScheduler:
        """Give a linear warm-up over 10 steps, then constant."""
        return partial(LinearLR, start_factor=0.1, total_iters=10)

    # Networks.

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model, loaded on first use."""
        return self.source.tokenizer

    @property
    def main_network(self) -> nn.Module:
        """What the language model is the main part of; there once `configure_model` has run."""
        if self.policy is None:
            raise RuntimeError("the model is not loaded yet: `configure_model` builds it when the Trainer starts.")
        return self.policy

    @property
    def language_model(self) -> PreTrainedModel:
        """The transformers model that is trained; there once `configure_model` has run."""
        model = self.main_network.model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def keeps_reference(self) -> bool:
        """Whether the initial policy is kept."""
        return False

    def trained_networks(self) -> list[nn.Module]:
        """List the networks whose forward is called in training, none of which is part of another."""
        return [self.main_network]

    def build_networks(self) -> None:
        """Load the policy, and keep it where a reference is needed: before any checkpoint is restored."""
        if self.policy is None:
            self.policy = self.source.load_policy().train()  # for gradient checkpointing
        if self.keeps_reference and self.reference is None:
            self.reference = self.source.reference_of(self.policy)

    def configure_model(self) -> None:
        """Build the networks and, where the strategy is made for it, deal out their weights over the processes.

        Lightning calls this once for every fit, validate or predict, in the context of its device. Networks are built
        on the CPU all the same: fresh weights are equal on every device then, and `from_pretrained` asks for no
        `accelerate`.

        Raises:
            ValueError: if the strategy does not work here, or not with an adapter.
        """
        mesh = None if self._trainer is None else sharding_mesh(self.trainer.strategy)
        known = self.source.adapter is not None
        if mesh is None or not self.source.trains_adapter:
            with torch.device("cpu"):
                self.build_networks()
        if mesh is not None:
            if self.source.trains_adapter:  # perhaps one that a function has built
                raise ValueError(
                    "LoRA does not go with sharded weights, of which no merged copy could be made: use DDP, where "
                    "gradients and optimiser are as small as the adapter, or train all weights."
                )
            self.shard_networks(mesh)
        if self.source.adapter is not None and not known:
            # not in `load_state_dict`: a copy of the module, as averages of weights are, loads as a part of another
            self.register_load_state_dict_pre_hook(_fill_in_frozen)

    def shard_networks(self, mesh: DeviceMesh) -> None:
        """Deal out the weights of all networks.

        They are in the Trainer's precision before, of which the buffers are made that the processes meet in. Whether
        rows can be packed is found out before, too: later all processes would have to do it together. Then the policy
        runs once, since torch takes what runs first for the whole of a network, and sampling runs a part of it.
        """
        references = [] if self.reference is None else [self.reference.policy]
        for network in [*self.trained_networks(), *references]:
            if self.packs_rows and isinstance(network, PacksRows):
                network.check_packing()
        for network in self.trained_networks():
            shard(self.convert(network), mesh)
        if self.reference is not None:
            self.reference.shard(mesh, self.convert)
        if self.policy is not None:
            with self.forward_context():
                self.policy.try_out()
            reshard(self.policy)

    def convert(self, network: nn.Module) -> nn.Module:
        """Give a network's weights the Trainer's precision, in place; twice is once."""
        return self.trainer.precision_plugin.convert_module(network)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Give the context of the Trainer's precision, for what is computed outside of Lightning's steps."""
        return self.trainer.precision_plugin.forward_context()

    @property
    def packs_rows(self) -> bool:
        """Whether the data come in packed batches."""
        datamodule = getattr(self._trainer, "datamodule", None)
        return isinstance(datamodule, SupervisedDataModule) and datamodule.packing

    # Before anything long begins.

    def check_model(self) -> None:
        """Fail now, before data are read or weights loaded, where the model cannot be found."""
        self.source.check()

    def check_lengths(self, datamodule: LightningDataModule, config: PreTrainedConfig) -> None:
        """Find out whether a model has positions for the longest row, and for prompts with their completions.

        Args:
            datamodule: its rows have been read; one of this library, or nothing is known.
            config: of the model.

        Raises:
            ValueError: if it has not.
        """
        context = context_length(config)
        if isinstance(datamodule, SupervisedDataModule):
            datamodule.encode(self.tokenizer)
            if context is not None and datamodule.longest > context:
                raise ValueError(
                    f"the longest row has {datamodule.longest} tokens, but the model's context is {context} tokens: "
                    f"`max_length={context}` leaves such rows out, or take a model with a longer one."
                )
        elif isinstance(datamodule, PromptDataModule) and self.evaluator is not None:
            check_prompt_lengths(
                datamodule, self.tokenizer, context=context, longest=self.evaluator.sampling.max_new_tokens
            )

    def check_weights(self, when: str) -> None:
        """End the run where a weight is not finite, before it is stored, exported or relied on.

        Raises:
            NonFiniteError: naming tensors, on all ranks.
        """
        check_weights(self, when=when, any_rank=self.ranks.any)

    # Lightning's hooks, in the order in which it calls them.

    def configure_callbacks(self) -> list[Callback]:
        """Bring exact resume along."""
        there = self.exact_resume in self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if there else [self.exact_resume]

    def setup(self, stage: str) -> None:
        """See to it that training reads the data through a loader that knows its place, and find the scores.

        Raises:
            ValueError: if a callback of the Trainer cannot work.
        """
        refuse_callbacks(self.trainer)
        attach_training_loader(self.trainer)
        if self.evaluator is not None:
            self.evaluator.find_metrics(self.trainer.datamodule)  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """Leave the Trainer as it was."""
        detach_training_loader(self.trainer)

    def parameter_groups(self) -> list[Any]:
        """Give what the optimiser is made from: all trainable parameters, or groups of them with their own options."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """Make one optimiser over all trainable parameters, and a schedule by optimiser steps."""
        optimizer = self._make_optimizer(self.parameter_groups())
        begin_states(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._make_scheduler(optimizer), "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Find out before the first step whether the rows fit the model, and begin to count.

        A run that resumes inside an epoch gets no `on_train_epoch_start`.

        Raises:
            NonFiniteError: if the weights to begin with are not finite.
        """
        self.check_weights("before the first step")
        self.statistics = StepStatistics()
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            self.check_lengths(datamodule, self.language_model.config)
        if self.reference is not None:
            self.reference.to(self.device, self.convert)

    def training_loader(self, loader: Any) -> PassLoader:
        """Give the loader to train from, at the place of the checkpoint where there is one."""
        made = loader if isinstance(loader, PassLoader) else self.make_training_loader(loader)
        self.exact_resume.load_place(self.trainer, made)
        return made

    def on_train_epoch_start(self) -> None:
        """Forget what an incomplete step at the end of an epoch left behind: it belongs to no other step."""
        self.statistics = StepStatistics()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the loss of a micro-batch; with the last one of an optimiser step, that step's metrics."""
        loss = self.loss(batch)
        self.statistics.add("loss", loss)
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            totals = self.statistics.pop(self.ranks)
            self._step_loss = totals["loss"]
            for name, value in self.step_metrics(totals).items():
                self.log(name, value, prog_bar=name in self.progress_bar, batch_size=1)
        # undoes the averaging over ranks and micro-batches: the loss already has the whole step's denominator
        return loss * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the whole step's gradient, before clipping.

        Raises:
            NonFiniteError: before the weights change, if loss or gradient are not finite.
        """
        plugin = self.trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        if scaler is not None and _optimizer_handles_unscaling(optimizer):
            scaler.unscale_(optimizer)  # a fused one would do it in its step, behind all that reads or clips gradients
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm(gradients)
        self.log("grad_norm", norm)
        # a gradient that overflows is what the scaler looks for: it skips the step, and scales down
        self.check_step(norm if scaler is None else None)

    def check_step(self, gradient_norm: Tensor | None = None) -> None:
        """End the run where a step cannot be made; the same on all ranks, since loss and norm are.

        Args:
            gradient_norm: (); None = the step is skipped, or the gradients are looked at elsewhere.

        Raises:
            NonFiniteError: naming the step and what is not finite.
        """
        checked = self._step_loss if gradient_norm is None else self._step_loss + gradient_norm.to(self._step_loss)
        if checked.isfinite():
            return
        what = f"the loss is {self._step_loss.item()}"
        if self._step_loss.isfinite():
            gradients = ((name, p.grad) for name, p in self.named_parameters() if p.grad is not None)
            what = f"the loss is finite, the gradients of {named(non_finite(gradients)) or 'other processes'} are not"
        rates = ", ".join(f"{group['lr']:.3g}" for group in self.trainer.optimizers[0].param_groups)
        raise NonFiniteError(
            f"optimiser step {self.trainer.global_step + 1}: {what}. The step was not made, and no checkpoint holds "
            f"such numbers: go on from the last one with a lower learning rate (now {rates}), with gradient clipping, "
            "or, where rewards or scores are very large, with smaller ones."
        )

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to the Trainer's `gradient_clip_val`: parameter groups with names apart, all others together.

        As Lightning does it, which in mixed precision refuses fused optimisers though, and knows no groups.
        """
        if gradient_clip_val is None or gradient_clip_val <= 0:
            return
        by_name: dict[Any, list[nn.Parameter]] = {}
        for group in optimizer.param_groups:
            by_name.setdefault(group.get("name"), []).extend(group["params"])
        for parameters in by_name.values():
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_validation_start(self) -> None:
        """Refuse to score weights whose scores would mean nothing."""
        self.check_weights(f"in the validation at step {self.trainer.global_step}")

    def on_validation_epoch_start(self) -> None:
        """Have all weights where prompts will be completed, of which processes may have unequal numbers."""
        if self.evaluator is not None and self.evaluator.judges:
            unshard(self.main_network)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Complete the prompts of a batch, and score the completions."""
        if self.evaluator is not None:
            self.evaluator.evaluate(batch)

    def validation_metrics(self) -> dict[str, Tensor]:
        """Give the metrics of a validation that is over, the same on all ranks; collection begins anew."""
        return {} if self.evaluator is None else self.evaluator.pop(self.ranks.sum)

    def on_validation_epoch_end(self) -> None:
        """Report on the axis of optimiser steps; before training only where all of the data was covered."""
        reshard(self.main_network)
        metrics = self.validation_metrics()
        trainer = self.trainer
        if trainer.sanity_checking and trainer.num_sanity_val_batches != trainer.num_val_batches:
            return
        alone = trainer.state.fn == TrainerFn.VALIDATING  # `Trainer.validate` returns what goes to the loggers this way
        # they are equal on all ranks; without `sync_dist` Lightning warns
        self.log_dict(metrics, logger=alone, batch_size=1, sync_dist=True)
        if not alone:
            self.log_now(metrics)

    def on_predict_start(self) -> None:
        """Refuse to write with weights whose words would mean nothing."""
        self.check_weights("before prediction")

    def on_predict_epoch_start(self) -> None:
        """Have all weights, as in validation."""
        unshard(self.main_network)

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Complete the prompts of a batch: their rows with `completion`, `truncated` and perhaps `reward`."""
        assert self.evaluator is not None
        return self.evaluator.predict(batch)

    def on_predict_epoch_end(self) -> None:
        """Have them sharded again."""
        reshard(self.main_network)

    def log_now(self, metrics: dict[str, Tensor]) -> None:
        """Hand metrics to the loggers at the number of optimiser steps done, which `self.log` does not."""
        values = {name: value.item() for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)

    # Checkpoints and exports.

    @property
    def between_steps(self) -> bool:
        """Whether weights, optimiser and counters speak of the same step, so that a checkpoint can be gone on from."""
        return not self.exact_resume.inside_update(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose checkpoint it is; one of weights that are not finite would take the place of a good one."""
        self.check_weights(f"in the checkpoint of step {self.trainer.global_step}")
        checkpoint["algorithm"] = type(self).__name__
        checkpoint["states"] = {name: state.state_dict() for name, state in self.states.items()}
        self.source.leave_out_frozen(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another algorithm; take the states of this one, where a Trainer goes on from it."""
        self.check_checkpoint(checkpoint)
        if self._trainer is not None:
            for name, state in self.states.items():
                state.load_state_dict(checkpoint["states"][name])

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find out whether this module can go on from a checkpoint, before anything else is done.

        Raises:
            ValueError: if another class wrote it, or it lacks what this module needs.
        """
        algorithm = checkpoint.get("algorithm", "something else than this library")
        if algorithm != type(self).__name__:
            raise ValueError(
                f"the checkpoint was written by {algorithm}, this run is {type(self).__name__}: optimiser and loops do "
                "not fit. To start from its weights use the export of its run as the model."
            )
        self.source.check_checkpoint(checkpoint)
        missing = self.states.keys() - checkpoint.get("states", {}).keys()
        if missing:
            raise ValueError(
                f"the checkpoint has no {', '.join(sorted(missing))}: its run had other options, or was one of another "
                "version of this library. Resume with the same ones, or start from the export of its run."
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, whole ones into sharded networks too; of an adapter's model, what is frozen may be missing.

        Raises:
            ValueError: if the adapter is of another shape.
        """
        if self.source.adapter is None:
            return super().load_state_dict(sharded_like(self, state_dict), strict, assign)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise ValueError(
                "the checkpoint does not fit this run's adapter: give `r`, `target_modules` and the model as they were "
                f"(config.yaml of its run has them). {' '.join(str(error).split())[:300]}"
            ) from error

    def export_config(self) -> PreTrainedConfig:
        """Say what config.json of an export says of the architecture."""
        return self.source.config()

    def save_outline(self, folder: str | Path) -> None:
        """Write what an export has beside its weights, before they are loaded: config.json and tokenizer."""
        self.export_config().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def exported_weights(self) -> dict[str, Tensor]:
        """Name the tensors that `save_pretrained` writes; of sharded weights on the first process alone.

        All processes call it together where weights are sharded.
        """
        return self.source.exported_weights(self.language_model)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write policy and tokenizer as a Hugging Face folder that `AutoModelForCausalLM` loads.

        With `Lora(export="adapter")` the adapter alone: a folder that `AutoPeftModelForCausalLM` loads. The first of
        several processes writes; all call it where weights are sharded.
        """
        self.check_weights("in the export")
        self.source.save(folder, self.language_model, writes=self.global_rank == 0)


def _fill_in_frozen(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Leave what is frozen as it is, where a checkpoint has the adapter alone."""
    frozen = frozen_names(module)
    for name, tensor in module.state_dict().items():
        if name in frozen:
            state_dict.setdefault(f"{prefix}{name}", tensor)
