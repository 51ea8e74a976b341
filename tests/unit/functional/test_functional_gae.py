import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import gae

REWARDS = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.2, 0.4, 0.6]], dtype=torch.float64)
EVERYWHERE = torch.ones(1, 3, dtype=torch.bool)


@pytest.fixture
def ragged():
    """Random numbers of rows of 5, 3, 1 and 0 tokens."""
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator)
    return rewards, values, torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]


@pytest.mark.parametrize(
    ("gae_lambda", "advantages", "returns"),
    [
        (0.95, [0.7510, 0.5800, 0.4000], [0.9510, 0.9800, 1.0]),
        (1.0, [0.8, 0.6, 0.4], [1.0, 1.0, 1.0]),
        (0.0, [0.2, 0.2, 0.4], [0.4, 0.6, 1.0]),
    ],
)
def test_by_hand(gae_lambda, advantages, returns):
    got = gae(REWARDS, VALUES, EVERYWHERE, gae_lambda=gae_lambda)
    assert got[0][0].tolist() == pytest.approx(advantages, abs=1e-10)
    assert got[1][0].tolist() == pytest.approx(returns, abs=1e-10)


def test_masked_tokens_in_between_are_stepped_over():
    rewards = torch.tensor([[0.0, 0.0, 5.0, 1.0]], dtype=torch.float64)
    values = torch.tensor([[0.2, 0.4, 9.0, 0.6]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True]])
    advantages, returns = gae(rewards, values, mask, gae_lambda=0.95)
    assert advantages[0].tolist() == pytest.approx([0.7510, 0.5800, 0.0, 0.4000], abs=1e-10)
    assert returns[0].tolist() == pytest.approx([0.9510, 0.9800, 0.0, 1.0], abs=1e-10)


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (0.5, 0.0), (0.8, 1.0)])
def test_the_double_sum(ragged, discount, gae_lambda):
    rewards, values, mask = ragged
    advantages, returns = gae(rewards, values, mask, gae_lambda=gae_lambda, discount=discount)
    for i in range(4):
        length = int(mask[i].sum())
        for t in range(5):
            total = 0.0
            for s in range(t, length):
                following = values[i, s + 1].item() if s + 1 < length else 0.0
                delta = rewards[i, s].item() + discount * following - values[i, s].item()
                total += (discount * gae_lambda) ** (s - t) * delta
            assert advantages[i, t].item() == pytest.approx(total, abs=1e-12)
            assert returns[i, t].item() == pytest.approx(total + values[i, t].item() if t < length else 0.0, abs=1e-12)


def test_lambda_1_is_the_return_and_lambda_0_a_step(ragged):
    rewards, values, mask = ragged
    to_go = rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1)
    assert_close(gae(rewards, values, mask, gae_lambda=1.0)[1], to_go.masked_fill(~mask, 0))
    following = torch.cat([values[:, 1:], values[:, :1]], 1) * torch.cat([mask[:, 1:], torch.zeros(4, 1).bool()], 1)
    assert_close(gae(rewards, values, mask, gae_lambda=0.0)[1], (rewards + following).masked_fill(~mask, 0))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_an_exact_value_leaves_no_advantage(ragged, gae_lambda):  # deterministic rewards
    rewards, _, mask = ragged
    values = rewards.masked_fill(~mask, 0).flip(1).cumsum(1).flip(1)
    advantages, _ = gae(rewards, values, mask, gae_lambda=gae_lambda)
    assert_close(advantages, torch.zeros_like(advantages), atol=1e-12, rtol=0)


def test_better_than_expected_is_positive():
    better, worse = (gae(REWARDS, torch.full_like(VALUES, v), EVERYWHERE, gae_lambda=1.0)[0] for v in (0.5, 1.5))
    assert (better > 0).all()
    assert (worse < 0).all()


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e9])
def test_padding_changes_nothing(ragged, junk):
    rewards, values, mask = ragged
    want = gae(rewards, values, mask, gae_lambda=0.95, discount=0.9)
    pad = torch.nn.functional.pad
    rewards, values = (pad(x.masked_fill(~mask, junk), (0, 3), value=junk) for x in (rewards, values))
    got = gae(rewards, values, pad(mask, (0, 3)), gae_lambda=0.95, discount=0.9)
    for a, b in zip(got, want, strict=True):
        assert_close(a[:, :5], b, rtol=0, atol=0)
        assert (a[:, 5:] == 0).all()


def test_no_gradient_flows():
    values = VALUES.clone().requires_grad_()
    assert not any(tensor.requires_grad for tensor in gae(REWARDS, values, EVERYWHERE, gae_lambda=0.5))


@pytest.mark.parametrize("settings", [{"gae_lambda": 1.1}, {"gae_lambda": -0.1}, {"gae_lambda": 1.0, "discount": 1.5}])
def test_what_is_no_share_is_refused(settings):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        gae(REWARDS, VALUES, EVERYWHERE, **settings)


def test_shapes_must_match():
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        gae(REWARDS, VALUES[:, :2], EVERYWHERE, gae_lambda=1.0)
