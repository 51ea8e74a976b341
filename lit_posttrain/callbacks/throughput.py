"""Where the time of a rollout goes."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lit_posttrain.callbacks.records import RecordsRollouts


class Throughput(Callback):
    """Logs `time/update_s`, seconds of an optimiser step, and `throughput/tokens_per_s`.

    Throughput is completion tokens of all ranks per second of sampling, scoring and updating, so that it tells what a
    change of settings costs; validation does not count. It assumes that ranks sample about as much as this one.
    """

    def __init__(self) -> None:
        self._rollout: int | None = None
        self._spent_s = 0.0
        self._steps = 0
        self._step_started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock of an optimiser step at its first micro-batch."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._step_started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step, and the rollout when this was its last."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        update_s = time.perf_counter() - self._step_started
        pl_module.log("time/update_s", update_s, batch_size=1)
        if not isinstance(pl_module, RecordsRollouts) or pl_module.last_rollout is None:
            return
        record = pl_module.last_rollout
        if record.index != self._rollout:
            generate_s = record.scored.completions.generate_s if record.scored.completions else 0.0
            self._rollout, self._spent_s, self._steps = record.index, generate_s + record.scored.score_s, 0
        self._spent_s += update_s
        self._steps += 1
        if self._steps == pl_module.steps_per_rollout:
            pl_module.log(
                "throughput/tokens_per_s", record.num_tokens * trainer.world_size / self._spent_s, batch_size=1
            )
