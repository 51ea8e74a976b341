"""What Weights & Biases wrote offline: `run-<id>.wandb` is LevelDB's log format around protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER, BLOCK, CHUNK_HEADER = 7, 32768, struct.Struct("<IHB")  # checksum, length, kind
ZERO, FULL, FIRST, MIDDLE, LAST = range(5)


@dataclass
class OfflineRun:
    """One process' part of a run."""

    folder: Path
    id: str = ""
    group: str = ""
    project: str = ""
    job_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    exit_code: int | None = None

    def metrics(self) -> dict[int, dict[str, float]]:
        """What was logged for each value of the step axis; a value that was logged twice must be the same."""
        steps: dict[int, dict[str, float]] = {}
        for row in self.history:
            known = steps.setdefault(row["trainer/global_step"], {})
            for name, value in row.items():
                if name[0] == "_" or name in ("trainer/global_step", "epoch") or isinstance(value, dict):
                    continue
                assert known.get(name, value) == value, (name, row)
                known[name] = value
        return steps

    def steps(self, key: str) -> list[int]:
        """Where on the step axis something was logged."""
        return [row["trainer/global_step"] for row in self.history if key in row]

    def table(self, key: str) -> list[list[dict[str, Any]]]:
        """The rows of each increment of a table."""
        increments = []
        for row in self.history:
            if key in row:
                assert row[key]["_type"] == "incremental-table-file"
                table = json.loads((self.folder / "files" / row[key]["path"]).read_text())
                increments.append([dict(zip(table["columns"], values, strict=True)) for values in table["data"]])
        return increments


def read_runs(folder: Path, *, wait_s: float = 20.0) -> list[OfflineRun]:
    """The offline runs in a job's folder, oldest first; W&B's own process writes their ends a moment after `finish`."""
    deadline = time.monotonic() + wait_s
    while True:
        runs = [_read(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
        if all(run.exit_code is not None for run in runs) or time.monotonic() > deadline:
            return runs
        time.sleep(0.05)


def _read(file: Path) -> OfflineRun:
    run = OfflineRun(file.parent)
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.project = record.run.run_id, record.run.project
            run.group, run.job_type = record.run.run_group, record.run.job_type
            _update(run.config, record.run.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            run.history.append(row)
        elif kind == "artifact":
            run.artifacts += [Path(entry.local_path) for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(file: Path) -> Iterator[Record]:
    """Every record, in order; a file that a kill cut off ends early."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = FILE_HEADER, b""
    while position + CHUNK_HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK_HEADER.size:  # too little of the block for a chunk
            position += left
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(data, position)
        if kind == ZERO:
            return
        position += CHUNK_HEADER.size
        parts += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *path, last = item.nested_key or [item.key]
        inner = values
        for key in path:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[last] = json.loads(item.value_json)
