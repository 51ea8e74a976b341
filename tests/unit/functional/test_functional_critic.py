"""Critics that are tables, against exact values, and policy gradients against exact gradients."""

import pytest
import torch

from lit_posttrain.functional import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    group_advantages,
)
from lit_posttrain.tasks.grid import Grid


def fit_table(table, episodes, *, gae_lambda, rounds, rate, discount=1.0):
    """Fit values by state, (S,), to episodes of states and rewards, (B, C), 0 <= rate; the rate falls like 1 / n."""
    states, rewards, mask = episodes
    counts = torch.zeros_like(table).index_add(0, states[mask], torch.ones(int(mask.sum()), dtype=table.dtype))
    for number in range(rounds):
        values = table[states]
        _, returns = gae(rewards, values, mask, gae_lambda=gae_lambda, discount=discount)
        free = values.clone().requires_grad_()
        loss, _ = clipped_value_loss(free, returns, values, clip=None)
        (slope,) = torch.autograd.grad(loss[mask].sum(), free)
        change = torch.zeros_like(table).index_add(0, states[mask], slope[mask]) / counts.clamp(min=1)
        table = table - rate / (1 + number / rounds) * change
    return table


def random_walks(number, generator):
    """From the middle of states 1 to 5, a step left or right; 1 for leaving on the right."""
    longest = 80
    states = torch.zeros(number, longest, dtype=torch.long)
    rewards, mask = torch.zeros(number, longest, dtype=torch.float64), torch.zeros(number, longest, dtype=torch.bool)
    place = torch.full((number,), 3)
    for t in range(longest):
        inside = (place > 0) & (place < 6)
        states[:, t], mask[:, t] = place.clamp(1, 5), inside
        place = torch.where(inside, place + 2 * torch.randint(2, (number,), generator=generator) - 1, place)
        rewards[:, t] = (inside & (place == 6)).double()
    return states, rewards, mask


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_random_walk(gae_lambda):  # V(s) = s / 6
    episodes = random_walks(1500, torch.Generator().manual_seed(1))
    table = fit_table(torch.zeros(7, dtype=torch.float64), episodes, gae_lambda=gae_lambda, rounds=50, rate=1.0)
    want = torch.arange(7) / 6
    assert (table[1:6] - want[1:6]).abs().max() < 0.04
    states, rewards, mask = episodes
    exact = want.double()[states]
    assert explained_variance(table[states], exact, mask) > 0.99
    returns = gae(rewards, exact, mask, gae_lambda=1.0)[1]
    assert explained_variance(exact, returns, mask) > 0  # of what chance leaves open


def test_gridworld():  # 4 x 4 against dynamic programming, from the paths of the best policy
    grid = Grid(4, 4, frozenset({(1, 1), (2, 1)}), start=(0, 0), goal=(3, 2))
    cells = sorted(grid.values())
    number = {cell: index for index, cell in enumerate(cells)}
    states = torch.zeros(len(cells), 16, dtype=torch.long)
    mask = torch.zeros(len(cells), 16, dtype=torch.bool)
    for row, cell in enumerate(cells):
        for t in range(16):
            if cell == grid.goal:
                break
            states[row, t], mask[row, t] = number[cell], True
            cell = max(grid.neighbors(cell), key=grid.values().__getitem__)
    rewards = -mask.double()
    for gae_lambda in (0.0, 0.95, 1.0):
        table = fit_table(
            torch.zeros(len(cells), dtype=torch.float64),
            (states, rewards, mask),
            gae_lambda=gae_lambda,
            rounds=60,
            rate=1.0,
        )
        want = torch.tensor([float(grid.values()[cell]) for cell in cells])
        assert (table - want).abs().max() < 0.02


REWARDS = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
PROBABILITIES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
EXACT = torch.tensor([0.12, 0.14, 0.06, -0.32], dtype=torch.float64)  # pi (r - E r), E r = -0.2
DRAWS = 100_000


@pytest.fixture(scope="module")
def actions():
    return torch.multinomial(PROBABILITIES, DRAWS, replacement=True, generator=torch.Generator().manual_seed(2))


def gradients(actions, advantages):
    """The gradient by the logits that the loss gives each draw, as an ascent, (DRAWS, 4)."""
    logits = PROBABILITIES.log().expand(len(actions), 4).clone().requires_grad_()
    logprobs = logits.log_softmax(-1).gather(1, actions[:, None])
    loss, _ = clipped_policy_loss(logprobs - logprobs.detach(), advantages[:, None], clip_low=0.2, clip_high=0.2)
    return -torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize("baseline", ["none", "value", "leave_one_out"])
def test_policy_gradient_is_unbiased(actions, baseline):
    rewards = REWARDS[actions]
    if baseline == "value":
        everywhere = torch.ones(DRAWS, 1, dtype=torch.bool)
        value = torch.full((DRAWS, 1), (PROBABILITIES * REWARDS).sum().item(), dtype=torch.float64)
        advantages = gae(rewards[:, None], value, everywhere, gae_lambda=0.95)[0][:, 0]
    elif baseline == "leave_one_out":
        advantages = group_advantages(rewards, group_size=4, baseline="leave_one_out", scale="none")
    else:
        advantages = rewards
    sampled = gradients(actions, advantages)
    error = sampled.mean(0) - EXACT
    assert (error.abs() < 4 * sampled.std(0) / DRAWS**0.5).all()
    # the anti-test: a bias of a tenth would be seen
    assert not ((error + EXACT / 10).abs() < 4 * sampled.std(0) / DRAWS**0.5).all()


def test_a_baseline_reduces_the_variance(actions):
    rewards = REWARDS[actions] + 5.0  # where there is something to take away
    plain = gradients(actions, rewards)
    leave_one_out = gradients(actions, group_advantages(rewards, group_size=4, baseline="leave_one_out", scale="none"))
    exact = gradients(actions, rewards - 4.8)
    assert leave_one_out.var(0).sum() < 0.1 * plain.var(0).sum()
    assert exact.var(0).sum() < leave_one_out.var(0).sum()
