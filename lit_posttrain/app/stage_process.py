"""A stage of a pipeline as a process of its own: the command line that anybody could type."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lit_posttrain.app.errors import SET_HERE
from lit_posttrain.app.lifeline import HELD

log = logging.getLogger(__name__)

WAIT_S = 60.0  # for a stage that is still ending
POLL_S = 2.0


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Hold the lock of a pipeline's folder, and let stages inherit it: one that lives on keeps others out.

    Yields:
        The descriptor to hand to stages.

    Raises:
        RuntimeError: if it is not free after a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        deadline = time.monotonic() + WAIT_S
        while not _take(file):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"another pipeline is running in {folder}: let it end, or take another `hydra.run.dir`."
                )
            log.info("waiting for what is still running in %s", folder)
            time.sleep(POLL_S)
        yield file.fileno()


def _take(file: IO[str]) -> bool:
    """Take the lock of a file; whether it was free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run_stage(arguments: list[str], *, lock: int) -> int:
    """Run a stage and wait for it.

    It has a process group of its own, so that a signal reaches it once, from here: Ctrl-C as SIGINT, whatever else ends
    this process as SIGTERM, after which it may unwind; a second Ctrl-C kills it. When this process is killed, it ends
    by its lifeline.

    Args:
        arguments: of its command line.
        lock: what `alone_in` gave.

    Returns:
        Its exit status; -n where signal n ended it.
    """
    environment = os.environ | {HELD: "stdin"}
    if environment.pop(SET_HERE, None) is not None:
        environment.pop("HYDRA_FULL_ERROR", None)  # a stage is a command line of its own
    command = [sys.executable, "-m", "lit_posttrain", *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, env=environment, pass_fds=(lock,), start_new_session=True
    )
    try:
        return process.wait()
    except BaseException as stop:
        try:
            process.send_signal(signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
            process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise
