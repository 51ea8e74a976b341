import math

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import group_advantages, overlong_penalty

NAN = math.nan


def rewards_of(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1, 0, 0, 0], [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]),  # 1.4997, -.4999
        ([1, 1, 0, 0], [0.5 / (math.sqrt(1 / 3) + 1e-4)] * 2 + [-0.5 / (math.sqrt(1 / 3) + 1e-4)] * 2),  # +-.8659
    ],
)
def test_grpo_by_hand(rewards, expected):
    advantages = group_advantages(rewards_of(*rewards), group_size=4)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-10)


def test_leave_one_out_by_hand():
    advantages = group_advantages(rewards_of(1, 0, 0, 0), group_size=4, baseline="leave_one_out", scale="none")
    assert advantages.tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3], abs=1e-10)


@pytest.mark.parametrize("group_size", [2, 3, 6])
def test_leave_one_out_is_the_mean_of_the_others(group_size):
    rewards = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    advantages = group_advantages(rewards, group_size=group_size, baseline="leave_one_out", scale="none")
    for index, reward in enumerate(rewards):
        first = index // group_size * group_size
        others = [rewards[i] for i in range(first, first + group_size) if i != index]
        assert_close(advantages[index], reward - torch.stack(others).mean())
    centered = group_advantages(rewards, group_size=group_size, scale="none")
    assert_close(advantages, group_size / (group_size - 1) * centered)


def test_groups_are_contiguous_and_apart():
    rewards = rewards_of(1, 0, 0, 0, 30, 10, 20, 20)
    together = group_advantages(rewards, group_size=4)
    assert_close(together[:4], group_advantages(rewards[:4], group_size=4), rtol=0, atol=0)
    assert_close(together[4:], group_advantages(rewards[4:], group_size=4), rtol=0, atol=0)


def test_batch_scale_is_the_deviation_of_all_rewards():
    rewards = rewards_of(1, 0, 5, 2)
    # mean 2, squares 1 + 4 + 9 + 0 = 14, ddof 1
    deviation = math.sqrt(14 / 3)
    advantages = group_advantages(rewards, group_size=2, scale="batch", eps=1e-4)
    assert advantages.tolist() == pytest.approx([x / (deviation + 1e-4) for x in (0.5, -0.5, 1.5, -1.5)], abs=1e-10)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_rewards_give_exactly_zero(baseline, scale, dtype):
    # 0.1 + 0.1 + 0.1 is not 3 * 0.1: a plain mean would leave a rest, and a small eps would blow it up
    rewards = torch.cat([rewards_of(0.1, 0.1, 0.1, dtype=dtype), rewards_of(0.7, 0.7, 0.7, dtype=dtype)])
    advantages = group_advantages(rewards, group_size=3, baseline=baseline, scale=scale, eps=1e-16)
    assert advantages.tolist() == [0] * 6


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_what_cannot_be_scored_is_left_out(bad):
    rewards = rewards_of(1, bad, 0, 0.5)
    # of 1, 0 and 0.5: mean 0.5, deviation 0.5
    by_group = group_advantages(rewards, group_size=4)
    assert by_group.tolist() == pytest.approx([0.5 / 0.5001, 0, -0.5 / 0.5001, 0], abs=1e-10)
    left_out = group_advantages(rewards, group_size=4, baseline="leave_one_out", scale="none")
    assert left_out.tolist() == pytest.approx([0.75, 0, -0.75, 0], abs=1e-10)
    by_batch = group_advantages(torch.cat([rewards, rewards_of(3, 3, 3, 3)]), group_size=4, scale="batch")
    deviation = torch.tensor([1, 0, 0.5, 3, 3, 3, 3], dtype=torch.float64).std().item()
    assert by_batch[:4].tolist() == pytest.approx(
        [0.5 / (deviation + 1e-4), 0, -0.5 / (deviation + 1e-4), 0], abs=1e-10
    )


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_with_fewer_than_two_scores_have_no_advantage(baseline, scale):
    rewards = rewards_of(NAN, 5, NAN, NAN, NAN, NAN, 1, 0, 1)
    advantages = group_advantages(rewards, group_size=3, baseline=baseline, scale=scale)
    assert advantages[:6].tolist() == [0] * 6
    assert advantages[6] > 0 > advantages[7]


def test_shifting_rewards_changes_nothing_and_scaling_cancels():
    rewards = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    advantages = group_advantages(rewards, group_size=4, eps=1e-12)
    assert_close(group_advantages(3 * rewards + 7, group_size=4, eps=1e-12), advantages)


def test_order_inside_a_group_is_carried_along():
    rewards = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    order = torch.tensor([2, 0, 3, 1, 5, 4, 7, 6])
    assert_close(group_advantages(rewards[order], group_size=4), group_advantages(rewards, group_size=4)[order])


def test_integers_and_half_precision_become_single_precision():
    expected = group_advantages(rewards_of(1, 0, 0, 0, dtype=torch.float32), group_size=4)
    assert_close(group_advantages(torch.tensor([1, 0, 0, 0]), group_size=4), expected, rtol=0, atol=0)
    half = rewards_of(1, 0, 0, 0, dtype=torch.bfloat16)
    assert_close(group_advantages(half, group_size=4), expected, rtol=0, atol=0)


def test_no_gradient_reaches_the_rewards_and_they_are_not_written_to():
    rewards = rewards_of(1, NAN, 0, 0).requires_grad_()
    before = rewards.detach().clone()
    assert not group_advantages(rewards, group_size=4).requires_grad
    assert_close(rewards.detach(), before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 1}, r"`group_size` must be >= 2, got 1"),
        ({"group_size": 3}, r"`group_size` must divide the number of rewards, got 3 and 4"),
        ({"group_size": 4, "baseline": "median"}, r"`baseline` must be one of mean, leave_one_out, got 'median'"),
        ({"group_size": 4, "scale": "std"}, r"`scale` must be one of group, batch, none, got 'std'"),
        ({"group_size": 4, "eps": 0.0}, r"`eps` must be > 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards_of(1, 0, 0, 0), **arguments)


def test_rewards_per_token_are_refused():
    with pytest.raises(ValueError, match=r"`rewards` must have shape \(B,\), got \(2, 2\)"):
        group_advantages(torch.zeros(2, 2), group_size=2)


def test_overlong_penalty_by_hand():
    lengths = torch.tensor([1, 6, 7, 8, 10, 12])
    assert overlong_penalty(lengths, max_length=10, buffer=4).tolist() == [0, 0, -0.25, -0.5, -1, -1]
    assert overlong_penalty(lengths, max_length=10, buffer=4, factor=2.0).tolist() == [0, 0, -0.5, -1, -2, -2]


def test_overlong_penalty_refuses_wrong_arguments():
    with pytest.raises(ValueError, match=r"`buffer` must be in 1..max_length \(10\), got 11"):
        overlong_penalty(torch.tensor([1]), max_length=10, buffer=11)
    with pytest.raises(ValueError, match=r"`buffer` must be in 1..max_length \(10\), got 0"):
        overlong_penalty(torch.tensor([1]), max_length=10, buffer=0)
    with pytest.raises(ValueError, match=r"`factor` must be >= 0, got -1.0"):
        overlong_penalty(torch.tensor([1]), max_length=10, buffer=4, factor=-1.0)
