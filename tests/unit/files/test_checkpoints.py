"""Checkpoints: killed while they are written, on a full disk, damaged, and not on this machine."""

import os
import signal
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_posttrain import AtomicCheckpointIO
from lit_posttrain.files import checkpoints
from lit_posttrain.files.checkpoints import DamagedCheckpointError, check_whole, read_checkpoint
from lit_posttrain.files.whole import NoRoomError
from tests.small_files import files_of_at_most


def checkpoint(step: int, size: int = 1000) -> dict:
    return {"global_step": step, "state_dict": {"weight": torch.full((size,), float(step)), "bias": torch.ones(8)}}


def equal(first: dict, second: dict) -> bool:
    weights = zip(first["state_dict"].values(), second["state_dict"].values(), strict=True)
    return first["global_step"] == second["global_step"] and all(torch.equal(a, b) for a, b in weights)


def test_a_checkpoint_comes_back(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        io.save_checkpoint(checkpoint(step), path)
    assert equal(io.load_checkpoint(path, weights_only=True), checkpoint(2))
    assert equal(read_checkpoint(path), checkpoint(2))
    io.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(path)


def test_a_plain_trainer_uses_it(tmp_path, monkeypatch):
    """And the temporary folder is not touched, which may be small or another file system."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    settings |= {"limit_train_batches": 2, "limit_val_batches": 0, "enable_model_summary": False}
    trainer = Trainer(**settings, max_steps=2, plugins=[AtomicCheckpointIO()])
    trainer.fit(BoringModel())
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert read_checkpoint(path)["global_step"] == 2
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 4] + bytes(len(data) // 4) + data[len(data) // 2 :])
    with pytest.raises(DamagedCheckpointError):
        Trainer(**settings, max_steps=4, plugins=[AtomicCheckpointIO()]).fit(BoringModel(), ckpt_path=path)


def size_of(path: Path) -> int:
    """Its bytes; -1 where it was renamed meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def test_killed_at_any_moment_there_is_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint(checkpoint(0, 200_000), path)
    drafts = 0
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            for step in range(1, 100_000):
                io.save_checkpoint(checkpoint(step, 200_000), path)
            os._exit(0)
        enough = attempt * 60_000  # bytes of the draft, whose whole is larger
        while not any(size_of(draft) > enough for draft in set(tmp_path.iterdir()) - {path}):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        read_checkpoint(path)
        drafts += len(list(tmp_path.iterdir())) - 1
    assert drafts > 0  # some were killed while they wrote
    io.save_checkpoint(checkpoint(1), path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    with files_of_at_most(50_000), pytest.raises(NoRoomError, match=rf"`{path}` could not be written"):
        io.save_checkpoint(checkpoint(2, 100_000), path)
    assert list(tmp_path.iterdir()) == [path]
    assert equal(read_checkpoint(path), checkpoint(1))


# Damage.


@pytest.mark.parametrize("io", [AtomicCheckpointIO(), TorchCheckpointIO()], ids=["sealed", "stock"])
def test_no_damage_is_restored(tmp_path, io):
    """Zeros or another byte anywhere, and a file that was cut off anywhere: refused, or nothing that counts."""
    path, want = tmp_path / "last.ckpt", checkpoint(7, 300)
    io.save_checkpoint(want, path)
    whole = path.read_bytes()
    # stock checkpoints have checksums of their tensors, and none of the table of contents at the end
    end = len(whole) if isinstance(io, AtomicCheckpointIO) else whole.index(b"PK\1\2")
    refused = 0
    for start in range(0, end, 37):
        for damaged in (
            whole[:start] + bytes(16) + whole[start + 16 :],
            whole[:start] + bytes([whole[start] ^ 90]) + whole[start + 1 :],
            whole[:start],
        ):
            path.write_bytes(damaged)
            try:
                assert equal(AtomicCheckpointIO().load_checkpoint(path, weights_only=True), want)
            except DamagedCheckpointError:
                refused += 1
    assert refused > 60


def test_the_newest_whole_one_is_offered(tmp_path):
    io = AtomicCheckpointIO()
    for step, name in enumerate(("best", "older", "middle", "last")):
        io.save_checkpoint(checkpoint(step), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (step, step))
    for name in ("last", "middle"):
        path = tmp_path / f"{name}.ckpt"
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    (tmp_path / "notes.ckpt").write_text("no checkpoint")
    said = rf"`{tmp_path}/last.ckpt` is damaged: .* `{tmp_path}/older.ckpt`, of step 1: give that as `ckpt_path`"
    for read in (read_checkpoint, io.load_checkpoint, check_whole):
        with pytest.raises(DamagedCheckpointError, match=said):
            read(tmp_path / "last.ckpt")
    for name in ("best", "older"):
        (tmp_path / f"{name}.ckpt").unlink()
    with pytest.raises(DamagedCheckpointError, match="There is no other whole one beside it"):
        check_whole(tmp_path / "last.ckpt")


def test_what_is_no_checkpoint_is_not_called_damaged(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save({"global_step": tmp_path}, tmp_path / "unsafe.pt")
    (tmp_path / "text.ckpt").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("a", "b")
    for name in ("other.pt", "unsafe.pt", "text.ckpt", "archive.zip"):
        with pytest.raises(ValueError, match=f"`{tmp_path}/{name}` is no checkpoint that Lightning wrote"):
            read_checkpoint(tmp_path / name)


def test_a_file_is_read_for_damage_once(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    summed, crc32 = [], checkpoints._crc32
    monkeypatch.setattr(checkpoints, "_crc32", lambda *file: (summed.append(file), crc32(*file))[1])
    for _ in range(2):
        read_checkpoint(path)
        io.load_checkpoint(path)
    assert len(summed) == 1
    io.save_checkpoint(checkpoint(2), path)
    read_checkpoint(path)
    assert len(summed) == 2


def test_what_is_not_on_this_machine_goes_the_stock_way(monkeypatch):
    io, seen = AtomicCheckpointIO(), []
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda self, *given: seen.append(given[1]))
    monkeypatch.setattr(TorchCheckpointIO, "load_checkpoint", lambda self, *given: seen.append(given[0]))
    io.save_checkpoint({}, "s3://bucket/last.ckpt")
    io.load_checkpoint("s3://bucket/last.ckpt")
    assert seen == ["s3://bucket/last.ckpt"] * 2
    monkeypatch.undo()
    io.save_checkpoint(checkpoint(3), "memory://last.ckpt")
    assert equal(io.load_checkpoint("memory://last.ckpt"), checkpoint(3))
