"""What stands where a mask is False reaches neither a result nor a gradient."""

from typing import get_args

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import (
    Aggregation,
    aggregate,
    cispo_loss,
    clipped_policy_loss,
    kl_penalty,
    masked_mean,
    masked_var,
    sequence_log_ratio,
    sequence_logprobs,
    whiten,
)

MASK = torch.arange(5) < torch.tensor([5, 0, 2, 1]).unsqueeze(1)
CLIP = {"clip_low": 0.2, "clip_high": 0.2}

FUNCTIONS = {
    "masked_mean": masked_mean,
    "masked_var": masked_var,
    "masked_var_unbiased": lambda x, mask: masked_var(x, mask, unbiased=True),
    "whiten": whiten,
    "whiten_unshifted": lambda x, mask: whiten(x, mask, shift_mean=False),
    "sequence_mean": lambda x, mask: sequence_log_ratio(x, mask, reduction="mean"),
    "sequence_sum": lambda x, mask: sequence_log_ratio(x, mask, reduction="sum"),
    "sequence_logprobs": sequence_logprobs,
    "sequence_logprobs_mean": lambda x, mask: sequence_logprobs(x, mask, average=True),
    **{
        f"aggregate_{mode}": lambda x, mask, mode=mode: aggregate(x, mask, mode, max_length=6)
        for mode in get_args(Aggregation)
    },
    **{
        f"aggregate_{mode}_shared": lambda x, mask, mode=mode: aggregate(x, mask, mode, normalizer=7.0)
        for mode in get_args(Aggregation)
    },
    "gspo": lambda x, mask: aggregate(
        clipped_policy_loss(
            sequence_log_ratio(x, mask, reduction="mean"), torch.ones(4, 1, dtype=x.dtype), **CLIP
        ).loss,
        mask,
        "seq-mean-token-mean",
    ),
}


@pytest.fixture
def values():
    return torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(10))


def result_and_gradient(function, x, mask):
    x = x.clone().requires_grad_()
    before = x.detach().clone()
    result = function(x, mask)
    # unequal weights: those of a plain sum would hide a gradient that moves along a row
    weights = torch.linspace(1, 2, result.numel(), dtype=torch.float64).reshape(result.shape)
    (gradient,) = torch.autograd.grad((weights * result).sum(), x)
    assert_close(x.detach(), before, rtol=0, atol=0, equal_nan=True)  # arguments are not written to
    return result.detach(), gradient


@pytest.mark.parametrize("fill", [torch.nan, 1e9, torch.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_content_under_the_mask_does_not_matter(values, name, fill):
    clean = result_and_gradient(FUNCTIONS[name], torch.where(MASK, values, 0), MASK)
    dirty = result_and_gradient(FUNCTIONS[name], torch.where(MASK, values, fill), MASK)
    assert_close(dirty, clean, rtol=0, atol=0)
    assert clean[1][MASK].abs().sum() > 0
    assert not dirty[1][~MASK].any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_content_that_counts_matters(values, name):
    clean, _ = result_and_gradient(FUNCTIONS[name], values, MASK)
    changed, _ = result_and_gradient(FUNCTIONS[name], values + torch.where(MASK, values.cos(), 0), MASK)
    assert not torch.allclose(clean, changed)


@pytest.mark.parametrize("fill", [torch.nan, 1e9, -torch.inf])
def test_losses_without_a_mask_after_filling_as_documented(values, fill):
    def loss_and_gradient(content):
        logprobs = torch.where(MASK, -values.abs(), content).requires_grad_()
        old_logprobs = torch.where(MASK, -values.abs() - 0.1, content)
        filled, old_filled = (torch.where(MASK, x, 0) for x in (logprobs, old_logprobs))
        advantages = torch.ones(4, 1, dtype=torch.float64)
        terms = clipped_policy_loss(filled - old_filled, advantages, **CLIP).loss
        terms = terms + cispo_loss(filled, filled - old_filled, advantages, clip_low=1.0, clip_high=1.0).loss
        terms = terms + kl_penalty(filled, 2 * old_filled, old_filled)
        loss = aggregate(terms, MASK, "token")
        return loss.detach(), torch.autograd.grad(loss, logprobs)[0]

    assert_close(loss_and_gradient(fill), loss_and_gradient(0.0), rtol=0, atol=0)


def test_a_broken_token_that_counts_is_seen():
    log_ratio = torch.tensor([[torch.nan, 0.0]])
    loss = clipped_policy_loss(log_ratio, torch.ones(1, 2), **CLIP).loss
    assert aggregate(loss, torch.ones(1, 2, dtype=torch.bool), "token").isnan()
