import math

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import kl_estimate, kl_penalty

GRADIENTS = ["k2", "k3", "ratio_k1", "ratio_k3"]


@pytest.fixture
def policy_logits():
    return torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)


@pytest.fixture
def ref():
    return torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()


def gradient_of(scalar, logits):
    return torch.autograd.grad(scalar, logits, retain_graph=True)[0]


def reverse_kl(logits, ref):
    """KL(policy || reference)."""
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - ref)).sum()


def forward_kl(logits, ref):
    """KL(reference || policy)."""
    return (ref.exp() * (ref - logits.log_softmax(-1))).sum()


@pytest.mark.parametrize(
    ("log_ratio", "k1", "k2", "k3"),
    [(1.0, 1.0, 0.5, math.exp(-1)), (-1.0, -1.0, 0.5, math.e - 2), (0.1, 0.1, 0.005, 0.0048374180)],
)
def test_estimators_by_hand(log_ratio, k1, k2, k3):
    logprobs, ref = torch.tensor([log_ratio - 2.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    estimates = [kl_estimate(logprobs, ref, estimator=name).item() for name in ("k1", "k2", "k3")]
    assert estimates == pytest.approx([k1, k2, k3], abs=1e-10)


def test_expected_values(policy_logits, ref):
    logprobs = policy_logits.log_softmax(-1).detach()
    expected = {
        name: (logprobs.exp() * kl_estimate(logprobs, ref, estimator=name)).sum() for name in ("k1", "k2", "k3")
    }
    assert_close(expected["k1"], reverse_kl(policy_logits, ref).detach())
    assert_close(expected["k3"], reverse_kl(policy_logits, ref).detach())
    assert (expected["k2"] - expected["k1"]).abs() > 1e-2


def test_expected_gradients_of_the_plain_estimators(policy_logits, ref):
    logprobs = policy_logits.log_softmax(-1)
    probs = logprobs.exp().detach()  # tokens are drawn: no gradient through the draw

    def expected_gradient(name):
        return gradient_of((probs * kl_estimate(logprobs, ref, estimator=name)).sum(), policy_logits)

    reverse = gradient_of(reverse_kl(policy_logits, ref), policy_logits)
    assert_close(expected_gradient("k2"), reverse)
    assert_close(expected_gradient("k3"), gradient_of(forward_kl(policy_logits, ref), policy_logits))


def test_k1_descends_nothing_as_a_loss_and_everything_in_the_reward(policy_logits, ref):
    logprobs = policy_logits.log_softmax(-1)
    probs = logprobs.exp().detach()
    k1 = kl_estimate(logprobs, ref, estimator="k1")
    as_loss = gradient_of((probs * k1).sum(), policy_logits)
    in_reward = gradient_of((probs * k1.detach() * logprobs).sum(), policy_logits)
    assert_close(as_loss, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert_close(in_reward, gradient_of(reverse_kl(policy_logits, ref), policy_logits))


@pytest.mark.parametrize("value", ["k1", "k2", "k3"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_expected_gradient_of_the_penalty_on_policy(policy_logits, ref, value, gradient):
    logprobs = policy_logits.log_softmax(-1)
    penalty = kl_penalty(logprobs, ref, logprobs.detach(), value=value, gradient=gradient)
    obtained = gradient_of((logprobs.exp().detach() * penalty).sum(), policy_logits)
    divergence = forward_kl if gradient == "k3" else reverse_kl
    assert_close(obtained, gradient_of(divergence(policy_logits, ref), policy_logits))


@pytest.mark.parametrize("gradient", ["ratio_k1", "ratio_k3"])
def test_ratio_gradients_are_exact_off_policy(policy_logits, ref, gradient):
    old = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    penalty = kl_penalty(policy_logits.log_softmax(-1), ref, old, gradient=gradient)
    obtained = gradient_of((old.exp() * penalty).sum(), policy_logits)
    assert_close(obtained, gradient_of(reverse_kl(policy_logits, ref), policy_logits))


@pytest.mark.parametrize("value", ["k1", "k2", "k3"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_value_is_the_named_estimator(policy_logits, ref, value, gradient):
    logprobs, old = policy_logits.log_softmax(-1), torch.full((4,), math.log(0.25), dtype=torch.float64)
    penalty = kl_penalty(logprobs, ref, old, value=value, gradient=gradient)
    assert_close(penalty, kl_estimate(logprobs, ref, estimator=value), rtol=0, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient_per_token_is_that_of_the_written_formula(gradient):
    generator = torch.Generator().manual_seed(3)
    logprobs, ref, old = (-torch.rand(6, dtype=torch.float64, generator=generator) * 4 for _ in range(3))
    logprobs.requires_grad_()
    log_ratio, ratio = logprobs - ref, (logprobs - old).exp()
    k3 = (-log_ratio).exp() - 1 + log_ratio
    written = {"k2": log_ratio**2 / 2, "k3": k3, "ratio_k1": ratio * log_ratio, "ratio_k3": ratio * k3}[gradient]
    expected = gradient_of(written.sum(), logprobs)
    assert_close(gradient_of(kl_penalty(logprobs, ref, old, gradient=gradient).sum(), logprobs), expected)


def test_reference_and_old_policy_get_no_gradient():
    logprobs, ref, old = (torch.tensor([-value], dtype=torch.float64, requires_grad=True) for value in (1.0, 2.0, 3.0))
    (kl_penalty(logprobs, ref, old) + kl_estimate(logprobs, ref, estimator="k3")).sum().backward()
    assert logprobs.grad is not None
    assert ref.grad is None
    assert old.grad is None


def test_equal_policies_have_exactly_no_penalty():
    logprobs = torch.tensor([-0.1, -7.3, -1e-8], requires_grad=True)
    penalty = kl_penalty(logprobs, logprobs.detach(), logprobs.detach())
    assert_close(penalty, torch.zeros(3), rtol=0, atol=0)
    assert_close(gradient_of(penalty.sum(), logprobs), torch.zeros(3), rtol=0, atol=0)


def test_k3_keeps_its_digits_in_single_precision():
    small = torch.tensor([1e-3])
    assert_close(kl_estimate(small, torch.zeros(1), estimator="k3"), torch.tensor([4.99833e-7]), rtol=1e-3, atol=0)


def test_estimate_is_clamped_at_twenty_nats():
    logprobs = torch.tensor([100.0, -100.0, 19.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64)
    k1, k2, k3 = (kl_estimate(logprobs, zero, estimator=name) for name in ("k1", "k2", "k3"))
    assert k1.tolist() == [20, -20, 19]
    assert k2.tolist() == [200, 200, 180.5]
    assert k3.tolist() == pytest.approx([math.exp(-20) + 19, math.exp(20) - 21, math.exp(-19) + 18])
    assert gradient_of(k2.sum(), logprobs).tolist() == [0, 0, 19]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_penalty_holds_its_gradient_at_the_clamp(gradient):
    logprobs = torch.tensor([100.0, -100.0], requires_grad=True)
    penalty = kl_penalty(logprobs, torch.zeros(2), logprobs.detach(), value="k2", gradient=gradient)
    slope = gradient_of(penalty.sum(), logprobs)
    expected = {
        "k2": [20, -20],
        "k3": [1 - math.exp(-20), 1 - math.exp(20)],
        "ratio_k1": [21, -19],
        "ratio_k3": [20, -20],
    }
    assert penalty.tolist() == [200, 200]
    assert slope.tolist() == pytest.approx(expected[gradient])


def test_penalty_is_finite_for_a_wild_ratio():
    logprobs = torch.tensor([100.0, -100.0], requires_grad=True)
    penalty = kl_penalty(logprobs, torch.zeros(2), torch.zeros(2))
    assert penalty.isfinite().all()
    assert gradient_of(penalty.sum(), logprobs).tolist() == pytest.approx([20 * math.exp(20), -20 * math.exp(-20)])


def test_wrong_choices_are_refused():
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="`estimator` must be one of k1, k2, k3, got 'kl'"):
        kl_estimate(zero, zero, estimator="kl")
    with pytest.raises(ValueError, match="`gradient` must be one of k2, k3, ratio_k1, ratio_k3, got 'k1'"):
        kl_penalty(zero, zero, zero, gradient="k1")
    with pytest.raises(ValueError, match="got 'ratio_k3'"):
        kl_penalty(zero, zero, zero, value="ratio_k3")
