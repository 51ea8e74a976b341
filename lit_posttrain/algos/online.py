"""Base of the algorithms that learn from their own completions: rollouts as the training data of Lightning."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn

from lit_posttrain.algos.rollout_module import RolloutModule
from lit_posttrain.batching import MicroBatch
from lit_posttrain.data.loaders import PromptLoader
from lit_posttrain.modules.attachment import without_repeats
from lit_posttrain.rollout.loader import RolloutLoader

# Shown in the progress bar: the loss of a policy gradient is no measure of progress.
PROGRESS_BAR = ("reward/mean", "rollout/length_mean", "policy/kl_ref")


class OnlineModule(RolloutModule):
    """Learns from rollouts, with automatic optimisation.

    While fitting, whatever training dataloader there is gets wrapped in a `RolloutLoader`, which asks `make_rollout`
    for a rollout of every prompt batch; `loss` of the subclass is a pure function of a part of it. Its arguments are
    those of `RolloutModule`.
    """

    progress_bar = PROGRESS_BAR
    _skip_step = False

    def setup(self, stage: str) -> None:
        """Refuse what would cut rollouts into unequal numbers of micro-batches."""
        super().setup(stage)
        if any(isinstance(c, GradientAccumulationScheduler) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "GradientAccumulationScheduler does not work with rollouts: how they are cut into micro-batches is "
                "fixed at the start. Use `accumulate_grad_batches`."
            )

    def make_training_loader(self, loader: Any) -> RolloutLoader:
        """Rollouts of the prompts that a loader gives, of which every one comes once in a pass."""
        if isinstance(loader, PromptLoader):  # made without the Trainer, it has not heard of other processes
            loader = loader.shared_out(rank=self.global_rank, world_size=self.trainer.world_size)
        return RolloutLoader(without_repeats(loader), self, self.trainer)

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        """Show a new rollout's metrics to callbacks and progress bar; the loggers have them already."""
        self._skip_step = batch.skip_step
        for name, value in self._unlogged.items():
            self.log(name, value, logger=False, prog_bar=name in self.progress_bar, batch_size=1)
        self._unlogged = {}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, unless there was nothing to learn: AdamW would move the weights on a zero gradient too."""
        if not self._skip_step:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif optimizer_closure is not None:
            optimizer_closure()
            self.check_step()
            self.signal_watch.skipped_step()

    def on_train_end(self) -> None:
        """Say what was wrong with the rollouts, if anything was."""
        super().on_train_end()
        if self.global_rank == 0:
            self.signal_watch.say_at_the_end(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the counts of rollouts that had nothing to learn from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["signal_watch"] = self.signal_watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.signal_watch.load_state_dict(checkpoint["signal_watch"])
