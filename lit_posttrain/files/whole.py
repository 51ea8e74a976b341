"""Writing files and folders so that they are there whole or not at all."""

import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lit_posttrain.files.locks import lock

NO_ROOM = {errno.ENOSPC: "its disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "it would be too large"}
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.draft")


class NoRoomError(OSError):
    """A file could not be written for want of room. What was there before is unchanged.

    Args:
        path: of the file or folder.
        number: the system's error.
    """

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(
            f"`{path}` could not be written: {NO_ROOM[number]}. What was there before is unchanged. Make room, or "
            "write to another folder."
        )
        self.errno = number


@contextmanager
def whole_file(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """Write a file that is there whole or not at all, and on the disk when this is over.

    What is written goes into a draft beside it, which takes its place at the end. A draft is removed if anything fails;
    one that was left by a killed process goes when the next file is written beside it.

    Args:
        path: of the file; its folder is made.
        binary: whether bytes are written, else text in UTF-8 whose line ends are left as they are.

    Yields:
        The draft, open.

    Raises:
        NoRoomError: if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_drafts(path.parent)
    draft, descriptor = _new_draft(path.parent, path.name)
    text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "newline": ""}
    try:
        with room_for(path), os.fdopen(descriptor, "wb" if binary else "w", **text) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            os.replace(draft, path)  # inside, while the draft is locked
        _sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a file, all or none, and on the disk when this is over; its folder is made.

    Raises:
        NoRoomError: if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = memoryview("".join(f"{line}\n" for line in lines).encode())
    with room_for(path), path.open("ab", buffering=0) as file:
        length = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(length)
            raise


@contextmanager
def whole_folder(path: Path, *, outdated: re.Pattern[str]) -> Iterator[Path]:
    """Write a folder that is there whole or not at all.

    Its files go into a draft beside it, which takes the place of the folder at the end. Where the folder also has files
    of other kinds, or cannot be moved, it stays with them, and gets the new files one by one.

    Args:
        path: of the folder.
        outdated: names of files which an earlier folder of the kind may have had, and which go with it.

    Yields:
        The draft.

    Raises:
        NoRoomError: if the disk is full.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"`{path}` is a file, and a folder is to be written there: give another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name[:50]}.replaced")
    _take_back(aside, path)
    fixed = os.path.ismount(path) or Path.cwd().is_relative_to(path) or not os.access(path.parent, os.W_OK)
    stays = fixed and path.is_dir()
    place = path if stays else path.parent
    _remove_stale_drafts(place)
    draft, descriptor = _new_draft(place, path.name, folder=True)
    try:
        with room_for(path):
            yield draft
            for below in [*draft.rglob("*"), draft]:
                _sync(below)
            others = [name for name in _names(path) - _names(draft) if not outdated.fullmatch(name)]
            if stays or others:
                _move_files(draft, path, outdated)
            else:
                _swap(draft, path, aside)
        _sync(path.parent)
    finally:
        os.close(descriptor)
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Name a file in whatever is said where its disk is full.

    Raises:
        NoRoomError: in place of an error that comes from it.
    """
    handled = sys.exception()
    try:
        yield
    except Exception as error:
        number = _cause(error, handled)
        if number in NO_ROOM:
            raise NoRoomError(path, number) from error
        raise


def _cause(error: BaseException | None, handled: BaseException | None) -> int | None:
    """The number of the system's error behind an error, which others may have wrapped or put into words."""
    while error is not None and error is not handled:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        told = re.search(r"\(os error (\d+)\)", str(error))  # as Rust does
        if told:
            return int(told.group(1))
        error = error.__cause__ or error.__context__
    return None


def _new_draft(place: Path, name: str, *, folder: bool = False) -> tuple[Path, int]:
    """A new draft of a file or folder, with a descriptor that holds its lock while it is open."""
    while True:
        draft = place / f".{name[:50]}.{secrets.token_hex(4)}.draft"
        if folder:
            draft.mkdir()
        descriptor = os.open(draft, os.O_RDONLY if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        taken = False  # for a stale one, before it was locked
        try:
            lock(descriptor)
        except BlockingIOError:
            taken = True
        except OSError:
            pass  # a file system without locks, where nobody removes drafts
        if not taken and draft.exists():
            return draft, descriptor
        os.close(descriptor)


def _remove_stale_drafts(place: Path) -> None:
    """Remove the drafts that nobody has the lock of."""
    for draft in [entry for entry in place.iterdir() if _DRAFT.fullmatch(entry.name)]:
        with suppress(OSError):  # locked, removed by somebody else, or not ours
            descriptor = os.open(draft, os.O_RDONLY)
            try:
                lock(descriptor)
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
            finally:
                os.close(descriptor)


def _sync(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (*NO_ROOM, errno.EIO):  # any other: it cannot be asked for here
            raise
    finally:
        os.close(descriptor)


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _swap(draft: Path, path: Path, aside: Path) -> None:
    """Put a draft in the place of a folder."""
    if path.exists():
        path.rename(aside)
    try:
        draft.rename(path)
    finally:
        _take_back(aside, path)


def _take_back(aside: Path, path: Path) -> None:
    """Put back the folder that was to be replaced where nothing has taken its place, else let it go."""
    if aside.is_dir() and not path.exists():
        aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def _move_files(draft: Path, path: Path, outdated: re.Pattern[str]) -> None:
    """Move the files of a draft into a folder, and remove outdated ones."""
    old = [name for name in _names(path) - _names(draft) if outdated.fullmatch(name)]
    for entry in draft.iterdir():
        target = path / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    for name in old:
        (path / name).unlink()
