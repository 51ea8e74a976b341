import math

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import cispo_loss, clipped_policy_loss, importance_weights

RATIOS = [0.5, 0.9, 1.0, 1.1, 1.5, 5.0]
PPO = {"clip_low": 0.2, "clip_high": 0.2}


def log_ratios(*ratios):
    return torch.tensor([ratios], dtype=torch.float64).log().requires_grad_()


def slopes(loss, leaf):
    return torch.autograd.grad(loss.sum(), leaf)[0][0].tolist()


@pytest.mark.parametrize(
    ("advantage", "gradients", "losses", "clipped"),
    [
        (1.0, [-0.5, -0.9, -1, -1.1, 0, 0], [-0.5, -0.9, -1, -1.1, -1.2, -1.2], [0, 0, 0, 0, 1, 1]),
        (-1.0, [0, 0.9, 1, 1.1, 1.5, 5], [0.8, 0.9, 1, 1.1, 1.5, 5], [1, 0, 0, 0, 0, 0]),
    ],
)
def test_clip_table(advantage, gradients, losses, clipped):
    log_ratio = log_ratios(*RATIOS)
    result = clipped_policy_loss(log_ratio, torch.full((1, 6), advantage, dtype=torch.float64), **PPO)
    assert result.loss[0].tolist() == pytest.approx(losses, abs=1e-10)
    assert slopes(result.loss, log_ratio) == pytest.approx(gradients, abs=1e-10)
    assert result.clipped[0].tolist() == [bool(x) for x in clipped]


def test_the_two_bounds_are_apart():
    log_ratio = log_ratios(0.75, 1.25, 0.75, 1.25)
    advantages = torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    wide_high = clipped_policy_loss(log_ratio, advantages, clip_low=0.2, clip_high=0.28)
    wide_low = clipped_policy_loss(log_ratio, advantages, clip_low=0.28, clip_high=0.2)
    assert wide_high.clipped[0].tolist() == [True, False, True, False]
    assert wide_low.clipped[0].tolist() == [False, True, False, True]
    assert wide_high.loss[0, :2].tolist() == pytest.approx([0.8, -1.25], abs=1e-12)


def test_clipping_counts_strictly():
    on_the_bound = torch.tensor([[1.5]], dtype=torch.float64).log().requires_grad_()
    ratio = on_the_bound.exp().item()
    result = clipped_policy_loss(on_the_bound, torch.ones(1, 1, dtype=torch.float64), clip_low=0.5, clip_high=ratio - 1)
    assert 1 + (ratio - 1) == ratio
    assert not result.clipped.item()
    assert slopes(result.loss, on_the_bound) == [-ratio]


def test_zero_advantage_is_never_clipped_and_has_no_gradient():
    log_ratio = log_ratios(*RATIOS)
    result = clipped_policy_loss(log_ratio, torch.zeros(1, 6, dtype=torch.float64), **PPO)
    assert not result.clipped.any()
    assert slopes(result.loss, log_ratio) == [0] * 6


def test_dual_clip():
    log_ratio = log_ratios(5.0, 2.5, 0.5, 5.0)
    advantages = torch.tensor([[-1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    result = clipped_policy_loss(log_ratio, advantages, **PPO, dual_clip=3.0)
    assert result.loss[0].tolist() == pytest.approx([3, 2.5, 0.8, -1.2], abs=1e-10)
    assert slopes(result.loss, log_ratio) == pytest.approx([0, 2.5, 0, 0], abs=1e-10)
    assert result.clipped[0].tolist() == [False, False, True, True]  # the second bound is not counted
    doubled = clipped_policy_loss(log_ratio, 2 * advantages, **PPO, dual_clip=3.0)
    assert_close(doubled.loss, 2 * result.loss)


def test_descending_raises_good_tokens_and_lowers_bad_ones():
    log_ratio = log_ratios(1.0, 1.0)
    advantages = torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    assert slopes(clipped_policy_loss(log_ratio, advantages, **PPO).loss, log_ratio) == [-2, 3]
    logprobs = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    capped = cispo_loss(logprobs, logprobs - logprobs.detach(), advantages, clip_low=1.0, clip_high=1.0)
    assert slopes(capped.loss, logprobs) == [-2, 3]


@pytest.mark.parametrize(("advantage", "sign"), [(1.0, -1), (-1.0, 1)])
def test_cispo_table(advantage, sign):
    old_logprobs = torch.full((1, 3), -2.0, dtype=torch.float64)
    logprobs = (old_logprobs + torch.tensor([[1.5, 0.5, 1.0]], dtype=torch.float64).log()).requires_grad_()
    advantages = torch.full((1, 3), advantage, dtype=torch.float64)
    result = cispo_loss(logprobs, logprobs - old_logprobs, advantages, clip_low=1.0, clip_high=0.28)
    assert slopes(result.loss, logprobs) == pytest.approx([sign * 1.28, sign * 0.5, sign * 1.0], abs=1e-10)
    assert result.clipped[0].tolist() == [True, False, False]
    weight = torch.tensor([[1.28, 0.5, 1.0]], dtype=torch.float64)
    assert_close(result.loss, -weight * advantage * logprobs)


def test_cispo_counts_strictly():
    logprobs = torch.zeros(1, 1, dtype=torch.float64)
    assert not cispo_loss(logprobs, logprobs, torch.ones(1, 1), clip_low=1.0, clip_high=0.0).clipped.item()


def test_importance_weights():
    log_ratio = torch.tensor([0.1, 1.2, -0.3], dtype=torch.float64, requires_grad=True)
    weights = importance_weights(log_ratio, cap=2.0)
    assert weights.tolist() == pytest.approx([1.10517, 2, 0.74082], abs=5e-6)
    assert not weights.requires_grad


def test_nothing_but_the_policy_gets_a_gradient():
    logprobs, old_logprobs, advantages = (torch.ones(1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    cispo = cispo_loss(logprobs, logprobs - old_logprobs, advantages, clip_low=1.0, clip_high=1.0).loss
    clipped = clipped_policy_loss(logprobs, advantages, **PPO, dual_clip=3.0).loss
    (cispo + clipped).sum().backward()
    assert logprobs.grad is not None
    assert old_logprobs.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_wild_log_ratios_stay_finite(dtype, sign):
    log_ratio = torch.tensor([[100.0, -100.0, 0.0]], dtype=dtype, requires_grad=True)
    advantages = torch.full((1, 3), sign, dtype=dtype)
    for dual_clip in (None, 3.0):
        loss = clipped_policy_loss(log_ratio, advantages, **PPO, dual_clip=dual_clip).loss
        assert loss.isfinite().all()
        assert slopes(loss, log_ratio) == [0, 0, -sign]
    expected_high = -1.2 if sign > 0 else math.exp(20)
    assert clipped_policy_loss(log_ratio, advantages, **PPO).loss[0, 0].item() == pytest.approx(expected_high)

    cispo = cispo_loss(log_ratio, log_ratio, advantages, clip_low=1.0, clip_high=4.0).loss
    assert slopes(cispo, log_ratio) == pytest.approx([-5 * sign, -math.exp(-20) * sign, -sign])
    assert importance_weights(log_ratio, cap=math.inf)[0].tolist() == pytest.approx([math.exp(20), math.exp(-20), 1])


def test_one_advantage_per_sequence_is_that_of_all_its_tokens():
    log_ratio = torch.tensor([[0.1, 0.5], [-0.5, 0.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    short, full = (clipped_policy_loss(log_ratio, a, **PPO) for a in (advantages, advantages.expand(2, 2)))
    assert_close(short.loss, full.loss, rtol=0, atol=0)
    assert_close(short.clipped, full.clipped)


def test_advantages_that_would_mix_up_the_sequences_are_refused():
    log_ratio = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"`advantages` must have shape \(2, 2\) or \(2, 1\), got \(2,\)"):
        clipped_policy_loss(log_ratio, torch.zeros(2), **PPO)
    with pytest.raises(ValueError, match=r"`advantages` must have shape"):
        cispo_loss(log_ratio, log_ratio, torch.zeros(1, 2), clip_low=1.0, clip_high=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_low": -0.1, "clip_high": 0.2}, r"`clip_low` must be >= 0, got -0.1"),
        ({"clip_low": 0.2, "clip_high": math.nan}, r"`clip_high` must be >= 0, got nan"),
        ({"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 1.0}, r"`dual_clip` must be > 1, got 1.0"),
    ],
)
def test_wrong_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        clipped_policy_loss(torch.zeros(1, 1), torch.zeros(1, 1), **arguments)


def test_wrong_caps_are_refused():
    zero = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"`clip_high` must be >= 0, got -0.1"):
        cispo_loss(zero, zero, zero, clip_low=1.0, clip_high=-0.1)
    with pytest.raises(ValueError, match=r"`cap` must be > 0, got -1.0"):
        importance_weights(zero, cap=-1.0)
