"""Every command that an example's docstring names runs, and does what the example is there to show."""

import ast
import json
import logging
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lit_posttrain.app import cli

ROOT = Path(__file__).resolve().parents[2]
TINY_GRPO = ROOT / "conf/recipe/tiny_grpo.yaml"
SCRIPTS = sorted((ROOT / "examples").rglob("*.py"))
# What makes a run of the command line short; an example's own numbers are short as they are.
SHORT = {
    "trainer.max_steps": "1",
    "logger": "csv",
    "data.batch_size": "2",
    "data.path.num_prompts": "8",
    "data.path.num_validation": "2",
    "algo.group_size": "2",
    "algo.sampling.max_new_tokens": "4",
}


def commands_of(script: Path) -> list[str]:
    """The indented lines of its docstring that call Python."""
    lines = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")), clean=False) or "").splitlines()
    return [line.strip() for line in lines if line.startswith("    python ")]


COMMANDS = [command for script in SCRIPTS for command in commands_of(script)]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[[str], dict[str, Any]]:
    """Run a command in this process, in a folder that has the examples; the names that the script ends with."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    handlers, level = list(logging.root.handlers), logging.root.level

    def call(command: str) -> dict[str, Any]:
        _, script, *arguments = shlex.split(command)
        if script == "train.py":
            given = {argument.split("=")[0] for argument in arguments}
            short = [f"{name}={value}" for name, value in SHORT.items() if name not in given]
            monkeypatch.setattr(sys, "argv", [script, *arguments, *short, "hydra.run.dir=run"])
            cli.main()
            return {}
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.syspath_prepend(str(Path(script).parent.absolute()))  # as Python does
        return runpy.run_path(script, run_name="__main__")

    yield call
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def the_reward_is_taken(names: dict[str, Any], printed: str) -> None:
    """By the command line."""
    header = Path("run/metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert "reward/right_length" in header


def the_reward_rises(names: dict[str, Any], printed: str) -> None:
    """By far more than the spread of a validation."""
    assert names["after"]["val/reward"] > names["before"]["val/reward"] + 0.05
    assert names["right_length"]([], ["a1 a2", "a1", ""], [False, True, False], [2, 1, 1]) == [1.0, None, 0.5]


def the_database_is_used(names: dict[str, Any], printed: str) -> None:
    """Its rows are what is learnt from and validated, its column reaches reward and score."""
    trainer, module = names["trainer"], names["module"]
    assert trainer.global_step == 8
    assert {"val/arrival", "val/arrival_sampled", "reward/arrival"} <= set(trainer.callback_metrics)
    assert {row["prompt"] for row in module.last_rollout.scored.completions.rows} < {
        row["prompt"] for row in trainer.datamodule.rows
    }


def a_folder_is_left(names: dict[str, Any], printed: str) -> None:
    """With the best weights, after training that was of use."""
    assert Path("dpo_run/export/model.safetensors").is_file()
    assert names["trainer"].global_step == 16
    assert names["best"].best_model_score > 0.5
    assert "parameters in dpo_run/export" in printed


def ranks_are_learnt_from(names: dict[str, Any], printed: str) -> None:
    """Rewards rise, by wins and losses alone."""
    assert names["after"]["val/reward"] > names["before"]["val/reward"] + 0.01
    advantages = names["module"].last_rollout.advantages
    assert advantages.min() >= -1
    assert advantages.max() <= 1


def the_class_is_taken(names: dict[str, Any], printed: str) -> None:
    """From a folder of configuration of its own, with what the recipe of GRPO has."""
    summary = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    config = OmegaConf.load("run/config.yaml")
    assert config.algo._target_ == "examples.my_algorithm.RankReinforce"
    assert config.optim.lr == OmegaConf.load(TINY_GRPO).optim.lr
    assert summary["steps"] == 1


CHECKS = {
    "python train.py --config-dir examples/conf algo=my_algorithm recipe=tiny_grpo": the_class_is_taken,
    "python examples/my_algorithm.py": ranks_are_learnt_from,
    "python train.py reward=custom reward.path=examples/custom_reward.py:right_length": the_reward_is_taken,
    "python examples/custom_reward.py": the_reward_rises,
    "python examples/own_datamodule.py": the_database_is_used,
    "python examples/plain_trainer_dpo.py": a_folder_is_left,
    "python examples/other_hydra_app/app.py": lambda names, printed: printed.index("done: GRPO, 2 steps"),
    "python examples/other_hydra_app/app.py algo=rloo algo.group_size=4 steps=3": lambda names, printed: printed.index(
        "done: RLOO, 3 steps"
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(run, capfd, command):
    names = run(command)
    if command in CHECKS:
        CHECKS[command](names, capfd.readouterr().out)


def test_what_is_checked_is_there():
    assert set(CHECKS) <= set(COMMANDS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_an_example_can_be_copied(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert ast.get_docstring(ast.parse(text))
    if "__main__" in text:
        assert commands_of(script), "the docstring says how to run it"
