import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from lit_posttrain.functional import adapted_kl_coef, aggregate, clipped_value_loss, explained_variance


def of(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def loss_and_slope(value, ret, old, clip):
    values = of(value).requires_grad_()
    loss, clipped = clipped_value_loss(values, of(ret), of(old), clip=clip)
    return loss.item(), torch.autograd.grad(loss.sum(), values)[0].item(), bool(clipped)


@pytest.mark.parametrize(
    ("value", "ret", "old", "clip", "loss", "slope", "clipped"),
    [
        (1.0, 0.9, 0.5, 0.2, 0.02, 0.0, True),  # held at 0.7, which is farther from 0.9
        (1.0, 0.9, 0.5, None, 0.005, 0.1, False),
        (0.6, 0.9, 0.5, 0.2, 0.045, -0.3, False),  # inside the range
        (1.0, 0.0, 0.5, 0.2, 0.5, 1.0, False),  # it went the wrong way: the larger loss has a gradient
    ],
)
def test_by_hand(value, ret, old, clip, loss, slope, clipped):
    assert loss_and_slope(value, ret, old, clip) == (pytest.approx(loss), pytest.approx(slope), clipped)


def test_the_slow_loop():
    generator = torch.Generator().manual_seed(5)
    values, returns, old = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 0, 1])[:, None]
    loss, clipped = clipped_value_loss(values, returns, old, clip=0.3)
    total = hits = 0.0
    for i, t in mask.nonzero().tolist():
        v, r, o = (x[i, t].item() for x in (values, returns, old))
        held = min(max(v, o - 0.3), o + 0.3)
        total += max((v - r) ** 2, (held - r) ** 2) / 2
        hits += (held - r) ** 2 > (v - r) ** 2
    assert aggregate(loss, mask, "token").item() == pytest.approx(total / 10, abs=1e-12)
    assert (clipped & mask).sum().item() == hits > 0


def test_explained_variance_by_hand():
    values, returns, mask = of(1.5, 2.0, 2.5, 4.5), of(1.0, 2.0, 3.0, 4.0), torch.ones(1, 4, dtype=torch.bool)
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.8625)
    assert explained_variance(values, returns, mask, punish_bias=True).item() == pytest.approx(0.85)
    assert explained_variance(returns, returns, mask).item() == 1
    assert explained_variance(torch.zeros_like(returns), returns, mask).item() == 0
    assert explained_variance(-values, returns, mask) < 0
    assert explained_variance(values, torch.ones_like(values), mask).isnan()
    assert explained_variance(values, returns, torch.zeros_like(mask)).isnan()


def test_explained_variance_of_two_ranks_is_that_of_one():
    generator = torch.Generator().manual_seed(6)
    values, returns = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 0, 1])[:, None]
    want = explained_variance(values, returns.masked_fill(~mask, torch.nan), mask)
    barrier, given = Barrier(2), {}

    def rank(number, rows):
        def total(tensor):
            given[number] = tensor
            barrier.wait()
            both = given[0] + given[1]
            barrier.wait()
            return both

        return explained_variance(values[rows], returns[rows], mask[rows], sum_over_ranks=total).item()

    with ThreadPoolExecutor(2) as ranks:
        got = [ranks.submit(rank, 0, slice(0, 1)), ranks.submit(rank, 1, slice(1, 4))]
        assert [each.result(timeout=10) for each in got] == pytest.approx([want.item()] * 2, abs=1e-12)


@pytest.mark.parametrize(("kl", "expected"), [(0, 0.148464), (6, 0.15), (7, 0.15128), (12, 0.151536), (1000, 0.151536)])
def test_adaptive_coefficient_by_hand(kl, expected):
    got = adapted_kl_coef(0.15, kl=kl, target=6.0, horizon=10_000, num_sequences=512)
    assert got == pytest.approx(expected, abs=1e-10)


def test_adaptive_coefficient_finds_the_target():
    """A policy whose KL is a falling function of the coefficient."""
    kl_coef = 1.0
    for _ in range(2000):
        kl_coef = adapted_kl_coef(kl_coef, kl=3.0 / kl_coef, target=6.0, horizon=2000, num_sequences=50)
    assert kl_coef == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"target": 0.0}, "`target` must be > 0"), ({"horizon": 0}, ">= 1"), ({"horizon": 100}, "could reach 0 at once")],
)
def test_what_cannot_steer_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        adapted_kl_coef(0.1, **{"kl": 1.0, "target": 6.0, "horizon": 10_000, "num_sequences": 512, **settings})


def test_bad_value_losses_are_refused():
    with pytest.raises(ValueError, match="`clip` must be > 0"):
        clipped_value_loss(of(1.0), of(1.0), of(1.0), clip=0.0)
    with pytest.raises(ValueError, match="must have one shape"):
        clipped_value_loss(of(1.0), of(1.0, 2.0), of(1.0), clip=None)
    assert math.isfinite(clipped_value_loss(of(1e6), of(-1e6), of(0.0), clip=0.2).loss.item())
