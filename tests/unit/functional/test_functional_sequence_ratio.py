import math

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import aggregate, clipped_policy_loss, sequence_log_ratio


@pytest.mark.parametrize(("reduction", "ratio"), [("mean", 1.0869040), ("sum", 1.2840254)])
def test_ratio_by_hand(reduction, ratio):
    log_ratio = torch.tensor([[0.1, -0.05, 0.2, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    sequence = sequence_log_ratio(log_ratio, mask, reduction=reduction)
    assert sequence.exp()[0].tolist() == pytest.approx([ratio] * 4, abs=1e-7)


@pytest.fixture
def batch():
    """Ratios inside and outside of the range, advantages of both signs, and one row without tokens."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor([5, 2, 0, 3, 1, 4])
    mask = torch.arange(5) < lengths.unsqueeze(1)
    logprobs = torch.randn(6, 5, dtype=torch.float64, generator=generator).requires_grad_()
    old_logprobs = logprobs.detach() - 0.2 * torch.randn(6, 5, dtype=torch.float64, generator=generator)
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5, 1.5, -2.0], dtype=torch.float64)
    return logprobs, old_logprobs, advantages, mask


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("clip", [0.05, math.inf])
def test_token_losses_average_to_the_sequence_level_loss(batch, reduction, clip):
    logprobs, old_logprobs, advantages, mask = batch
    log_ratio = sequence_log_ratio(logprobs - old_logprobs, mask, reduction=reduction)
    result = clipped_policy_loss(log_ratio, advantages.unsqueeze(1), clip_low=clip, clip_high=clip)
    loss = aggregate(result.loss, mask, "seq-mean-token-mean")
    (gradient,) = torch.autograd.grad(loss, logprobs)

    losses = []
    for row in range(6):
        length = int(mask[row].sum())
        if length == 0:
            continue
        total = (logprobs[row, :length] - old_logprobs[row, :length]).sum()
        ratio = torch.exp(total / length if reduction == "mean" else total)
        advantage = advantages[row]
        losses.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage))
    direct = torch.stack(losses).mean()
    (direct_gradient,) = torch.autograd.grad(direct, logprobs)

    assert result.clipped[mask].any() == (clip == 0.05)
    assert_close(loss, direct, rtol=0, atol=1e-12)
    assert_close(gradient, direct_gradient, rtol=0, atol=1e-12)
    assert gradient.abs().sum() > 0


def test_every_token_of_a_sequence_carries_the_same_gradient(batch):
    logprobs, old_logprobs, advantages, mask = batch
    log_ratio = sequence_log_ratio(logprobs - old_logprobs, mask, reduction="mean")
    loss = clipped_policy_loss(log_ratio, advantages.unsqueeze(1), clip_low=math.inf, clip_high=math.inf).loss
    (gradient,) = torch.autograd.grad(aggregate(loss, mask, "seq-mean-token-mean"), logprobs)
    ratio = log_ratio[0, 0].exp().item()
    assert gradient[0].tolist() == pytest.approx([-ratio * 1.0 / 5 / 5] * 5)  # 5 tokens, 5 sequences with tokens
    assert gradient[~mask].tolist() == [0] * int((~mask).sum())


def test_rows_without_tokens_have_ratio_one(batch):
    logprobs, old_logprobs, _, mask = batch
    for reduction in ("mean", "sum"):
        assert sequence_log_ratio(logprobs - old_logprobs, mask, reduction=reduction)[2].tolist() == [0] * 5


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="`reduction` must be mean or sum, got 'max'"):
        sequence_log_ratio(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), reduction="max")
