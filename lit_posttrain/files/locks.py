"""Locks that end with the process that holds them, however it ends."""

import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


def lock(descriptor: int) -> None:
    """Take the lock of an open file or folder, without waiting.

    Raises:
        BlockingIOError: if somebody else has it.
        OSError: if the file system has no locks.
    """
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """The lock of a folder: a file `.lock` in it, which one process holds until it lets go or ends.

    A process that is forked does not keep it, one that is given the descriptor does. Where the file system has no
    locks, everybody gets it.

    Args:
        folder: made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock without waiting, and return whether it was free.

        Raises:
            OSError: if the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            log.warning("the file system of %s has no locks (%s): keep a second run out yourself", self.path, error)
        with suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.descriptor = descriptor
        _held.add(descriptor)
        return True

    def holder(self) -> str:
        """Return who has taken the lock last."""
        return self.path.read_text(encoding="utf-8", errors="replace") or "an unknown process"

    def release(self) -> None:
        """Let go of the lock, where it is held."""
        if self.descriptor is not None:
            _held.discard(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = None


_held: set[int] = set()


def _forget_in_child() -> None:
    """A worker that outlives a killed process would keep its folders locked."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
