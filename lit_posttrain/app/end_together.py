"""A run on several processes that fails or is terminated, ends on all of them."""

import atexit
import signal
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class EndTogether(Callback):
    """Ends all processes of a run where one of them fails or gets SIGTERM.

    Where another one than the first fails Lightning ends the first within seconds. The other way round they would wait
    in a collective for a process that is gone, with NCCL for half an hour and on a GPU each: the first one takes along
    those that it has launched, at exit, after what went wrong has been said.

    On SIGTERM one process stops at once, wherever it is. Several have to stop at the same place, where they can save
    together: they ask one another at the beginning of every optimiser step. Lightning's own handler does so within the
    signal, in the middle of whatever the others are doing, and may hang for ever; so it is replaced.
    """

    def __init__(self) -> None:
        self._several = False  # processes
        self._asked = False  # to end

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning, which has just taken it."""
        self._take_over(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where there was no check before training."""
        self._take_over(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where there is no training."""
        self._take_over(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As well."""
        self._take_over(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End all processes where one of them was asked to.

        Raises:
            SIGTERMException: on all of them.
        """
        asks = self._several and batch_idx % trainer.accumulate_grad_batches == 0
        if asks and trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remember to end the others; a launched process has none of its own."""
        if trainer.strategy.launcher is not None:
            atexit.register(trainer.strategy.launcher.kill, signal.SIGKILL)

    def _take_over(self, trainer: Trainer) -> None:
        self._several = trainer.world_size > 1
        signal.signal(signal.SIGTERM, self._stop)  # Lightning puts back what was there before the run

    def _stop(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        self._asked = True
        if not self._several:
            raise SIGTERMException
