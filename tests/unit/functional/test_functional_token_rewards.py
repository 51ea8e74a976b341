"""The reward of a completion on its tokens."""

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import rewards_of_tokens

LENGTHS = [3, 1, 4, 2]
GENERATOR = torch.Generator().manual_seed(3)
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
REWARDS = torch.randn(4, dtype=torch.float64, generator=GENERATOR)
GIVEN = torch.randn(4, 4, dtype=torch.float64, generator=GENERATOR).masked_fill(~MASK, 0)
KL = torch.randn(4, 4, dtype=torch.float64, generator=GENERATOR)


def slow(rewards, lengths, given, kl, kl_coef):
    """What each token earns, one after the other."""
    earned = [[0.0] * 4 for _ in lengths]
    for row, length in enumerate(lengths):
        left = float(rewards[row])
        for token in range(length):
            own = 0.0 if given is None else float(given[row, token])
            left -= own
            earned[row][token] = own - (0.0 if kl is None else kl_coef * float(kl[row, token]))
        earned[row][length - 1] += left
    return torch.tensor(earned, dtype=torch.float64)


def test_by_hand():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    got = rewards_of_tokens(
        torch.tensor([1.0, -2.0]),
        mask,
        given=torch.tensor([[0.25, 0.5, 0.0], [0.0, -1.0, 0.5]]),
        kl=torch.tensor([[1.0, 2.0, 50.0], [0.0, -1.0, 3.0]]),
        kl_coef=0.5,
    )
    # row 0: .25 - .5; .5 + (1 - .75) - 1; row 1: 0; -1 + .5; .5 + (-2 + .5) - 1.5
    assert got.tolist() == [[-0.25, -0.25, 0.0], [0.0, -0.5, -2.5]]


@pytest.mark.parametrize("given", [None, GIVEN], ids=["whole", "by_token"])
@pytest.mark.parametrize("kl", [None, KL], ids=["no_kl", "kl"])
def test_it_is_that_of_a_slow_loop(given, kl):
    got = rewards_of_tokens(REWARDS, MASK, given=given, kl=kl, kl_coef=0.3)
    assert_close(got, slow(REWARDS, LENGTHS, given, kl, 0.3), atol=1e-12, rtol=0)


def test_the_sum_over_tokens_is_the_reward_less_the_kl():
    got = rewards_of_tokens(REWARDS, MASK, given=GIVEN, kl=KL, kl_coef=0.3)
    assert_close(got.sum(1), REWARDS - 0.3 * KL.masked_fill(~MASK, 0).sum(1), atol=1e-12, rtol=0)


def test_the_signs():
    """A better completion earns more at its last token alone, going away from the reference costs where it is done."""
    before = rewards_of_tokens(REWARDS, MASK, given=GIVEN, kl=KL, kl_coef=0.3)
    better = rewards_of_tokens(REWARDS + 1, MASK, given=GIVEN, kl=KL, kl_coef=0.3) - before
    last = torch.nn.functional.one_hot(torch.tensor(LENGTHS) - 1, 4).double()
    assert_close(better, last, atol=1e-12, rtol=0)
    farther = KL.clone()
    farther[2, 1] += 1
    assert_close(
        (rewards_of_tokens(REWARDS, MASK, given=GIVEN, kl=farther, kl_coef=0.3) - before)[2],
        torch.tensor([0.0, -0.3, 0.0, 0.0], dtype=torch.float64),
        atol=1e-12,
        rtol=0,
    )


def test_padding_changes_nothing_and_earns_nothing():
    before = rewards_of_tokens(REWARDS, MASK, given=GIVEN, kl=KL, kl_coef=0.3)
    wider, kl = (torch.nn.functional.pad(each, (0, 3)) for each in (MASK, KL))
    kl[~wider] = 77.0
    after = rewards_of_tokens(REWARDS, wider, given=torch.nn.functional.pad(GIVEN, (0, 3)), kl=kl, kl_coef=0.3)
    assert_close(after[:, :4], before, atol=0, rtol=0)
    assert (after[~wider] == 0).all()


def test_it_is_as_wide_as_the_widest_and_changes_no_argument():
    given, kl = GIVEN.clone(), KL.clone()
    got = rewards_of_tokens(REWARDS.float(), MASK, given=given, kl=kl, kl_coef=0.3)
    assert got.dtype == torch.float64
    assert rewards_of_tokens(REWARDS.float(), MASK).dtype == torch.float32
    assert torch.equal(given, GIVEN)
    assert torch.equal(kl, KL)


def test_a_mask_of_numbers_is_refused():
    with pytest.raises((TypeError, ValueError), match="mask"):
        rewards_of_tokens(REWARDS, MASK.long())
