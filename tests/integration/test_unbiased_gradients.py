"""The mean of the gradients that the real modules leave on a table is the exact policy gradient."""

from functools import partial
from itertools import product

import pytest
import torch
from lightning import Callback

from lit_posttrain import GRPO, PPO, RLOO, Critic, Rollouts
from lit_posttrain.models.networks.value import ValueNetwork
from tests.integration.recording import StepRecorder
from tests.integration.tabular_runs import BETA, REFERENCE, bandit_reward, train, tree_reward
from tests.tabular import FIRST_ACTION, PROMPT

STEPS, PROMPTS, GROUP = 20, 256, 4
BANDIT = {"reference": REFERENCE.tolist(), "reward": bandit_reward, "length": 1}
TREE = {"reference": [0.5, 0.5], "reward": tree_reward, "length": 2}


class TableRecorder(StepRecorder):
    def watched(self, pl_module):
        return [("table", pl_module.language_model.table.weight)]


class MovesAway(Callback):
    """From the reference, which has been made by then."""

    def on_fit_start(self, trainer, pl_module):
        weight = pl_module.language_model.table.weight
        with torch.no_grad():
            weight += 0.5 * torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(3))


ppo = partial(
    PPO,
    critic=Critic(lr=0.0),
    rollouts=Rollouts(num_epochs=1),
    whiten_advantages=False,
    gae_lambda=1.0,
    missing_eos="keep",
)
grpo = partial(GRPO, scale="none", aggregation="seq-mean-token-sum")


def ppo_with_a_wrong_critic(policy, reward, **settings):
    """Wrong in every state, which takes nothing away from the policy's gradient where lambda is 1."""
    critic = ValueNetwork.from_causal_lm(policy.model)
    with torch.no_grad():
        weight = critic.head.linear.weight
        weight.copy_(torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(4)))
    return ppo(policy, reward, critic=Critic(critic, lr=0.0), **settings)


def exact_gradient(model, *, reference, reward, length, reward_weight, kl_weight):
    """Of the expected reward less KL, from all sequences; by the table's rows of actions."""
    logprobs = model.table(model.trunk.states).log_softmax(-1)  # of the next token by the last
    objective = 0.0
    for actions in product(range(len(reference)), repeat=length):
        ids = [FIRST_ACTION + action for action in actions]
        logprob = logprobs[[PROMPT, *ids[:-1]], ids].sum()
        ratio = logprob - torch.tensor([reference[action] for action in actions], dtype=logprob.dtype).log().sum()
        objective += logprob.exp() * (reward_weight * reward([ids])[0] - kl_weight * ratio)
    return torch.autograd.grad(objective, model.table.weight)[0][FIRST_ACTION:]


def sampled_gradients(algorithm, *, folder, kl_coef, callbacks=(), **world):
    """Those of each optimiser step, as an ascent, and the policy, which has not moved."""
    recorder = TableRecorder()
    module = train(
        algorithm,
        **world,
        steps=STEPS,
        folder=folder,
        batch_size=PROMPTS,
        callbacks=[recorder, *callbacks],
        group_size=GROUP,
        kl_coef=kl_coef,
        optimizer=partial(torch.optim.SGD, lr=0.0),
    )
    assert len(recorder.gradients) == STEPS
    return -torch.stack([gradients["table"][FIRST_ACTION:] for gradients in recorder.gradients]), module.language_model


def agree(sampled, exact):
    return ((sampled.mean(0) - exact).abs() <= 4 * sampled.std(0) / len(sampled) ** 0.5 + 1e-9).all()


# GRPO compares a completion with the mean of a group that it is itself in: (G - 1) / G of its reward is left.
OF_GRPO = (GROUP - 1) / GROUP


@pytest.mark.parametrize(
    ("algorithm", "share"),
    [(ppo, 1.0), (RLOO, 1.0), (grpo, OF_GRPO)],
    ids=["ppo", "rloo", "grpo"],
)
def test_the_policy_gradient_of_the_bandit(algorithm, share, tmp_path):
    sampled, model = sampled_gradients(algorithm, **BANDIT, folder=tmp_path, kl_coef=0.0)
    exact = share * exact_gradient(model, **BANDIT, reward_weight=1.0, kl_weight=0.0)
    assert exact[:, PROMPT].tolist() == pytest.approx([share * g for g in (0.12, 0.14, 0.06, -0.32)])  # pi (r - E r)
    assert agree(sampled, exact)
    assert not agree(sampled, 0.9 * exact)  # a bias of a tenth would be seen


@pytest.mark.parametrize(
    ("algorithm", "world", "reward_weight", "kl_weight"),
    [
        (ppo_with_a_wrong_critic, TREE, 1 / 2, BETA / 2),  # the mean over tokens, of which a completion has two
        (RLOO, TREE, 1.0, BETA),
        (grpo, BANDIT, OF_GRPO, BETA),  # of a token's KL alone: what comes after it is not in the loss
    ],
    ids=["ppo", "rloo", "grpo"],
)
def test_the_gradient_away_from_the_reference(algorithm, world, reward_weight, kl_weight, tmp_path):
    sampled, model = sampled_gradients(algorithm, **world, folder=tmp_path, kl_coef=BETA, callbacks=[MovesAway()])
    exact = exact_gradient(model, **world, reward_weight=reward_weight, kl_weight=kl_weight)
    assert agree(sampled, exact)
    assert not agree(sampled, 0.9 * exact)
