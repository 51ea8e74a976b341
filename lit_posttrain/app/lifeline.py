"""A stage of a pipeline ends with the process that started it."""

import os
import signal
import threading
import time

HELD = "LIT_POSTTRAIN_LIFELINE"  # set where stdin is a pipe that the pipeline holds open and never writes to
PATIENCE_S = 30.0


def end_with_the_pipeline() -> None:
    """Watch stdin from now on, where it is a lifeline: it ends when the pipeline does, be it killed.

    A stage that went on alone would write into a folder that the next start of the pipeline takes up.
    """
    if HELD in os.environ:
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # processes that it launched are ended on the way out
    time.sleep(PATIENCE_S)
    os._exit(128 + signal.SIGTERM)
