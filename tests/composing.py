"""The configuration without a command line: what Hydra fills in at run time is given here."""

from importlib.resources import files
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

CONF = Path(str(files("lit_posttrain.conf")))


def compose_train(*overrides: str, run_dir: Path | str = "/tmp/x") -> DictConfig:
    """`train` with these overrides."""
    runtime = [f"run_dir={run_dir}", "names.algo=algo", "names.model=model", "names.data=data"]
    with initialize_config_module("lit_posttrain.conf", version_base="1.3"):
        return compose("train", [*runtime, *overrides])


def choices() -> list[tuple[str, str]]:
    """Group and option of every YAML below the primary ones."""
    paths = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
    # a base is a part of others, and no choice
    return [
        (path.parent.as_posix(), path.stem) for path in paths if path.parent != Path() and path.parent.name != "base"
    ]
