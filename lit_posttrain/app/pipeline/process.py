"""A stage of a pipeline as a process of its own: the command line that anybody could type."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from lit_posttrain.app.errors import SET_HERE
from lit_posttrain.app.lifeline import HELD


def run_stage(arguments: list[str], *, lock: int) -> int:
    """Run a stage and wait for it.

    It has a process group of its own, so that a signal reaches it once, from here: Ctrl-C as SIGINT, whatever else ends
    this process as SIGTERM, after which it may unwind; a second Ctrl-C kills it. When this process is killed, it ends
    by its lifeline.

    Args:
        arguments: of its command line.
        lock: of the pipeline's folder, its descriptor, which the stage inherits: one that lives on keeps others out.

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
