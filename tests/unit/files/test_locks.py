"""The lock of a folder: one process has it, and it ends with that process."""

import os

from lit_posttrain.files.locks import FolderLock


def test_one_has_it_until_it_lets_go(tmp_path):
    first, second = FolderLock(tmp_path / "new"), FolderLock(tmp_path / "new")
    assert first.take()
    assert not second.take()
    assert first.holder().startswith(f"process {os.getpid()} on ")
    first.release()
    assert second.take()
    second.release()


def test_it_ends_with_the_process_that_is_killed_though_its_workers_live_on(tmp_path):
    told, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = FolderLock(tmp_path)
        taken = lock.take()
        worker = os.fork()  # as of a dataloader
        if worker == 0:
            os.read(told, 1)
            os._exit(0)
        os.write(tell, bytes([taken]))
        os.kill(os.getpid(), 9)
    assert os.waitpid(holder, 0)[1] == 9
    lock = FolderLock(tmp_path)
    assert lock.take()
    assert lock.holder() != f"process {holder}"
    lock.release()
    os.close(tell)
