from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import Aggregation, aggregate, normalizer

MODES = get_args(Aggregation)
MAX_LENGTH = 8


def mask_of(lengths, width):
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


@pytest.fixture
def batch():
    """Eight sequences of very different length, one of them empty."""
    generator = torch.Generator().manual_seed(1)
    loss = torch.randn(8, MAX_LENGTH, dtype=torch.float64, generator=generator)
    return loss.requires_grad_(), mask_of([1, 8, 0, 3, 5, 2, 8, 1], MAX_LENGTH)


@pytest.mark.parametrize(
    ("mode", "expected", "denominator"),
    [("token", 10 / 6, 6), ("seq-mean-token-mean", 1.5, 2), ("seq-mean-token-sum", 5.0, 2), ("constant", 0.625, 16)],
)
def test_two_sequences_by_hand(mode, expected, denominator):
    loss = torch.tensor([[1.0, 1.0, 9.0, 9.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    mask = mask_of([2, 4], 4)
    result = aggregate(loss, mask, mode, max_length=MAX_LENGTH)
    assert_close(result, torch.tensor(expected, dtype=torch.float64))
    assert normalizer(mask, mode, max_length=MAX_LENGTH) == denominator


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bounds", [[0, 4, 8], [0, 2, 4, 6, 8], [0, 3, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
def test_micro_batches_add_up_to_the_whole(batch, mode, bounds):  # the part of it that is arithmetic
    loss, mask = batch
    whole = aggregate(loss, mask, mode, max_length=MAX_LENGTH)
    (whole_gradient,) = torch.autograd.grad(whole, loss)

    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    total = torch.stack([normalizer(mask[part], mode, max_length=MAX_LENGTH) for part in parts]).sum()
    summed = sum(aggregate(loss[part], mask[part], mode, normalizer=total) for part in parts)
    (summed_gradient,) = torch.autograd.grad(summed, loss)

    assert_close(summed, whole, rtol=0, atol=1e-12)
    assert_close(summed_gradient, whole_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_own_normalizer_is_the_default(batch, mode):
    loss, mask = batch
    own = normalizer(mask, mode, max_length=MAX_LENGTH)
    expected = aggregate(loss, mask, mode, max_length=MAX_LENGTH)
    assert_close(aggregate(loss, mask, mode, normalizer=own), expected, rtol=0, atol=0)
    assert_close(aggregate(loss, mask, mode, normalizer=2 * float(own)), expected / 2)


@pytest.mark.parametrize("mode", MODES)
def test_fully_masked_rows_and_further_padding_change_nothing(batch, mode):
    loss, mask = batch
    padded_loss = torch.nn.functional.pad(loss, (0, 3, 0, 2), value=7.0)
    padded_mask = torch.nn.functional.pad(mask, (0, 3, 0, 2), value=False)
    expected = aggregate(loss, mask, mode, max_length=MAX_LENGTH)
    assert_close(aggregate(padded_loss, padded_mask, mode, max_length=MAX_LENGTH), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", [None, torch.tensor(0.0), torch.tensor(5.0)])
def test_all_masked_gives_zero_and_zero_gradients_that_exist(mode, given):
    loss = torch.full((2, 3), torch.nan, dtype=torch.float64, requires_grad=True)
    result = aggregate(loss, torch.zeros(2, 3, dtype=torch.bool), mode, normalizer=given, max_length=MAX_LENGTH)
    result.backward()
    assert result == 0
    assert_close(loss.grad, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_order_of_rows_does_not_matter(batch, mode):
    loss, mask = batch
    order = torch.tensor([3, 7, 0, 2, 6, 1, 5, 4])
    expected = aggregate(loss, mask, mode, max_length=MAX_LENGTH)
    assert_close(aggregate(loss[order], mask[order], mode, max_length=MAX_LENGTH), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_duplicating_the_batch_leaves_the_mean(batch, mode):
    loss, mask = batch
    doubled = aggregate(loss.repeat(2, 1), mask.repeat(2, 1), mode, max_length=MAX_LENGTH)
    assert_close(doubled, aggregate(loss, mask, mode, max_length=MAX_LENGTH), rtol=0, atol=1e-12)


def test_weight_of_a_token_in_each_mode():
    mask = mask_of([2, 4], 4)
    loss = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    weights = {}
    for mode in MODES:
        (gradient,) = torch.autograd.grad(aggregate(loss, mask, mode, max_length=MAX_LENGTH), loss)
        weights[mode] = (gradient[0, 0].item(), gradient[1, 0].item())
    assert weights["token"] == pytest.approx((1 / 6, 1 / 6))
    assert weights["seq-mean-token-mean"] == pytest.approx((1 / 4, 1 / 8))
    assert weights["seq-mean-token-sum"] == pytest.approx((1 / 2, 1 / 2))
    assert weights["constant"] == pytest.approx((1 / 16, 1 / 16))


def test_constant_needs_a_length():
    loss, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`max_length` must be >= 1 for \"constant\", got None"):
        aggregate(loss, mask, "constant")
    with pytest.raises(ValueError, match=r"`max_length` must be >= 1 for \"constant\", got 0"):
        normalizer(mask, "constant", max_length=0)


def test_wrong_arguments_are_refused():
    loss, mask = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`mode` must be one of token, .*, got 'mean'"):
        aggregate(loss, mask, "mean", normalizer=1.0)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        normalizer(mask, "tokens")
    with pytest.raises(ValueError, match="`mask` must have the shape of the values"):
        aggregate(loss, mask[:1], "token")
    with pytest.raises(ValueError, match="`mask` must be bool"):
        normalizer(mask.long(), "token")
