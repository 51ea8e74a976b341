"""Whether what a run is judged by is measured at all."""

from lightning import Callback, LightningModule, Trainer

from lit_posttrain.app.hints import nearest


class WatchedMetric(Callback):
    """Ends a run before its first step where validation does not report a metric that the run is judged by.

    Without it the run would end at the first validation in training, or a pipeline behind it, hours later.

    Args:
        option: which names the metric.
        metric: the name; any but a `val/` one is not known before training and not looked for.
    """

    def __init__(self, option: str, metric: str) -> None:
        self.option = option
        self.metric = metric

    @property
    def state_key(self) -> str:
        """One for each option; it has no state, and Lightning wants keys to differ."""
        return self._generate_state_key(option=self.option)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look among the scores before training, where there are any.

        Raises:
            ValueError: listing the metrics there are.
        """
        names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if names and self.metric.startswith("val/") and self.metric not in names:
            raise ValueError(
                f"`{self.option}` must be a metric of this run, got `{self.metric}`.{nearest(self.metric, names)} "
                f"Validation reports: {', '.join(names)}."
            )
