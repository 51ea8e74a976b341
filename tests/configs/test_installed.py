"""What a wheel brings: the command, its configuration and the built-in model, in a folder that holds nothing."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a run needs to be over at once.
SHORT = ["trainer.max_steps=1", "data.path.num_prompts=4", "data.path.num_validation=2", "algo.group_size=2"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which the wheel was installed and this checkout is not found first."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", ".git", "outputs", "multirun", "build")
    for name in ("lit_posttrain", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # not installed by pip, which would take this checkout out of the environment for it
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return {**os.environ, "PYTHONPATH": str(folder / "installed"), "OMP_NUM_THREADS": "1"}


def call(installed: dict[str, str], folder: Path, *arguments: str) -> str:
    """Run the console script that the wheel declares."""
    (declared,) = Path(installed["PYTHONPATH"]).glob("*.dist-info/entry_points.txt")
    assert "lit-posttrain = lit_posttrain.app.cli:command" in declared.read_text()
    code = "import sys; sys.argv[0] = 'lit-posttrain'; from lit_posttrain.app.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=installed).stdout


def test_the_command_answers_in_an_empty_folder(installed, tmp_path):
    assert "_target_: lit_posttrain.algos.rloo.RLOO" in call(installed, tmp_path, "algo=rloo", "--cfg", "job")
    assert list(tmp_path.iterdir()) == []


def test_the_built_in_model_comes_along(installed, tmp_path):
    call(installed, tmp_path, *SHORT, "logger=csv", "hydra.run.dir=run")
    assert (tmp_path / "run" / "summary.json").is_file()
    code = "import lit_posttrain; print(lit_posttrain.__file__)"
    where = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=installed)
    assert installed["PYTHONPATH"] in where.stdout
