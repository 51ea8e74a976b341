"""A seeded reward model of the embedded task, judged by its summary and by what it says of paths: pytest -m learn."""

from random import Random

import pytest

from lit_posttrain.rewards.model import LearnedReward
from lit_posttrain.tasks.gridworld import Grid, PromptGenerator, noisy_walk, path_text
from tests.learn.training_run import run

pytestmark = pytest.mark.learn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairs_of_paths_are_ranked(tmp_path, seed):
    summary = run(tmp_path, "algo=reward_model", "model=tiny", f"seed={seed}", "logger=csv")
    accuracy = summary["metrics"]["val/accuracy"]
    assert accuracy["last"] >= 0.95
    assert stopping_is_worse(str(tmp_path / "run" / "export")) >= 0.99


def stopping_is_worse(export: str) -> float:
    """Share of tasks in which a shortest path outranks no move at all."""
    tasks = [row["prompt"] for row in PromptGenerator(num_prompts=1, num_validation=256)("validation")]
    shortest = [path_text(noisy_walk(Grid.from_prompt(task), Random(0), noise=0.0, max_moves=25)) for task in tasks]
    reward = LearnedReward(export, device="cpu")
    walked, stopped = reward.learned(tasks, shortest), reward.learned(tasks, [""] * len(tasks))
    return sum(a > b for a, b in zip(walked, stopped, strict=True)) / len(tasks)
