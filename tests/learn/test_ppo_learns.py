"""Seeded runs of PPO on the embedded task, policy and critic: pytest -m learn."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.batching import TrainingBatch
from lit_posttrain.functional import correlation, explained_variance
from lit_posttrain.functional.random import sample_keys
from lit_posttrain.models.tokenizers import pad_token_id
from lit_posttrain.rewards.gridworld import MOVES_PER_GOAL, step_rewards
from lit_posttrain.rollout.engine import sample_completions
from lit_posttrain.rollout.options import Sampling
from lit_posttrain.tasks.grid import Grid
from lit_posttrain.tasks.gridworld_data import prompt_rows
from lit_posttrain.tasks.gridworld_text import cell_name
from tests.learn.training_run import run

pytestmark = pytest.mark.learn

SAMPLING = Sampling(max_new_tokens=32)
CONTINUATIONS = 64


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_on_the_grid(tmp_path, seed):
    summary = run(tmp_path, "algo=ppo", "logger=csv", f"seed={seed}")
    metrics = summary["metrics"]
    sampled, success = metrics["val/optimal_sampled"], metrics["val/success"]
    assert sampled["last"] >= 0.75
    assert sampled["last"] - sampled["first"] >= 0.2
    assert success["last"] >= 0.93


class Trained:
    """Policy and critic at the end of a run."""

    def __init__(self, folder: Path) -> None:
        cfg = OmegaConf.load(folder / "config.yaml")
        self.module = instantiate(cfg.algo, _convert_="all")
        self.module.configure_model()
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        self.module.load_state_dict(checkpoint["state_dict"])
        self.module.eval()
        self.tokenizer = self.module.tokenizer

    def sample(self, prompts: list[list[int]], num_samples: int, seed: int):
        model, tokenizer = self.module.language_model, self.tokenizer
        return sample_completions(
            model,
            prompts,
            sampling=SAMPLING,
            num_samples=num_samples,
            keys=sample_keys(torch.arange(len(prompts)), num_samples=num_samples, seed=seed),
            eos_ids=[tokenizer.eos_token_id],
            pad_id=pad_token_id(tokenizer),
        )

    def visited(self, texts: list[str]) -> "Visited":
        """A completion of each prompt, and what the critic says before each of its tokens."""
        prompts = [self.tokenizer(text)["input_ids"] for text in texts]
        tokens, _ = self.sample(prompts, 1, seed=1)
        mask = tokens.completion_mask
        with torch.no_grad():
            values = self.module.value_model(TrainingBatch(**vars(tokens), loss_mask=mask))
        completions = [ids[m].tolist() for ids, m in zip(tokens.completion_ids, mask, strict=True)]
        return Visited(self.tokenizer, texts, prompts, completions, values)

    def returns(self, visited: "Visited", places: list[tuple[int, int]]) -> Tensor:
        """V^pi of prefixes, places (row, t): the mean return of 64 continuations, (len(places),)."""
        prefixes = [visited.prompts[row] + visited.completions[row][:t] for row, t in places]
        following, truncated = self.sample(prefixes, CONTINUATIONS, seed=2)
        returns = []
        for index, cut in enumerate(truncated.tolist()):
            row, t = places[index // CONTINUATIONS]
            rest = following.completion_ids[index, following.completion_mask[index]].tolist()
            ids = visited.completions[row][:t] + rest
            completion = self.tokenizer.decode(ids, skip_special_tokens=True)
            (rewards,) = step_rewards([visited.texts[row]], [completion], [cut], [ids])
            returns.append(sum(rewards[t:]) - float(cut))  # a missing EOS costs 1
        return torch.tensor(returns).view(-1, CONTINUATIONS).mean(1)


@dataclass
class Visited:
    """Completions of prompts, as tokens, and the values before their tokens, (B, C)."""

    tokenizer: PreTrainedTokenizerBase
    texts: list[str]
    prompts: list[list[int]]
    completions: list[list[int]]
    values: Tensor

    def places(self) -> list[tuple[int, int]]:
        """Every prefix, as the row of its prompt and the number of its tokens."""
        return [(row, t) for row, ids in enumerate(self.completions) for t in range(len(ids))]

    def legal(self) -> dict[tuple[int, int], int]:
        """Of the prefixes that are legal paths, the moves from there to the goal."""
        moves = {}
        for row, text in enumerate(self.texts):
            grid = Grid.from_prompt(text)
            cell = grid.start
            for t, token in enumerate(self.completions[row]):
                moves[row, t] = grid.distances()[cell]
                entered = {cell_name(near): near for near in grid.neighbors(cell)}
                word = self.tokenizer.decode(token)
                if word not in entered:
                    break
                cell = entered[word]
        return moves

    def values_at(self, places: Iterable[tuple[int, int]]) -> Tensor:
        """Those of some prefixes, (len(places),)."""
        return torch.stack([self.values[place] for place in places])


def grids(number: int, split: str, **sizes: int) -> list[str]:
    return [row["prompt"] for row in prompt_rows(number, split=split, seed=0, **sizes)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_are_close_to_those_of_dynamic_programming(tmp_path, seed):
    summary = run(tmp_path, "algo=ppo", "logger=csv", "reward=gridworld_steps", f"seed={seed}")
    assert summary["metrics"]["value/explained_var"]["last"] > 0
    visited = Trained(tmp_path / "run").visited(grids(2048, "validation"))
    moves = visited.legal()
    want = 1 - torch.tensor(list(moves.values())) / MOVES_PER_GOAL
    assert correlation(visited.values_at(moves), want).item() >= 0.75


def explained_by_the_critic_of_a_frozen_policy(tmp_path, *options: str, steps: int, texts: list[str], legal: bool):
    """Explained variance of V^pi, at the prefixes that the policy visits from these prompts, all or the legal ones."""
    length = [
        f"algo.critic.warmup_steps={steps}",
        f"trainer.max_steps={steps}",
        f"scheduler.num_decay_steps={steps // 2}",
    ]
    fit = ["optim.betas=[0.9,0.98]", "algo.critic.clip=null", "val_every_steps=null"]
    summary = run(tmp_path, "algo=ppo", "logger=csv", "reward=gridworld_steps", *length, *fit, *options)
    assert summary["metrics"]["val/success"]["last"] == summary["metrics"]["val/success"]["first"]
    trained = Trained(tmp_path / "run")
    visited = trained.visited(texts)
    places = list(visited.legal()) if legal else visited.places()
    got, want = visited.values_at(places), trained.returns(visited, places)
    return explained_variance(got, want, torch.ones(len(got), dtype=torch.bool)).item()


def test_the_critic_of_a_frozen_policy_finds_the_values_of_its_prompts(tmp_path):
    """On 5 x 5: of 64 prompts, at the legal prefixes that the policy visits from them, drawn anew."""
    prompts = ["data.path.num_prompts=64", "data.batch_size=64", "data.path.num_validation=64", "algo.group_size=8"]
    explained = explained_by_the_critic_of_a_frozen_policy(
        tmp_path, *prompts, "algo.critic.lr=2e-3", steps=800, texts=grids(64, "train") * 4, legal=True
    )
    assert explained >= 0.9


def test_the_critic_of_a_frozen_policy_finds_values_on_grids_that_were_held_back(tmp_path):
    """On 3 x 3, at all prefixes: where the policy will go wrong there, two layers can know of grids not seen."""
    sizes = {"width": 3, "height": 3, "max_walls": 2}
    options = [f"data.path.{name}={n}" for name, n in {**sizes, "num_prompts": 1000, "num_validation": 100}.items()]
    explained = explained_by_the_critic_of_a_frozen_policy(
        tmp_path, *options, "algo.critic.lr=3e-3", steps=400, texts=grids(100, "validation", **sizes), legal=False
    )
    assert explained >= 0.9
