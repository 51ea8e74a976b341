"""The first, last and best value of every metric, for the summary of a run."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

# Of these less is better, of all others more; of the watched one its mode says.
DESCENDING = ("loss", "perplexity", "kl", "grad_norm", "time/", "truncated", "zero_std", "clip_frac", "calibration")


class MetricsHistory(Callback):
    """Remembers of each metric its first, last and best value; the state goes on in a resumed run.

    The first of a `val/` metric is the score before training, from Lightning's sanity check over all batches.

    Args:
        watch: the metric that the run is judged by; None = none.
        mode: "min" or "max", whether less or more of it is better.
    """

    def __init__(self, watch: str | None = None, mode: str = "max") -> None:
        self.watch = watch
        self.mode = mode
        self.metrics: dict[str, dict[str, float]] = {}
        self.last_validation_step: int | None = None

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the scores before training."""
        self._take(trainer, validation=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the scores of a validation."""
        if not trainer.sanity_checking:
            self._take(trainer, validation=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the metrics of an optimiser step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._take(trainer, validation=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the values as plain numbers."""
        return {"metrics": self.metrics, "last_validation_step": self.last_validation_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the values of the run that is resumed."""
        self.metrics = state_dict["metrics"]
        self.last_validation_step = state_dict["last_validation_step"]

    def _take(self, trainer: Trainer, *, validation: bool) -> None:
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") == validation
        }
        if validation and values:
            self.last_validation_step = trainer.global_step
        for name, value in values.items():
            if math.isnan(value):
                continue
            seen = self.metrics.setdefault(name, {"first": value, "last": value, "best": value})
            descending = self.mode == "min" if name == self.watch else any(word in name for word in DESCENDING)
            seen.update(last=value, best=(min if descending else max)(seen["best"], value))
