"""A run of the command line, judged by its own summary."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *overrides: str) -> dict:
    """Run train.py in a folder of its own, `run`, and return the summary."""
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={tmp_path}/run", *overrides]
    subprocess.run(command, cwd=tmp_path, check=True)
    return json.loads((tmp_path / "run" / "summary.json").read_text())
