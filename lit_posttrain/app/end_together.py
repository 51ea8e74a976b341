"""A run on several processes that fails, fails on all of them."""

import atexit
import signal

from lightning import Callback, LightningModule, Trainer


class EndTogether(Callback):
    """Takes the processes that Lightning launched along when the first one ends by an exception.

    Where another one fails Lightning ends the first within seconds. The other way round they would wait in a collective
    for a process that is gone, with NCCL for half an hour and on a GPU each. It happens at exit, after what went wrong
    has been said.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remember to end them; a launched process has none of its own."""
        if trainer.strategy.launcher is not None:
            atexit.register(trainer.strategy.launcher.kill, signal.SIGKILL)
