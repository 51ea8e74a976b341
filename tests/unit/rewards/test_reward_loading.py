"""Reward functions by path: from modules, from files, and what goes wrong."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_posttrain.rewards import load_rewards
from lit_posttrain.rewards.gridworld import path_reward
from lit_posttrain.rewards.loading import load_function

SOURCE = """
from dataclasses import dataclass
from math import sqrt

LIMIT = 3

@dataclass
class Verdict:
    score: float

def length(completions):
    return [float(len(text)) for text in completions]

def lengthy(completions):
    return [Verdict(len(text) > LIMIT).score for text in completions]

def _hidden(completions):
    return length(completions)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a file of rewards; what is loaded in it is forgotten."""
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_function_of_a_module_is_that_function() -> None:
    assert load_function("lit_posttrain.rewards.gridworld:path_reward") is path_reward


def test_functions_of_a_file_relative_to_the_working_directory(folder: Path) -> None:
    rewards = load_rewards(["my_rewards.py:length", "./my_rewards.py:lengthy"], weights=[0.5, 2.0])
    scores = rewards(["?", "?"], ["ab", "abcd"], {})
    torch.testing.assert_close(scores, torch.tensor([[2.0, 0.0], [4.0, 1.0]]))
    torch.testing.assert_close(rewards.total(scores), torch.tensor([1.0, 4.0]))
    assert load_rewards("my_rewards.py:length").names == ["length"]


def test_file_is_run_once_and_can_be_pickled(folder: Path) -> None:
    (folder / "counted.py").write_text(
        "from pathlib import Path\nwith Path('runs').open('a') as file:\n    file.write('x')\n"
        "class Reward:\n    def __call__(self, completions):\n        return [1.0] * len(completions)\n"
        "reward = Reward()\n"
    )
    function = load_function("counted.py:reward")
    assert load_function(f"{folder}/counted.py:reward") is function
    assert (folder / "runs").read_text() == "x"
    assert pickle.loads(pickle.dumps(function))(["a"]) == [1.0]


def test_file_does_not_take_the_place_of_a_module(folder: Path) -> None:
    (folder / "colorsys.py").write_text("def reward(completions):\n    return [2.0] * len(completions)\n")
    (folder / "other").mkdir()
    (folder / "other" / "colorsys.py").write_text("def reward(completions):\n    return [3.0] * len(completions)\n")
    assert load_function("colorsys.py:reward")(["a"]) == [2.0]
    assert load_function("other/colorsys.py:reward")(["a"]) == [3.0]
    assert load_function("colorsys:rgb_to_hsv")(1, 1, 1) == (0.0, 0.0, 1)


@pytest.mark.parametrize("path", ["my_rewards.py", "length", ":length", "my_rewards.py:", "", None, 3])
def test_path_of_another_form_is_refused(folder: Path, path: str) -> None:
    with pytest.raises(ValueError, match=f"must be 'package.module:function' or 'file.py:function', got {path!r}"):
        load_rewards(path)


def test_missing_file_names_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no {folder}/your_rewards.py"):
        load_function("your_rewards.py:length")


def test_missing_module_says_the_way_out(folder: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"module `no_such_package.rewards` must be importable .*PYTHONPATH"):
        load_function("no_such_package.rewards:length")
    with pytest.raises(ModuleNotFoundError, match=r"write 'my_rewards.py:length'"):
        load_function("my_rewards:length")
    with pytest.raises(ModuleNotFoundError, match=r"`math.rewards` must be importable"):
        load_function("math.rewards:length")


def test_missing_function_lists_the_public_ones_nearest_first(folder: Path) -> None:
    with pytest.raises(ImportError, match=r"must hold `lenght` .*there are `length`, `lengthy`\."):
        load_function("my_rewards.py:lenght")
    with pytest.raises(ImportError, match=r"must hold `load_reward` .*there are `load_rewards`\."):
        load_function("lit_posttrain.rewards:load_reward")
    (folder / "empty.py").write_text("")
    with pytest.raises(ImportError, match="there is no public function in it"):
        load_function("empty.py:length")


def test_name_of_no_callable_is_refused(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"'my_rewards.py:LIMIT' must name a callable, got int"):
        load_function("my_rewards.py:LIMIT")


@pytest.mark.parametrize(
    ("source", "cause"),
    [("1 / 0", ZeroDivisionError), ("def broken(:", SyntaxError), ("import no_such_package", ModuleNotFoundError)],
)
def test_error_while_importing_is_chained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, cause: type[Exception]
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    (folder / "failing_rewards.py").write_text(source)
    for path in ("failing_rewards.py:length", "failing_rewards:length"):
        with pytest.raises(ImportError, match=f"Importing '{path}' failed with {cause.__name__}") as caught:
            load_function(path)
        assert isinstance(caught.value.__cause__, cause)
        assert not isinstance(caught.value, ModuleNotFoundError), "the module itself is there"


def test_file_that_failed_is_run_again(folder: Path) -> None:
    (folder / "repaired.py").write_text("1 / 0")
    with pytest.raises(ImportError, match="ZeroDivisionError"):
        load_function("repaired.py:length")
    (folder / "repaired.py").write_text(SOURCE + "# repaired")
    assert load_function("repaired.py:length")(["abc"]) == [3.0]


def test_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one reward function"):
        load_rewards([])
