"""The real modules with a policy that is a table end at the optimum that theory gives."""

from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from lit_posttrain import GRPO, PPO, RLOO, Critic, ReinforcePlusPlus, Rollouts
from lit_posttrain.batching import TrainingBatch
from lit_posttrain.functional import explained_variance
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork
from tests.integration.tabular_runs import BETA, REFERENCE, REWARDS, TREE, bandit_reward, train, tree_reward
from tests.tabular import EOS, FIRST_ACTION, PROMPT, make_table, probabilities

BEST = 0.24634  # beta log Z
BEST_OF_TREE = 0.553759

TWICE = Rollouts(num_epochs=2)

ALGORITHMS = {
    "ppo": partial(
        PPO, group_size=32, rollouts=TWICE, critic=Critic(lr=0.05, clip=None), missing_eos="keep", clip_high=0.3
    ),
    "ppo_shared": partial(PPO, group_size=32, rollouts=TWICE, critic=Critic("shared", lr=0.05), missing_eos="keep"),
    "rloo": partial(RLOO, group_size=32, rollouts=TWICE),
    "reinforce_pp": partial(ReinforcePlusPlus, group_size=32, rollouts=TWICE),
    "grpo": partial(GRPO, group_size=32, scale="none", rollouts=TWICE, clip_high=0.3),
}


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


def test_the_numbers_of_theory():
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


def test_ppo_ends_at_the_optimum_of_the_bandit(tmp_path):
    module = train(
        ALGORITHMS["ppo"], reference=REFERENCE.tolist(), reward=bandit_reward, length=1, steps=80, folder=tmp_path
    )
    assert objective_of_bandit(probabilities(module.language_model, PROMPT)) == pytest.approx(BEST, rel=0.02)


@pytest.mark.learn
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_end_at_the_optimum_of_the_bandit(algorithm, tmp_path):
    module = train(
        ALGORITHMS[algorithm], reference=REFERENCE.tolist(), reward=bandit_reward, length=1, steps=160, folder=tmp_path
    )
    policy = probabilities(module.language_model, PROMPT)
    assert objective_of_bandit(policy) == pytest.approx(BEST, rel=0.02)
    assert policy.tolist() == pytest.approx([0.4515, 0.3322, 0.1833, 0.0331], abs=0.05)
    assert objective_of_bandit(policy) <= BEST + 1e-5  # nobody is above the frontier


@pytest.mark.learn
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_end_at_the_optimum_of_the_tree(algorithm, tmp_path):
    module = train(
        ALGORITHMS[algorithm], reference=[0.5, 0.5], reward=tree_reward, length=2, steps=160, folder=tmp_path
    )
    assert objective_of_tree(module.language_model) == pytest.approx(BEST_OF_TREE, rel=0.02)


@pytest.mark.learn
def test_the_original_kl_of_grpo_ends_elsewhere(
    tmp_path,
):  # the k3 term descends another divergence
    module = train(
        partial(ALGORITHMS["grpo"], kl_gradient="k3", rollouts=Rollouts(num_epochs=1)),
        reference=REFERENCE.tolist(),
        reward=bandit_reward,
        length=1,
        steps=160,
        folder=tmp_path,
    )
    policy = probabilities(module.language_model, PROMPT)
    # [.5945, .1712, .1384, .0960] for the whole reward; the mean of the group leaves (G - 1) / G = 31 / 32 of it
    assert policy.tolist() == pytest.approx([0.5835, 0.1754, 0.1423, 0.0989], abs=0.01)
    assert objective_of_bandit(policy) < 0.95 * BEST


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_the_critic_finds_the_values_of_the_tree(critic, tmp_path):  # V0 = .375, V1 = (.5, .25)
    module = train(
        partial(PPO, group_size=32, missing_eos="keep"),
        reference=[0.5, 0.5],
        reward=tree_reward,
        length=2,
        steps=60,
        folder=tmp_path,
        kl_coef=0.0,
        rollouts__num_epochs=4,
        critic__start=critic,
        critic__lr=0.1,
        critic__clip=None,
        critic__warmup_steps=60,
    )
    head = module.value_model if critic == "shared" else module.value_model.head
    states = torch.eye(5, dtype=torch.float64)
    got = [head(states[last]).item() for last in (PROMPT, FIRST_ACTION, FIRST_ACTION + 1)]
    assert got == pytest.approx([0.375, 0.5, 0.25], abs=0.05)
    assert torch.equal(probabilities(module.language_model, PROMPT), torch.full((2,), 0.5, dtype=torch.float64))


ACTIONS, LENGTH = 4, 5  # of the counted token's completions, which are never cut short


def counts_the_first_action(completion_ids):
    return [float(ids.count(FIRST_ACTION)) for ids in completion_ids]


def transformer_critic():
    config = GPT2Config(
        vocab_size=FIRST_ACTION + ACTIONS,
        n_positions=LENGTH + 1,
        n_embd=32,
        n_layer=1,
        n_head=8,
        initializer_range=0.1,  # the usual 0.02 is for wide models, this one would learn slowly from there
        bos_token_id=None,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = GPT2Model(config)
    return ValueNetwork(trunk, ValueHead(32, like=trunk.wte.weight))


@pytest.mark.learn
def test_a_transformer_critic_counts(tmp_path):  # V(s_t) = count so far + (T - t) / |V|
    steps = 200
    module = train(
        partial(PPO, group_size=64, rollouts=Rollouts(num_epochs=2, num_minibatches=2), missing_eos="keep"),
        reference=[1 / ACTIONS] * ACTIONS,
        reward=counts_the_first_action,
        length=LENGTH,
        steps=steps,
        folder=tmp_path,
        kl_coef=0.0,
        critic=Critic(transformer_critic(), lr=1e-2, clip=None, warmup_steps=steps),
    )
    completions = torch.randint(
        FIRST_ACTION, FIRST_ACTION + ACTIONS, (512, LENGTH), generator=torch.Generator().manual_seed(1)
    )
    prompts, everywhere = torch.full((512, 1), PROMPT), torch.ones(512, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        got = module.value_model(
            TrainingBatch(
                prompt_ids=prompts,
                prompt_mask=everywhere[:, :1],
                completion_ids=completions,
                completion_mask=everywhere,
                loss_mask=everywhere,
            )
        )
    counted = (completions == FIRST_ACTION).float()
    before = counted.cumsum(1) - counted
    want = before + (LENGTH - torch.arange(LENGTH)) / ACTIONS
    assert explained_variance(got, want, everywhere, punish_bias=True) > 0.98
    assert torch.equal(probabilities(module.language_model, PROMPT), torch.full((4,), 0.25, dtype=torch.float64))
