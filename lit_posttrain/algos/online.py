"""Base of the algorithms that learn from their own completions: rollouts as the training data of Lightning."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from lit_posttrain.algos.resuming import stored_loader
from lit_posttrain.algos.rollout_module import RolloutModule
from lit_posttrain.batching import MicroBatch
from lit_posttrain.rollout.loader import RolloutLoader
from lit_posttrain.rollout.unrepeated import without_repeats

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
    _loader_state: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Wrap the training dataloader, and see to it that every prompt comes once."""
        super().setup(stage)
        if any(isinstance(c, GradientAccumulationScheduler) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "GradientAccumulationScheduler does not work with rollouts: how they are cut into micro-batches is "
                "fixed at the start. Use `accumulate_grad_batches`."
            )
        strategy = self.trainer.strategy
        process = strategy.process_dataloader  # called on every loader, after Lightning has put in its own sampler

        def wrap(loader: Any) -> Any:
            loader = without_repeats(process(loader))
            if self.trainer.state.stage != RunningStage.TRAINING or isinstance(loader, RolloutLoader):
                return loader
            rollouts = RolloutLoader(loader, self, self.trainer)
            if self._loader_state is not None:
                rollouts.load_state_dict(self._loader_state)
                self._loader_state = None
            return rollouts

        vars(strategy)["process_dataloader"] = wrap

    def teardown(self, stage: str) -> None:
        """Take the wrapper off again."""
        vars(self.trainer.strategy).pop("process_dataloader", None)

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the place in the data: Lightning always stores it and restores it only sometimes."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            state, loader = stored_loader(checkpoint), self.trainer.train_dataloader
            if state is not None and isinstance(loader, RolloutLoader):
                loader.load_state_dict(state)  # where weights are sharded a checkpoint comes late
            else:
                self._loader_state = state
