"""The real modules with a policy that is a table end at the optimum that theory gives (AT-40, AT-41, AT-42)."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from transformers import get_linear_schedule_with_warmup

from lit_posttrain import GRPO, PPO, RLOO, PromptDataModule, ReinforcePlusPlus, Sampling
from tests.tabular import FIRST_ACTION, PROMPT, make_table, make_tokenizer, probabilities

BETA = 0.5
REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
BEST = 0.24634  # beta log Z
TREE = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)  # of first and second token, reference 1/2
BEST_OF_TREE = 0.553759


def bandit_reward(completion_ids):
    return [REWARDS[ids[0] - FIRST_ACTION].item() for ids in completion_ids]


def tree_reward(completion_ids):
    return [TREE[ids[0] - FIRST_ACTION, ids[1] - FIRST_ACTION].item() for ids in completion_ids]


ALGORITHMS = {
    "ppo": partial(PPO, group_size=32, num_epochs=2, value_lr=0.05, missing_eos="keep", value_clip=None, clip_high=0.3),
    "ppo_shared": partial(PPO, group_size=32, num_epochs=2, value_lr=0.05, missing_eos="keep", critic="shared"),
    "rloo": partial(RLOO, group_size=32, num_epochs=2),
    "reinforce_pp": partial(ReinforcePlusPlus, group_size=32, num_epochs=2),
    "grpo": partial(GRPO, group_size=32, scale="none", num_epochs=2, clip_high=0.3),
}


def train(algorithm, *, reference, reward, length, steps, folder, lr=0.1, **settings):
    module = algorithm(
        make_table(reference),
        reward,
        **{
            "tokenizer": make_tokenizer(len(reference)),
            "sampling": Sampling(max_new_tokens=length),
            "kl_coef": BETA,
            "optimizer": partial(torch.optim.Adam, lr=lr),
            "scheduler": partial(get_linear_schedule_with_warmup, num_warmup_steps=0, num_training_steps=steps),
            **settings,
        },
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=PromptDataModule([{"prompt": "go"}] * 64, batch_size=8))
    return module


def divergence(policy, reference):
    return (policy * (policy / reference).log()).sum()


def objective_of_bandit(policy, beta=BETA):
    return ((policy * REWARDS).sum() - beta * divergence(policy, REFERENCE)).item()


def objective_of_tree(model):
    first = probabilities(model, PROMPT)
    total = -BETA * divergence(first, torch.full((2,), 0.5))
    for action in range(2):
        second = probabilities(model, FIRST_ACTION + action)
        total += first[action] * ((second * TREE[action]).sum() - BETA * divergence(second, torch.full((2,), 0.5)))
    return total.item()


def test_the_numbers_of_theory():  # AT-40, AT-41
    weights = REFERENCE * (REWARDS / BETA).exp()
    optimum = weights / weights.sum()
    assert optimum.tolist() == pytest.approx([0.4515, 0.3322, 0.1833, 0.0331], abs=1e-4)
    assert objective_of_bandit(optimum) == pytest.approx(BEST, abs=1e-5)
    model = make_table([0.5, 0.5])
    with torch.no_grad():
        model.table.weight[FIRST_ACTION:, PROMPT] = torch.tensor([0.692890, 0.307110]).log()
        model.table.weight[FIRST_ACTION:, FIRST_ACTION] = torch.tensor([0.880797, 0.119203]).log()
        model.table.weight[FIRST_ACTION:, FIRST_ACTION + 1] = torch.tensor([0.268941, 0.731059]).log()
    assert objective_of_tree(model) == pytest.approx(BEST_OF_TREE, abs=1e-5)


def test_ppo_ends_at_the_optimum_of_the_bandit(tmp_path):  # AT-40
    module = train(
        ALGORITHMS["ppo"], reference=REFERENCE.tolist(), reward=bandit_reward, length=1, steps=80, folder=tmp_path
    )
    assert objective_of_bandit(probabilities(module.language_model, PROMPT)) == pytest.approx(BEST, rel=0.02)


@pytest.mark.learn
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_end_at_the_optimum_of_the_bandit(algorithm, tmp_path):  # AT-40
    module = train(
        ALGORITHMS[algorithm], reference=REFERENCE.tolist(), reward=bandit_reward, length=1, steps=160, folder=tmp_path
    )
    policy = probabilities(module.language_model, PROMPT)
    assert objective_of_bandit(policy) == pytest.approx(BEST, rel=0.02)
    assert policy.tolist() == pytest.approx([0.4515, 0.3322, 0.1833, 0.0331], abs=0.05)
    assert objective_of_bandit(policy) <= BEST + 1e-5  # AT-47: nobody is above the frontier


@pytest.mark.learn
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_end_at_the_optimum_of_the_tree(algorithm, tmp_path):  # AT-41
    module = train(
        ALGORITHMS[algorithm], reference=[0.5, 0.5], reward=tree_reward, length=2, steps=160, folder=tmp_path
    )
    assert objective_of_tree(module.language_model) == pytest.approx(BEST_OF_TREE, rel=0.02)


@pytest.mark.learn
def test_the_original_kl_of_grpo_ends_elsewhere(
    tmp_path,
):  # AT-40, the anti-test: the k3 term descends another divergence
    module = train(
        partial(ALGORITHMS["grpo"], kl_gradient="k3", num_epochs=1),
        reference=REFERENCE.tolist(),
        reward=bandit_reward,
        length=1,
        steps=160,
        folder=tmp_path,
    )
    policy = probabilities(module.language_model, PROMPT)
    assert policy.tolist() == pytest.approx([0.5945, 0.1712, 0.1384, 0.0960], abs=0.04)
    assert objective_of_bandit(policy) < 0.95 * BEST


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_the_critic_finds_the_values_of_the_tree(critic, tmp_path):  # AT-42 (a): V0 = .375, V1 = (.5, .25)
    module = train(
        partial(PPO, group_size=32, num_epochs=4, missing_eos="keep", value_clip=None, critic=critic),
        reference=[0.5, 0.5],
        reward=tree_reward,
        length=2,
        steps=60,
        folder=tmp_path,
        kl_coef=0.0,
        value_lr=0.1,
        critic_warmup_steps=60,
    )
    head = module.value_model if critic == "shared" else module.value_model.head
    states = torch.eye(5, dtype=torch.float64)
    got = [head(states[last]).item() for last in (PROMPT, FIRST_ACTION, FIRST_ACTION + 1)]
    assert got == pytest.approx([0.375, 0.5, 0.25], abs=0.05)
    assert torch.equal(probabilities(module.language_model, PROMPT), torch.full((2,), 0.5, dtype=torch.float64))
