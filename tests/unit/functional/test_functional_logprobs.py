import math

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import sequence_logprobs, token_entropy, token_logprobs


@pytest.fixture
def logits():
    return torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 3


def test_logprobs_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64).log()  # probabilities 1/7, 2/7, 4/7
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(math.log(2 / 7), abs=1e-12)
    # at T = 1/2 probabilities are squared: 1/21, 4/21, 16/21
    cold = token_logprobs(logits, torch.tensor([1]), temperature=0.5)
    assert cold.item() == pytest.approx(math.log(4 / 21), abs=1e-12)


def test_entropy_by_hand():
    logits = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log()

    def entropy(*weights):
        return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)

    assert token_entropy(logits).item() == pytest.approx(entropy(1, 2, 4), abs=1e-12)
    assert token_entropy(logits, temperature=0.5).item() == pytest.approx(entropy(1, 4, 16), abs=1e-12)


def test_each_position_is_read_at_its_own_token(logits):
    token_ids = torch.tensor([[4, 0, 2], [1, 3, 3]])
    result = token_logprobs(logits, token_ids, temperature=0.7)
    for row in range(2):
        for position in range(3):
            weights = [math.exp(logit / 0.7) for logit in logits[row, position].tolist()]
            expected = math.log(weights[token_ids[row, position]] / sum(weights))
            assert result[row, position].item() == pytest.approx(expected, abs=1e-12)


def test_gradients_in_double_precision(logits):
    logits.requires_grad_()
    token_ids = torch.tensor([[4, 0, 2], [1, 3, 3]])
    assert torch.autograd.gradcheck(lambda z: token_logprobs(z, token_ids, temperature=0.7), logits)
    assert torch.autograd.gradcheck(lambda z: token_entropy(z, temperature=0.7), logits)


def test_raising_a_logprob_raises_its_logit_and_lowers_the_others(logits):
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(token_logprobs(logits, torch.full((2, 3), 1)).sum(), logits)
    assert (gradient[..., 1] > 0).all()
    assert (gradient[..., [0, 2, 3, 4]] < 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_upcast_before_the_arithmetic(logits, dtype):
    half, token_ids = logits.to(dtype), torch.tensor([[4, 0, 2], [1, 3, 3]])
    assert_close(
        token_logprobs(half, token_ids, temperature=0.7), token_logprobs(half.float(), token_ids, temperature=0.7)
    )
    assert_close(token_entropy(half, temperature=0.7), token_entropy(half.float(), temperature=0.7))


def test_double_precision_stays(logits):
    assert token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long)).dtype == torch.float64
    assert token_entropy(logits).dtype == torch.float64


def test_large_logits_keep_their_digits():
    # GPT-2 writes logits around -100; the constant must cancel before rounding does harm
    logits = torch.tensor([[0.1, 0.2, 0.4]])
    assert_close(
        token_logprobs(logits.double() - 2.0**14, torch.tensor([0])).float(), token_logprobs(logits, torch.tensor([0]))
    )
    far = torch.tensor([[0.0, 1.0]]) - 2.0**20  # exact in float32
    assert_close(token_logprobs(far, torch.tensor([1])), torch.tensor([-math.log1p(math.exp(-1))]))


def test_forbidden_tokens_have_no_entropy_and_a_finite_gradient():
    logits = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    entropy = token_entropy(logits)
    (gradient,) = torch.autograd.grad(entropy, logits)
    assert entropy.item() == pytest.approx(math.log(2), abs=1e-12)
    assert_close(gradient, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_wrong_arguments_are_refused(logits):
    with pytest.raises(ValueError, match=r"`token_ids` must have the shape .* \(2, 3\), got \(2, 2\)"):
        token_logprobs(logits, torch.zeros(2, 2, dtype=torch.long))  # gather alone would take it
    with pytest.raises(ValueError, match=r"`temperature` must be > 0, got 0"):
        token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long), temperature=0.0)
    with pytest.raises(ValueError, match=r"`temperature` must be > 0, got -1"):
        token_entropy(logits, temperature=-1.0)


def test_sequence_logprobs_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -5.0, 9.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    logprobs.requires_grad_()
    mask = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])
    total = sequence_logprobs(logprobs, mask)
    mean = sequence_logprobs(logprobs, mask, average=True)
    assert total.tolist() == [-7, -5, 0]
    assert mean.tolist() == pytest.approx([-7 / 3, -5, 0], abs=1e-12)
    assert torch.autograd.grad(total.sum(), logprobs)[0].tolist() == mask.double().tolist()
    slopes = torch.autograd.grad(mean.sum(), logprobs)[0]
    assert_close(slopes, mask / torch.tensor([[3.0], [1.0], [1.0]], dtype=torch.float64))


@pytest.mark.parametrize("average", [False, True])
def test_sequence_logprobs_are_summed_in_single_precision(average):
    # in bfloat16 the sum has 3 digits
    logprobs = torch.full((1, 1001), -0.125, dtype=torch.bfloat16)
    result = sequence_logprobs(logprobs, torch.ones(1, 1001, dtype=torch.bool), average=average)
    assert result.dtype == torch.float32
    assert result.item() == (-0.125 if average else -125.125)


def test_sequence_logprobs_need_a_mask_of_their_shape():
    with pytest.raises(ValueError, match=r"`mask` must have the shape of the values, \(2, 3\), got \(3,\)"):
        sequence_logprobs(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="`mask` must be bool"):
        sequence_logprobs(torch.zeros(2, 3), torch.ones(2, 3))
