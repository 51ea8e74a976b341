"""Checkpoints that are there whole or not at all, and damage that is found before anything is restored."""

import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_posttrain.files.whole import whole_file

# What stands behind the archive that torch writes, and that neither torch nor a program for archives looks at.
SEAL = b"\nCRC-32 %08x\n"
SEAL_BYTES = len(SEAL % 0)
BLOCK = 2**24
# What reading a broken archive may end with.
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError)


class DamagedCheckpointError(ValueError):
    """A checkpoint has other bytes than were written. Nothing has been restored from it."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint as a draft beside its place, which then takes it, and reads none that is damaged.

    Stock Lightning makes the draft in the temporary folder: where that is another file system, it is copied over the
    old checkpoint, and a process that is killed then leaves neither of the two. Checkpoints that are not on this
    machine (`s3://` and the like) go the stock way.

    A checkpoint ends with a checksum of all its bytes, which `torch.load` passes over. Of one that stock Lightning
    wrote the checksums of its tensors are compared, which torch writes and does not look at.

    `Trainer(plugins=[AtomicCheckpointIO()])` uses it. `ModelParallelStrategy` saves by it when it saves single files,
    and reads without it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all, with the sums of its bytes.

        Raises:
            NoRoomError: if the disk is full; the old checkpoint is whole.
        """
        if not _is_local(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_file(Path(path), binary=True) as file:
            summed = _Summed(file)
            torch.save(checkpoint, summed)  # type: ignore[arg-type]
            file.write(SEAL % summed.crc32)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, unless its bytes are not those that were written.

        Raises:
            FileNotFoundError: if there is none.
            DamagedCheckpointError: if it is damaged; the message offers another one.
        """
        if _is_local(path) and Path(path).is_file():
            check_whole(path)
        return super().load_checkpoint(path, map_location, weights_only)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that Lightning wrote, its tensors mapped from the disk.

    Raises:
        DamagedCheckpointError: if it is damaged; the message offers another one.
        ValueError: if it is none.
    """
    check_whole(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        checkpoint["global_step"]
    except (RuntimeError, UnpicklingError, KeyError, TypeError) as error:
        raise ValueError(f"`{path}` is no checkpoint that Lightning wrote.") from error
    assert isinstance(checkpoint, dict)
    return checkpoint


def check_whole(path: str | Path) -> None:
    """Find out whether the bytes of a checkpoint are those that were written, once in a process.

    Raises:
        DamagedCheckpointError: if they are not; the message offers another checkpoint of the folder.
    """
    damage = _damage_of(path)
    if damage is not None:
        raise DamagedCheckpointError(f"the checkpoint `{path}` is damaged: {damage}. {_way_out(Path(path))}")


class _Summed:
    """A file whose bytes are summed up while they are written, one after the other.

    Args:
        file: that is written.

    Attributes:
        crc32: of all bytes so far.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.crc32 = 0

    def write(self, data: bytes) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _damage_of(path: str | Path) -> str | None:
    found = os.stat(path)
    return _damage(os.path.realpath(path), found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _damage(path: str, inode: int, size: int, mtime_ns: int) -> str | None:
    """What is wrong with a file of these marks; None for nothing, and for what torch has never written."""
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(size - SEAL_BYTES, 0))
        seal = file.read()
        if head == b"PK\3\4" and seal.startswith(SEAL[:8]):
            whole = seal == SEAL % _crc32(file, size - SEAL_BYTES)
            return None if whole else "its bytes are not those that were written"
    if head != b"PK\3\4" and head.strip(b"\0") and not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except BROKEN as error:
        return f"it was cut off or overwritten ({error})"
    return None if wrong is None else f"the bytes of `{wrong}` in it are not those that were written"


def _crc32(file: IO[bytes], size: int) -> int:
    """Return the CRC-32 of the first bytes of a file."""
    file.seek(0)
    crc32 = 0
    while block := file.read(min(BLOCK, size)):
        crc32, size = zlib.crc32(block, crc32), size - len(block)
    return crc32


def _way_out(path: Path) -> str:
    """The newest other checkpoint of the folder that is whole."""
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file() and other.name != path.name]
    for other in sorted(others, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            step = read_checkpoint(other)["global_step"] if _damage_of(other) is None else None
        except ValueError:
            continue
        if step is not None:
            return f"The newest whole one beside it is `{other}`, of step {step}: give that as `ckpt_path`."
    return "There is no other whole one beside it: begin anew."


def _is_local(path: str | Path) -> bool:
    return "://" not in str(path)
