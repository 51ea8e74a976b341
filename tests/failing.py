"""Runs that cannot work, what they say, and what they leave."""

from pathlib import Path

import pytest

from lit_posttrain.app.errors import name_options, words
from lit_posttrain.app.run import run
from tests.composing import compose_train

SMALL = [
    "logger=csv",
    "trainer.max_steps=1",
    "+trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "algo.group_size=2",
    "algo.validation.num_samples=1",
    "algo.sampling.max_new_tokens=4",
]
GRID = [*SMALL, "data.path.num_prompts=2", "data.path.num_validation=2"]


def failure(folder: Path, *overrides: str) -> str:
    """Run a configuration that cannot work; what a user is told, with nothing left that looks like a result."""
    folder.mkdir(exist_ok=True)
    cfg = compose_train(*overrides, run_dir=folder)
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- the kind differs, the words are what counts
        run(cfg)
    assert {path.name for path in folder.iterdir()} <= {"config.yaml", "parts.json", "metrics.csv", "checkpoints"}
    name_options(caught.value, cfg)  # as the command line does
    return words(caught.value)


def assert_says(message: str, *parts: str) -> None:
    """Every part is in the message."""
    assert [part for part in parts if part not in message] == [], message
