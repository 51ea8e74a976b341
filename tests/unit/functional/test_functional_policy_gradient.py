"""Identities that hold on the first update of a rollout, with a softmax policy that is a table of logits."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import (
    aggregate,
    cispo_loss,
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    kl_penalty,
    sequence_log_ratio,
    token_logprobs,
)

GROUP_SIZE = 4
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
REWARDS = torch.tensor([1.0, 0.0, 0.25, 0.0, 0.0, 2.0, 1.0, 1.0], dtype=torch.float64)


@pytest.fixture
def policy():
    """Logits [C, V], one distribution per position."""
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(8)).requires_grad_()


@pytest.fixture
def completions():
    return torch.randint(5, (8, 3), generator=torch.Generator().manual_seed(9))


@pytest.fixture
def equal_lengths():
    return torch.ones(8, 3, dtype=torch.bool)


@pytest.fixture
def ragged():
    return torch.arange(3) < torch.tensor([3, 1, 2, 3, 2, 1, 3, 1]).unsqueeze(1)


def logprobs_of(policy, completions):
    return token_logprobs(policy.expand(len(completions), -1, -1), completions)


def reinforce_gradient(policy, completions, advantages, mask, normalizer):
    """-sum A grad log pi / N, with the gradient of log softmax written out: onehot - p."""
    total = torch.zeros_like(policy)
    probs = policy.detach().softmax(-1)
    for row, advantage in enumerate(advantages):
        for position in range(completions.shape[1]):
            if mask[row, position]:
                onehot = torch.nn.functional.one_hot(completions[row, position], policy.shape[1])
                total[position] -= advantage * (onehot - probs[position])
    return (total / normalizer).detach()


@pytest.mark.parametrize("loss_name", ["clipped", "clipped_dual", "cispo"])
def test_on_policy_the_ratio_is_one_and_the_gradient_that_of_reinforce(policy, completions, ragged, loss_name):
    logprobs = logprobs_of(policy, completions)
    old_logprobs = logprobs.detach()
    advantages = group_advantages(REWARDS, group_size=GROUP_SIZE)
    if loss_name == "cispo":
        result = cispo_loss(logprobs, logprobs - old_logprobs, advantages.unsqueeze(1), clip_low=1.0, clip_high=0.28)
    else:
        dual_clip = 3.0 if loss_name == "clipped_dual" else None
        log_ratio = logprobs - old_logprobs
        assert (log_ratio.exp() == 1).all()
        result = clipped_policy_loss(log_ratio, advantages.unsqueeze(1), **CLIP, dual_clip=dual_clip)
    assert not result.clipped.any()
    (gradient,) = torch.autograd.grad(aggregate(result.loss, ragged, "token"), policy)
    assert_close(gradient, reinforce_gradient(policy, completions, advantages, ragged, 16), rtol=0, atol=1e-12)


def test_on_policy_the_divergences_are_exactly_zero(policy, completions):
    logprobs = logprobs_of(policy, completions).float()
    for estimator in ("k1", "k2", "k3"):
        assert not kl_estimate(logprobs, logprobs.detach(), estimator=estimator).any()


def test_without_advantage_there_is_no_gradient_at_all(policy, completions, ragged):
    logprobs = logprobs_of(policy, completions)
    advantages = group_advantages(torch.zeros(8, dtype=torch.float64), group_size=GROUP_SIZE).unsqueeze(1)
    loss = clipped_policy_loss(logprobs - logprobs.detach() + 0.5, advantages, **CLIP).loss
    (gradient,) = torch.autograd.grad(aggregate(loss, ragged, "token"), policy)
    assert not gradient.any()


def test_without_bounds_it_is_importance_weighted_reinforce(policy, completions, ragged):
    logprobs = logprobs_of(policy, completions)
    shift = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(8, 3)
    advantages = group_advantages(REWARDS, group_size=GROUP_SIZE).unsqueeze(1)
    result = clipped_policy_loss(
        logprobs - (logprobs.detach() - shift), advantages, clip_low=math.inf, clip_high=math.inf
    )
    weighted = aggregate(-shift.exp() * advantages * logprobs, ragged, "token")
    (expected,) = torch.autograd.grad(weighted, policy, retain_graph=True)
    (gradient,) = torch.autograd.grad(aggregate(result.loss, ragged, "token"), policy)
    assert not result.clipped.any()
    assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["token", "seq-mean-token-mean", "seq-mean-token-sum", "constant"])
def test_on_policy_the_loss_is_zero_and_its_gradient_is_not(policy, completions, equal_lengths, mode):
    logprobs = logprobs_of(policy, completions)
    advantages = group_advantages(REWARDS, group_size=GROUP_SIZE).unsqueeze(1)
    token_losses = clipped_policy_loss(logprobs - logprobs.detach(), advantages, **CLIP).loss
    loss = aggregate(token_losses, equal_lengths, mode, max_length=3)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert gradient.abs().max() > 1e-2


def test_grpo_without_scale_is_rloo_up_to_a_factor(policy, completions, ragged):
    logprobs = logprobs_of(policy, completions)
    log_ratio = logprobs - logprobs.detach()

    def gradient(log_ratio, mode, baseline):
        advantages = group_advantages(REWARDS, group_size=GROUP_SIZE, baseline=baseline, scale="none")
        loss = aggregate(clipped_policy_loss(log_ratio, advantages.unsqueeze(1), **CLIP).loss, ragged, mode)
        return torch.autograd.grad(loss, policy, retain_graph=True)[0]

    grpo = gradient(log_ratio, "seq-mean-token-sum", "mean")
    rloo_by_tokens = gradient(log_ratio, "seq-mean-token-sum", "leave_one_out")
    whole = sequence_log_ratio(log_ratio, ragged, reduction="sum")
    rloo_by_sequences = gradient(whole, "seq-mean-token-mean", "leave_one_out")

    advantages = group_advantages(REWARDS, group_size=GROUP_SIZE, baseline="leave_one_out", scale="none")
    expected = reinforce_gradient(policy, completions, advantages, ragged, 8)
    assert_close(rloo_by_tokens, expected, rtol=0, atol=1e-12)
    assert_close(rloo_by_sequences, expected, rtol=0, atol=1e-12)
    assert_close(grpo, (GROUP_SIZE - 1) / GROUP_SIZE * expected, rtol=0, atol=1e-12)


def test_descending_makes_the_better_completion_likelier(policy):
    completions = torch.tensor([[0, 1, 2], [3, 4, 0]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages = group_advantages(torch.tensor([1.0, 0.0], dtype=torch.float64), group_size=2).unsqueeze(1)
    logprobs = logprobs_of(policy, completions)
    loss = aggregate(clipped_policy_loss(logprobs - logprobs.detach(), advantages, **CLIP).loss, mask, "token")
    (gradient,) = torch.autograd.grad(loss, policy)
    change = (logprobs_of(policy - 0.1 * gradient, completions) - logprobs).sum(-1)
    assert change[0] > 0 > change[1]


def test_descending_the_penalty_reaches_the_known_optimum():  # policy proportional to ref * exp(reward / coef)
    ref = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    rewards = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-9, tolerance_change=0, lr=0.3)

    def closure():
        optimizer.zero_grad()
        logprobs = logits.log_softmax(-1)
        old_logprobs = logprobs.detach()
        probs = old_logprobs.exp()
        surrogate = clipped_policy_loss(logprobs - old_logprobs, rewards - probs @ rewards, **CLIP).loss
        loss = (probs * (surrogate + 0.5 * kl_penalty(logprobs, ref, old_logprobs, value="k1"))).sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    assert logits.softmax(-1).tolist() == pytest.approx([0.4515, 0.3322, 0.1833, 0.0331], abs=1e-4)
