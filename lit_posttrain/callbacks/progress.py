"""What a run has spent at each validation: the two axes on which algorithms can be compared."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_posttrain.batching import MicroBatch, StepPart, SupervisedBatch, TwinBatch
from lit_posttrain.callbacks.records import RecordsRollouts


class Progress(Callback):
    """Logs `throughput/tokens` and `time/train_s` beside the scores of every validation.

    Tokens are those of completions, over all ranks: that an online algorithm has sampled, that an offline one has
    learnt from. Seconds are those of training, sampling included and validation not. Both go on in a resumed run; what
    lies between its checkpoint and the kill was done twice and counts once.
    """

    def __init__(self) -> None:
        self._tokens: int | Tensor = 0
        self._rollout: int | None = None
        self._train_s = 0.0
        self._since: float | None = None  # None while nothing is trained

    @property
    def tokens(self) -> int:
        """Completion tokens so far, over all ranks."""
        return int(self._tokens)

    @property
    def train_s(self) -> float:
        """Seconds of training so far."""
        return self._train_s + (0.0 if self._since is None else time.perf_counter() - self._since)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training."""
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training."""
        self._train_s, self._since = self.train_s, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the rollout or the rows that the batch is of; a rollout has several batches."""
        tokens = _supervised_tokens(batch)
        if tokens is None and isinstance(pl_module, RecordsRollouts) and pl_module.last_rollout is not None:
            record = pl_module.last_rollout
            if record.index == self._rollout:
                return
            self._rollout = record.index
            tokens = torch.tensor(record.num_tokens, device=pl_module.device)
        if tokens is not None:
            self._tokens += trainer.strategy.reduce(tokens, reduce_op="sum")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock while training waits."""
        self._train_s = self.train_s
        self._since = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log tokens and seconds, and start the clock again."""
        fits = trainer.state.fn is TrainerFn.FITTING
        if not fits and self._tokens == 0:
            return  # a validation of its own
        values = {"throughput/tokens": float(self._tokens), "time/train_s": self._train_s}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if fits and not trainer.sanity_checking:
            self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return tokens and seconds as plain numbers."""
        return {"tokens": self.tokens, "rollout": self._rollout, "train_s": self.train_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the tokens and seconds of the run that is resumed."""
        self._tokens, self._rollout = state_dict["tokens"], state_dict["rollout"]
        self._train_s = state_dict["train_s"]


def _supervised_tokens(batch: Any) -> Tensor | None:
    """Completion tokens that given rows are learnt from, None where the batch is of a rollout or somebody's own."""
    rows = batch.batch if isinstance(batch, StepPart) else batch
    if isinstance(rows, MicroBatch):
        return None
    if isinstance(rows, TwinBatch):
        first, second = rows.halves(rows.sequences.loss_mask.sum(1))
        return ((first + second) * rows.row_mask).sum()
    return rows.loss_mask.sum() if isinstance(rows, SupervisedBatch) else None
