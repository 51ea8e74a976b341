"""What every module shares that trains by optimiser steps of several micro-batches."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from lit_posttrain.algos.gradients import parameters_by_name, unscale
from lit_posttrain.batching import PassLoader
from lit_posttrain.batching.ranks import StepStatistics
from lit_posttrain.functional.accumulation import moved
from lit_posttrain.models.sharding import begin_states, total_norm
from lit_posttrain.models.weights import NonFiniteError, check_weights, named, non_finite
from lit_posttrain.modules.attachment import attach_training_loader, detach_training_loader
from lit_posttrain.modules.exact_resume import ExactResume
from lit_posttrain.modules.standing import refuse_callbacks

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class TrainingModule(L.LightningModule):
    """Automatic optimisation of a loss whose denominator is that of the whole optimiser step.

    Args:
        optimizer: makes the optimiser from the parameters; None = the algorithm's default.
        scheduler: makes the learning-rate schedule from the optimiser, stepped once per optimiser step; None = the
            algorithm's default.

    Attributes:
        progress_bar: metrics that the progress bar shows.
        exact_resume: makes a fit go on exactly where another one was interrupted.
    """

    progress_bar: tuple[str, ...] = ()
    _statistics: StepStatistics
    _step_loss: Tensor  # of the whole step, the same on all ranks

    def __init__(self, *, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None) -> None:
        super().__init__()
        self._make_optimizer = optimizer or self.default_optimizer()
        self._make_scheduler = scheduler or self.default_scheduler()
        self.exact_resume = ExactResume()

    def default_optimizer(self) -> MakeOptimizer:
        """AdamW with lr 1e-6 and no weight decay."""
        return partial(torch.optim.AdamW, lr=1e-6, weight_decay=0.0)

    def default_scheduler(self) -> MakeScheduler:
        """Linear warm-up over 10 steps, then constant."""
        return partial(LinearLR, start_factor=0.1, total_iters=10)

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """This micro-batch's share of the optimiser step's loss: ()."""

    @abstractmethod
    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics by name, from what `loss` added to the statistics."""

    @property
    def between_steps(self) -> bool:
        """Whether weights, optimiser and counters speak of the same step, so that a checkpoint can be gone on from."""
        return not self.exact_resume.inside_update(self.trainer)

    @abstractmethod
    def make_training_loader(self, loader: Any) -> PassLoader:
        """The loader to train from, made of the one that the Trainer was given."""

    def configure_callbacks(self) -> list[Callback]:
        """Those that the module brings along."""
        there = self.exact_resume in self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if there else [self.exact_resume]

    def setup(self, stage: str) -> None:
        """See to it that training reads the data through a loader that knows its place.

        Raises:
            ValueError: if a callback of the Trainer cannot work.
        """
        refuse_callbacks(self.trainer)
        attach_training_loader(self.trainer)

    def teardown(self, stage: str) -> None:
        """Leave the Trainer as it was."""
        detach_training_loader(self.trainer)

    def training_loader(self, loader: Any) -> PassLoader:
        """The loader to train from, at the place of the checkpoint where there is one."""
        made = loader if isinstance(loader, PassLoader) else self.make_training_loader(loader)
        self.exact_resume.load_place(self.trainer, made)
        return made

    @property
    def loss_scale(self) -> int:
        """Undoes the averaging over ranks and micro-batches: the loss already has the whole step's denominator."""
        return self.trainer.world_size * self.trainer.accumulate_grad_batches

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a micro-batch; with the last one of an optimiser step, that step's metrics."""
        loss = self.loss(batch)
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            totals = self._statistics.pop(sum_over_ranks=self.sum_over_ranks, max_over_ranks=self.max_over_ranks)
            self._step_loss = totals["loss"]
            for name, value in self.step_metrics(totals).items():
                self.log(name, value, prog_bar=name in self.progress_bar, batch_size=1)
        return loss * self.loss_scale

    def validation_metrics(self) -> dict[str, Tensor]:
        """The metrics of a validation that is over, the same on all ranks; collection begins anew."""
        return {}

    def on_validation_epoch_end(self) -> None:
        """Report on the axis of optimiser steps; before training only where all of the data was covered."""
        metrics = self.validation_metrics()
        trainer = self.trainer
        if trainer.sanity_checking and trainer.num_sanity_val_batches != trainer.num_val_batches:
            return
        alone = trainer.state.fn == TrainerFn.VALIDATING  # `trainer.validate` returns what goes to the loggers this way
        self.log_dict(
            metrics, logger=alone, batch_size=1, sync_dist=True
        )  # equal on all ranks; Lightning warns without
        if not alone:
            self.log_now(metrics)

    def on_fit_start(self) -> None:
        """Begin to count; a run that resumes inside an epoch gets no `on_train_epoch_start`.

        Raises:
            NonFiniteError: if the weights to begin with are not finite.
        """
        self.check_weights("before the first step")
        self._statistics = StepStatistics()

    def on_train_epoch_start(self) -> None:
        """What an incomplete step at the end of an epoch left behind belongs to no other step."""
        self._statistics = StepStatistics()

    def parameter_groups(self) -> list[Any]:
        """What the optimiser is made from: all trainable parameters, or groups of them with options of their own."""
        return [p for p in self.parameters() if p.requires_grad]

    def configure_optimizers(self) -> Any:
        """One optimiser over all trainable parameters, and a schedule by optimiser steps."""
        optimizer = self._make_optimizer(self.parameter_groups())
        begin_states(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._make_scheduler(optimizer), "interval": "step"},
        }

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norm of the whole step's gradient, before clipping.

        Raises:
            NonFiniteError: before the weights change, if loss or gradient are not finite.
        """
        unscale(optimizer, self.trainer.precision_plugin)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm(gradients)
        self.log("grad_norm", norm)
        self.check_step(norm)

    def check_step(self, gradient_norm: Tensor | None = None) -> None:
        """End the run where a step cannot be made; the same on all ranks, since loss and norm are.

        Args:
            gradient_norm: (); None = the step is skipped.

        Raises:
            NonFiniteError: naming the step and what is not finite.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            gradient_norm = None  # a gradient that overflows is what it looks for: it skips the step, and scales down
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

    def check_weights(self, when: str) -> None:
        """End the run where a weight is not finite, before it is stored, exported or relied on.

        Raises:
            NonFiniteError: naming tensors, on all ranks.
        """
        alone = self._trainer is None
        any_rank = bool if alone else partial(self.trainer.strategy.reduce_boolean_decision, all=False)
        check_weights(self, when=when, any_rank=any_rank)

    def on_validation_start(self) -> None:
        """Scores of such weights would mean nothing."""
        self.check_weights(f"in the validation at step {self.trainer.global_step}")

    def on_predict_start(self) -> None:
        """Nor would completions."""
        self.check_weights("before prediction")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip to `trainer.gradient_clip_val`: parameter groups with names apart, all others together.

        As Lightning does it, which in mixed precision refuses fused optimisers though, and knows no groups.
        """
        if gradient_clip_val is None or gradient_clip_val <= 0:
            return
        for parameters in parameters_by_name(optimizer):
            if gradient_clip_algorithm == "value":
                nn.utils.clip_grad_value_(parameters, gradient_clip_val)
            else:
                nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say whose checkpoint it is; one of weights that are not finite would take the place of a good one."""
        self.check_weights(f"in the checkpoint of step {self.trainer.global_step}")
        checkpoint["algorithm"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another algorithm."""
        self.check_checkpoint(checkpoint)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find out whether a checkpoint is one of this module's, before anything else is done.

        Raises:
            ValueError: if another class wrote it.
        """
        algorithm = checkpoint.get("algorithm", "something else than this library")
        if algorithm != type(self).__name__:
            raise ValueError(
                f"the checkpoint was written by {algorithm}, this run is {type(self).__name__}: optimiser and loops do "
                "not fit. To start from its weights use its run's export: `model=local model.path=<run>/export`."
            )

    def log_now(self, metrics: dict[str, Tensor]) -> None:
        """Hand metrics to the loggers at the number of optimiser steps done, which `self.log` does not."""
        values = {name: value.item() for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)

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
        reduced = self.trainer.strategy.reduce(moved(tensor, self.device), reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced
