"""Files and folders that are there whole or not at all, when writing fails and when the process is killed."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_posttrain.files import whole
from lit_posttrain.files.whole import NoRoomError, append_lines, room_for, whole_file, whole_folder, write_json
from tests.small_files import files_of_at_most

WEIGHTS = re.compile(r"model.*\.safetensors|adapter_config\.json")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed(write) -> None:
    """Call a function in a child that is killed inside; the parent is left with what is on the disk."""
    child = os.fork()
    if child == 0:
        try:
            write()
        finally:
            os._exit(1)
    os.waitpid(child, 0)


# Files.


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    with whole_file(path) as file:
        file.write("other")
        file.flush()
        assert path.read_text() == '{\n  "a": 1\n}\n'
    assert path.read_text() == "other"
    assert names(path.parent) == {"file.json"}


def test_a_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_json(tmp_path / "file.json", {})
    with whole_folder(tmp_path / "folder", outdated=WEIGHTS):
        pass
    (tmp_path / "usual_folder").mkdir()
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert (modes["file.json"], modes["folder"]) == (modes["usual"], modes["usual_folder"])


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail():
        with whole_file(path) as file:
            file.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (path.read_text(), names(tmp_path)) == ("old", {"file.txt"})


def test_the_draft_of_a_killed_process_goes_at_the_next_write_and_that_of_a_living_one_stays(tmp_path):
    path = tmp_path / "last.ckpt"
    path.write_text("old")

    def kill():
        with whole_file(path) as file:
            file.write("half")
            file.flush()
            os.kill(os.getpid(), 9)

    killed(kill)
    assert path.read_text() == "old"
    (stale,) = names(tmp_path) - {"last.ckpt"}
    mine = tmp_path / ".mine.draft"  # a user's own
    mine.touch()
    with whole_file(tmp_path / "best.ckpt") as file:
        assert stale not in names(tmp_path)
        write_json(path, {})
        file.write("still there")
    assert (tmp_path / "best.ckpt").read_text() == "still there"
    assert names(tmp_path) == {"last.ckpt", "best.ckpt", ".mine.draft"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_with_the_file_and_the_way_out(tmp_path, number):
    said = rf"`{tmp_path}/f` could not be written: .* unchanged\. Make room, or write to another folder"
    with pytest.raises(NoRoomError, match=said) as caught, room_for(tmp_path / "f"):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


def test_errors_of_other_kinds_are_left_alone(tmp_path):
    with pytest.raises(PermissionError, match="nope"), room_for(tmp_path / "f"):
        raise PermissionError(errno.EACCES, "nope")


def after_a_full_disk(path: Path):
    try:
        raise OSError(errno.ENOSPC, "full")
    except OSError:
        with room_for(path):
            raise KeyError("something else")  # noqa: B904


def test_a_full_disk_that_was_there_before_is_not_the_reason(tmp_path):
    with pytest.raises(KeyError, match="something else"):
        after_a_full_disk(tmp_path / "f")


@pytest.mark.parametrize("kind", ["text", "torch", "safetensors"])
def test_writing_more_than_fits(tmp_path, kind):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with whole_file(path, binary=kind == "torch") as file:
            if kind == "torch":
                torch.save({"a": torch.zeros(1000), "b": torch.zeros(100_000)}, file)
            file.write("x" * 100_000)

    def write_folder():
        with whole_folder(tmp_path / "file", outdated=WEIGHTS) as draft:
            save_file({"a": torch.zeros(100_000)}, draft / "model.safetensors")

    if kind == "safetensors":
        path.unlink()
        path.mkdir()
        (path / "model.safetensors").write_text("old")
    with files_of_at_most(50_000), pytest.raises(NoRoomError, match=f"`{path}` could not be written: it would be too"):
        write_folder() if kind == "safetensors" else write()
    assert names(tmp_path) == {"file"}
    assert (path / "model.safetensors" if kind == "safetensors" else path).read_text() == "old"


def test_lines_are_added_all_or_none(tmp_path):
    path = tmp_path / "new" / "lines"
    append_lines(path, ["a", "é"])
    append_lines(path, ["b"])
    with files_of_at_most(20), pytest.raises(NoRoomError):
        append_lines(path, ["c", "d" * 40])
    assert path.read_text() == "a\né\nb\n"


# Folders.


def write_folder(path: Path, **files: str) -> None:
    with whole_folder(path, outdated=WEIGHTS) as draft:
        for name, content in files.items():
            (draft / f"{name}.safetensors").write_text(content)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path / "export", model_1="old", model_2="old")
    with whole_folder(tmp_path / "export", outdated=WEIGHTS) as draft:
        (draft / "model.safetensors").write_text("new")
        assert names(tmp_path / "export") == {"model_1.safetensors", "model_2.safetensors"}
    assert names(tmp_path / "export") == {"model.safetensors"}
    assert names(tmp_path) == {"export"}


def test_what_fails_leaves_the_old_folder(tmp_path):
    write_folder(tmp_path / "export", model="old")

    def fail():
        with whole_folder(tmp_path / "export", outdated=WEIGHTS) as draft:
            (draft / "model.safetensors").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "export" / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == {"export"}


def test_killed_between_the_two_renames(tmp_path, monkeypatch):
    write_folder(tmp_path / "export", model="old")

    def kill():
        rename = Path.rename
        Path.rename = lambda self, target: (rename(self, target), os.kill(os.getpid(), 9))
        write_folder(tmp_path / "export", model="new")

    killed(kill)
    assert not (tmp_path / "export").exists()

    def fail():
        with whole_folder(tmp_path / "export", outdated=WEIGHTS):
            assert (tmp_path / "export" / "model.safetensors").read_text() == "old"  # it was put back
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert names(tmp_path) == {"export"}


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    write_folder(tmp_path / "export", model="old")
    rename = Path.rename

    def refused(self, target):
        if self.name.endswith(".draft"):
            raise OSError(errno.EIO, "broken")
        rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="broken"):
        write_folder(tmp_path / "export", model="new")
    assert (tmp_path / "export" / "model.safetensors").read_text() == "old"
    assert names(tmp_path) == {"export"}


def test_files_of_somebody_else_stay(tmp_path, monkeypatch):
    write_folder(tmp_path / "export", model_1="old", model="old")
    (tmp_path / "export" / "notes.txt").write_text("mine")
    (tmp_path / "export" / "mine").mkdir()
    write_folder(tmp_path / "export", model="new")
    assert names(tmp_path / "export") == {"model.safetensors", "notes.txt", "mine"}
    assert (tmp_path / "export" / "model.safetensors").read_text() == "new"

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder(Path(), model="new")
    write_folder(Path(), model="newer")  # the working directory is not moved away
    assert names(tmp_path / "here") == names(Path()) == {"model.safetensors"}
    assert Path("model.safetensors").read_text() == "newer"
    assert names(tmp_path) == {"export", "here"}


def test_a_folder_beside_which_nothing_can_be_written(tmp_path, monkeypatch):
    write_folder(tmp_path / "export", model_1="old")
    places, new_draft = [], whole._new_draft

    def watched(place, *arguments, **options):
        places.append(place)
        return new_draft(place, *arguments, **options)

    monkeypatch.setattr(whole, "_new_draft", watched)
    monkeypatch.setattr(whole.os, "access", lambda path, mode: path != tmp_path)
    write_folder(tmp_path / "export", model="new")
    assert places == [tmp_path / "export"]
    assert names(tmp_path / "export") == {"model.safetensors"}


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "export").touch()
    with pytest.raises(NotADirectoryError, match="is a file, and a folder is to be written there"):
        write_folder(tmp_path / "export", model="new")


def test_what_is_written_has_reached_the_disk(tmp_path, monkeypatch):
    """Before it takes its place, and then the name that it has there."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        whole.os, "fsync", lambda d: (done.append(os.path.basename(os.readlink(f"/proc/self/fd/{d}"))), sync(d))
    )
    monkeypatch.setattr(whole.os, "replace", lambda *paths: (done.append("replaced"), replace(*paths)))
    write_json(tmp_path / "file", {})
    draft, *rest = done
    assert draft.startswith(".file.")
    assert rest == ["replaced", tmp_path.name]
