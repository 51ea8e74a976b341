"""Where the losses end, by descent on the logits of small policies with every preference probability known."""

import math
from functools import partial

import pytest
import torch

from lit_posttrain.functional import bradley_terry_loss, dpo_loss, ipo_loss, robust_dpo_loss

REF = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
# p_ij = sigmoid(r_i - r_j): how often i is preferred to j
PREFERENCE = torch.sigmoid(REWARDS.unsqueeze(1) - REWARDS)


def descend(loss_of, start):
    """The argument of `loss_of` at its minimum."""
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [leaf], max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_of(leaf)
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    return leaf.detach()


def difference_at_the_optimum(pair_loss, p):
    """Of the log-ratios of two completions, the first preferred with probability p."""
    ref = torch.tensor([0.3, -0.4], dtype=torch.float64).log_softmax(-1)

    def loss(logits):
        first, second = (logits.log_softmax(-1) - ref).split(1)
        return (p * pair_loss(first, second) + (1 - p) * pair_loss(second, first)).sum()

    log_ratio = descend(loss, ref).log_softmax(-1) - ref
    return (log_ratio[0] - log_ratio[1]).item()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_bradley_terry_ends_at_the_log_odds(p):
    def loss(scores):
        first, second = scores.split(1)
        return (p * bradley_terry_loss(first, second) + (1 - p) * bradley_terry_loss(second, first)).sum()

    scores = descend(loss, torch.tensor([0.3, -0.4], dtype=torch.float64))
    assert (scores[0] - scores[1]).item() == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_centering_draws_the_mean_score_to_zero():
    def loss(scores):
        first, second = scores.split(1)
        one, other = (bradley_terry_loss(*pair, centering=0.01) for pair in ((first, second), (second, first)))
        return (0.8 * one + 0.2 * other).sum()

    scores = descend(loss, torch.tensor([5.3, 4.6], dtype=torch.float64))
    assert scores.tolist() == pytest.approx([math.log(4) / 2, -math.log(4) / 2], abs=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_ends_at_the_log_odds(p, beta):
    difference = difference_at_the_optimum(partial(dpo_loss, beta=beta), p)
    assert beta * difference == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_ends_at_a_bounded_lead(p, beta):
    difference = difference_at_the_optimum(partial(ipo_loss, beta=beta), p)
    assert difference == pytest.approx((2 * p - 1) / (2 * beta), abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothed_dpo_is_bounded_where_labels_are_certain(smoothing):
    difference = difference_at_the_optimum(partial(dpo_loss, beta=0.5, label_smoothing=smoothing), 1.0)
    assert 0.5 * difference == pytest.approx(math.log((1 - smoothing) / smoothing), abs=1e-6)


def test_robust_dpo_sees_through_flipped_labels():
    p, flipped = 0.8, 0.2
    seen = (1 - flipped) * p + flipped * (1 - p)
    difference = difference_at_the_optimum(partial(robust_dpo_loss, beta=0.5, label_smoothing=flipped), seen)
    assert 0.5 * difference == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def bandit_policy(pair_loss):
    """The policy over four arms that minimises the expected loss over all pairs of different arms."""
    first, second = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j]).unbind(1)

    def loss(logits):
        log_ratio = logits.log_softmax(-1) - REF.log()
        return (PREFERENCE[first, second] * pair_loss(log_ratio[first], log_ratio[second])).sum()

    return descend(loss, REF.log()).softmax(-1)


def test_dpo_reaches_the_known_policy():
    policy = bandit_policy(partial(dpo_loss, beta=0.5))
    assert policy.tolist() == pytest.approx([0.4515, 0.3322, 0.1833, 0.0331], abs=1e-4)
    assert policy @ REWARDS == pytest.approx(0.58447, abs=1e-5)


@pytest.mark.parametrize(
    ("beta", "objective", "kl"),
    [(0.25, 0.49508, 1.43802), (0.5, 0.24634, 0.67626), (1.0, 0.04757, 0.22852), (2.0, -0.07273, 0.06263)],
)
def test_dpo_optimizes_reward_minus_divergence(beta, objective, kl):
    policy = bandit_policy(partial(dpo_loss, beta=beta))
    divergence = policy @ (policy / REF).log()
    assert divergence.item() == pytest.approx(kl, abs=1e-5)
    assert (policy @ REWARDS - beta * divergence).item() == pytest.approx(objective, abs=1e-5)
    assert policy.tolist() == pytest.approx((REF * (REWARDS / beta).exp() / (REF @ (REWARDS / beta).exp())).tolist())


def test_ipo_reaches_its_own_optimum():  # ref exp(mean_j p_ij / beta) / Z, p_ii = 1/2
    policy = bandit_policy(partial(ipo_loss, beta=0.5))
    assert policy.tolist() == pytest.approx([0.1582, 0.2570, 0.3093, 0.2755], abs=1e-4)
    weights = REF * (PREFERENCE.mean(1) / 0.5).exp()
    assert policy.tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=1e-7)
