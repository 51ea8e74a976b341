"""Processes that end when they have to: with the one that started them, and soon after SIGTERM."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = "LIT_POSTTRAIN_LIFELINE"  # set where stdin is a pipe that the pipeline holds open and never writes to
TERMINATED = 128 + signal.SIGTERM
PATIENCE_S = 30.0
GRACE_S = 8.0  # from SIGTERM to the end, in which the last step may be saved
POLL_S = 0.5


def end_with_the_pipeline() -> None:
    """Watch stdin from now on, where it is a lifeline: it ends when the pipeline does, be it killed.

    A stage that went on alone would write into a folder that the next start of the pipeline takes up.
    """
    if HELD in os.environ:
        threading.Thread(target=_watch_stdin, daemon=True).start()


def end_with_the_launcher() -> None:
    """End when the process is gone that launched this one, be it killed: left alone it would wait in a collective."""
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def end_soon_after_sigterm() -> None:
    """See to it that SIGTERM ends this process within seconds, whatever it is doing.

    Python runs a handler between two of its instructions, and not while a call into a library or a collective that
    waits for another process goes on. The interpreter writes the number of a signal into a pipe as it arrives; who
    reads it there needs no handler.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch_signals, args=(reading,), daemon=True).start()


@contextmanager
def ended_at_once(way_on: str) -> Iterator[None]:
    """Let a signal end the process at once inside, where C code that imports would lose a handler's exception.

    Args:
        way_on: what is said behind "terminated" or "interrupted".
    """

    def end(number: int, frame: FrameType | None) -> None:
        say_end(number, way_on)
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # which alone may have handlers
        yield
        return
    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def say_end(number: int, way_on: str) -> None:
    """Say in one sentence, on the first process, which signal ended the run and how to go on."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        word = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"\n{word}{way_on}", file=sys.stderr, flush=True)  # noqa: T201


def _watch_signals(pipe: int) -> None:
    while received := os.read(pipe, 1):
        if received[0] == signal.SIGTERM:
            time.sleep(GRACE_S)
            os._exit(TERMINATED)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(TERMINATED)


def _watch_stdin() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # processes that it launched are ended on the way out
    time.sleep(PATIENCE_S)
    os._exit(TERMINATED)
