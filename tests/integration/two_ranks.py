"""Starts a module as both ranks of a run of two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_two_ranks(module: str, folder: Path, *, timeout_s: float = 240) -> None:
    """Run `python -m module folder` as ranks 0 and 1, and fail with their output where one fails or hangs."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = []
    for rank in range(2):
        with (folder / f"output-{rank}").open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(folder)],
                cwd=ROOT,
                env={**os.environ, **shared, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        processes.append(process)
    try:
        codes = [process.wait(timeout=timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join((folder / f"output-{rank}").read_text()[-3000:] for rank in range(2))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
