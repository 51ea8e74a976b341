"""A run of the command line, judged by what it leaves."""

import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *overrides: str) -> dict:
    """Run train.py in a folder of its own, `run`, and return the summary."""
    subprocess.run(command(f"hydra.run.dir={tmp_path}/run", *overrides), cwd=tmp_path, check=True)
    return json.loads((tmp_path / "run" / "summary.json").read_text())


def command(*arguments: str) -> list[str]:
    """train.py with these arguments."""
    return [sys.executable, str(ROOT / "train.py"), *arguments]


def stages(folder: Path) -> dict[str, dict]:
    """What a pipeline says of its stages, by name."""
    return {row["stage"]: row for row in json.loads((folder / "pipeline.json").read_text())["stages"]}


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
