import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import masked_mean, masked_var, whiten

X = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
ALL = torch.ones(4, dtype=torch.bool)


def test_mean_and_variance_by_hand():
    mask = torch.tensor([True, True, False, True])
    assert_close(masked_mean(X, mask), torch.tensor(7 / 3, dtype=torch.float64))
    # deviations -4/3, -1/3, 5/3: squares sum to 42/9
    assert_close(masked_var(X, mask), torch.tensor(42 / 27, dtype=torch.float64))
    assert_close(masked_var(X, mask, unbiased=True), torch.tensor(42 / 18, dtype=torch.float64))


def test_mean_of_bool_and_integers_is_a_fraction():
    mask = torch.tensor([[True, True], [True, False]])
    assert_close(masked_mean(torch.tensor([[True, False], [False, True]]), mask), torch.tensor(1 / 3))
    assert_close(masked_mean(torch.tensor([[3, 4], [6, 100]]), mask), torch.tensor(13 / 3))


def test_whiten_uses_the_biased_variance():
    expected = torch.tensor([-1.34164, -0.44721, 0.44721, 1.34164], dtype=torch.float64)
    assert_close(whiten(X, ALL), expected, rtol=0, atol=5e-6)


def test_whiten_without_shift_keeps_the_mean():
    kept = whiten(X, ALL, shift_mean=False)
    assert_close(kept.mean(), X.mean())
    assert_close(kept - X.mean(), whiten(X, ALL))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_is_zero_where_nothing_counts(shift_mean):
    mask = torch.tensor([True, False, True, False])
    whitened = whiten(X, mask, shift_mean=shift_mean)
    assert_close(whitened[~mask], torch.zeros(2, dtype=torch.float64), rtol=0, atol=0)
    # of 1 and 3: mean 2, deviation 1
    assert_close(whitened[mask], torch.tensor([-1.0, 1.0], dtype=torch.float64) + (0 if shift_mean else 2))


def test_whiten_eps_is_added_to_the_variance():
    assert_close(whiten(X, ALL, eps=1.0)[3], torch.tensor(1.5 / 1.5, dtype=torch.float64))  # var 1.25 + 1 = 1.5^2


@pytest.mark.parametrize("function", [masked_mean, masked_var, whiten])
def test_empty_mask_gives_zero_and_a_zero_gradient(function):
    x = X.clone().requires_grad_()
    result = function(x, ~ALL)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert_close(result, torch.zeros_like(result), rtol=0, atol=0)
    assert_close(gradient, torch.zeros_like(X), rtol=0, atol=0)


def test_one_value_has_no_variance_and_a_finite_gradient():
    x = X.clone().requires_grad_()
    only_first = torch.tensor([True, False, False, False])
    variance = masked_var(x, only_first, unbiased=True)
    (gradient,) = torch.autograd.grad(whiten(x, only_first).sum() + variance, x)
    assert variance == 0
    assert_close(gradient, torch.zeros_like(X), rtol=0, atol=0)


def test_gradients_are_those_of_the_formulas():
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    assert torch.autograd.gradcheck(lambda x: masked_mean(x, mask), x)
    assert torch.autograd.gradcheck(lambda x: masked_var(x, mask, unbiased=True), x)
    assert torch.autograd.gradcheck(lambda x: whiten(x, mask, shift_mean=False), x)


@pytest.mark.parametrize("function", [masked_mean, masked_var, whiten])
def test_masks_that_torch_would_broadcast_or_read_as_weights_are_refused(function):
    with pytest.raises(ValueError, match=r"`mask` must be bool, got torch.int64"):
        function(X, ALL.long())
    with pytest.raises(ValueError, match=r"\(2, 4\), got \(4,\)"):
        function(X.expand(2, 4), ALL)


def test_whiten_refuses_eps_zero():
    with pytest.raises(ValueError, match=r"`eps` must be > 0, got 0"):
        whiten(X, ALL, eps=0.0)
