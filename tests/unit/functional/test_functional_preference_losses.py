import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import (
    aggregate,
    apo_down_loss,
    apo_zero_loss,
    bradley_terry_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    nca_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    sequence_logprobs,
    simpo_loss,
    sppo_loss,
)

BETA = 0.1
LOG2 = math.log(2)


class Case(NamedTuple):
    """What a loss is known to be; slopes are d loss / d (chosen, rejected) log-ratio where both are 0."""

    function: object
    at_the_pair_of_at24: float
    at_the_start: float
    slopes_at_the_start: tuple[float, float]


CASES = {
    "dpo": Case(dpo_loss, 0.62095705, LOG2, (-BETA / 2, BETA / 2)),
    "cdpo": Case(partial(dpo_loss, label_smoothing=0.1), 0.63595705, LOG2, (-0.4 * BETA, 0.4 * BETA)),
    "robust": Case(partial(robust_dpo_loss, label_smoothing=0.1), 0.60220705, LOG2, (-BETA / 1.6, BETA / 1.6)),
    "hinge": Case(hinge_loss, 0.85, 1, (-BETA, BETA)),
    "ipo": Case(ipo_loss, 12.25, 25, (-1 / BETA, 1 / BETA)),
    "apo_zero": Case(apo_zero_loss, 0.96252342, 1, (-BETA / 4, BETA / 4)),
    "apo_down": Case(apo_down_loss, 0.98754934, 1, (0, BETA / 4)),
    "nca": Case(nca_loss, 1.35082481, 2 * LOG2, (-BETA / 4, BETA / 4)),
    "sppo": Case(sppo_loss, 36.25, 50, (-1 / BETA, 1 / BETA)),
}
OF_THE_DIFFERENCE = ("dpo", "cdpo", "robust", "hinge", "ipo")

# All losses of a pair as functions of two tensors (B,), those of mean log-probabilities and scores too.
PAIRED = {
    **{name: partial(case.function, beta=BETA) for name, case in CASES.items()},
    "dpo_of_means": partial(dpo_loss, beta=5.0),
    "simpo": partial(simpo_loss, beta=2.5, margin=1.375),
    "odds_ratio": odds_ratio_loss,
    "bradley_terry": partial(bradley_terry_loss, margin=0.5, centering=0.01),
    "kto": lambda chosen, rejected: (
        kto_loss(chosen, torch.ones_like(chosen, dtype=torch.bool), torch.tensor(0.2), beta=BETA)
        + kto_loss(rejected, torch.zeros_like(rejected, dtype=torch.bool), torch.tensor(0.2), beta=BETA)
    ),
}


def double(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradients(loss, *leaves):
    return torch.autograd.grad(loss.sum(), leaves)


@pytest.fixture
def log_ratios():
    """Of chosen and rejected, [6] each; both orders and signs."""
    return torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(11)).mul(3).unbind()


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    logprobs, ref_logprobs = double(-10.0, -12.0), double(-11.0, -11.5)
    chosen, rejected = (logprobs - ref_logprobs).split(1)
    assert CASES[name].function(chosen, rejected, beta=BETA).item() == pytest.approx(
        CASES[name].at_the_pair_of_at24, abs=6e-9
    )


def test_slope_by_hand():
    chosen, rejected = double(1.0), double(-0.5)
    slopes = gradients(dpo_loss(chosen, rejected, beta=BETA), chosen, rejected)
    assert [slope.item() for slope in slopes] == pytest.approx([-0.04625702, 0.04625702], abs=6e-9)


def test_means_per_token_by_hand():
    # log-probability in each token of completions of 5 and 8, and rubbish behind the shorter one
    mask = torch.arange(8) < torch.tensor([[5], [8]])

    def mean(total_chosen, total_rejected):
        each = torch.tensor([[total_chosen / 5], [total_rejected / 8]], dtype=torch.float64).expand(2, 8)
        return sequence_logprobs(torch.where(mask, each, torch.nan), mask, average=True)

    logprobs = mean(-10.0, -12.0)
    chosen, rejected = (logprobs - mean(-11.0, -11.5)).split(1)
    assert (chosen - rejected).item() == pytest.approx(0.2625, abs=1e-12)
    assert ipo_loss(chosen, rejected, beta=0.1).item() == pytest.approx(22.44390625, abs=1e-10)
    assert dpo_loss(chosen, rejected, beta=5.0).item() == pytest.approx(0.23834451, abs=6e-9)
    l_w, l_l = logprobs.split(1)
    assert simpo_loss(l_w, l_l, beta=2.5, margin=1.375).item() == pytest.approx(2.69493620, abs=6e-9)
    assert odds_ratio_loss(l_w, l_l).item() == pytest.approx(1.04205781, abs=6e-9)


def test_kto_by_hand():
    log_ratio, desirable = double(1.0, -0.5), torch.tensor([True, False])
    kl = torch.tensor(0.2, dtype=torch.float64)
    loss = kto_loss(log_ratio, desirable, kl, beta=BETA)
    assert loss.tolist() == pytest.approx([0.48001066, 0.48250714], abs=6e-9)
    weighted = kto_loss(log_ratio, desirable, kl, beta=BETA, desirable_weight=1.5, undesirable_weight=0.5)
    assert weighted.tolist() == pytest.approx([1.5 * 0.48001066, 0.5 * 0.48250714], abs=6e-9)


@pytest.mark.parametrize("name", CASES)
def test_at_the_start(name):
    chosen, rejected = double(0.0, 0.0), double(0.0, 0.0)
    loss = CASES[name].function(chosen, rejected, beta=BETA)
    assert loss.tolist() == pytest.approx([CASES[name].at_the_start] * 2, abs=1e-12)
    slopes = gradients(loss, chosen, rejected)
    assert [slope[0].item() for slope in slopes] == pytest.approx(CASES[name].slopes_at_the_start, abs=1e-12)


def test_kto_at_the_start():
    log_ratio, desirable = double(0.0, 0.0), torch.tensor([True, False])
    loss = kto_loss(log_ratio, desirable, torch.tensor(0.0), beta=BETA, desirable_weight=3.0, undesirable_weight=2.0)
    assert loss.tolist() == [1.5, 1.0]
    assert gradients(loss, log_ratio)[0].tolist() == pytest.approx([-0.3 / 4, 0.2 / 4], abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_small_beta_is_linear(name, log_ratios):
    beta = 1e-6
    chosen, rejected = log_ratios
    loss = CASES[name].function(chosen, rejected, beta=beta)
    slope_chosen, slope_rejected = CASES[name].slopes_at_the_start
    if name in ("ipo", "sppo"):  # the goal goes to infinity, and the pull towards it
        advance = beta * (loss - CASES[name].at_the_start * (BETA / beta) ** 2)
        expected = BETA * (slope_chosen * chosen + slope_rejected * rejected)
    else:
        advance = (loss - CASES[name].at_the_start) / beta
        expected = (slope_chosen * chosen + slope_rejected * rejected) / BETA
        assert_close(loss, torch.full_like(loss, CASES[name].at_the_start), rtol=0, atol=1e-4)
    assert_close(advance, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OF_THE_DIFFERENCE)
def test_only_the_difference_counts(name, log_ratios):
    chosen, rejected = log_ratios
    shifted = PAIRED[name](chosen + 2.5, rejected + 2.5)
    assert_close(shifted, PAIRED[name](chosen, rejected))


@pytest.mark.parametrize("name", sorted(set(CASES) - set(OF_THE_DIFFERENCE)))
def test_where_both_stand_counts(name, log_ratios):
    chosen, rejected = log_ratios
    assert not torch.isclose(PAIRED[name](chosen + 2.5, rejected + 2.5), PAIRED[name](chosen, rejected)).any()


@pytest.mark.parametrize("name", OF_THE_DIFFERENCE)
def test_swapping_the_completions_changes_the_sign_of_the_difference(name, log_ratios):
    chosen, rejected = log_ratios
    difference = chosen - rejected
    change = PAIRED[name](rejected, chosen) - PAIRED[name](chosen, rejected)
    # -log sigmoid(-x) = -log sigmoid(x) + x
    expected = {
        "dpo": BETA * difference,
        "cdpo": 0.8 * BETA * difference,
        "robust": BETA * difference / 0.8,
        "hinge": (1 + BETA * difference).relu() - (1 - BETA * difference).relu(),
        "ipo": 2 * difference / BETA,
    }
    assert_close(change, expected[name])


def test_robust_dpo_is_on_average_over_wrong_labels_the_loss_of_right_ones(log_ratios):
    chosen, rejected = log_ratios
    robust = partial(robust_dpo_loss, beta=BETA, label_smoothing=0.3)
    assert_close(0.7 * robust(chosen, rejected) + 0.3 * robust(rejected, chosen), dpo_loss(chosen, rejected, beta=BETA))


def test_without_smoothing_the_three_are_one(log_ratios):
    chosen, rejected = log_ratios
    plain = dpo_loss(chosen, rejected, beta=BETA)
    assert_close(plain, -torch.sigmoid(BETA * (chosen - rejected)).log())
    assert_close(robust_dpo_loss(chosen, rejected, beta=BETA, label_smoothing=0.0), plain)


@pytest.mark.parametrize("name", PAIRED)
def test_descending_prefers_the_chosen_one(name):
    chosen, rejected = double(-0.4, -1.0, -0.7), double(-0.5, -0.2, -0.7)
    chosen_slope, rejected_slope = gradients(PAIRED[name](chosen, rejected), chosen, rejected)
    assert (rejected_slope > 0).all()
    assert (chosen_slope < rejected_slope).all()
    if name != "apo_down":
        assert (chosen_slope < 0).all()


def test_apo_down_lowers_a_chosen_completion_too():
    chosen, rejected = double(1.0), double(-0.5)
    chosen_slope, rejected_slope = gradients(apo_down_loss(chosen, rejected, beta=BETA), chosen, rejected)
    assert rejected_slope.item() > chosen_slope.item() > 0


def test_nca_raises_the_chosen_completion_up_to_a_bound():
    bound = LOG2 / BETA
    chosen, rejected = double(bound - 0.1, bound, bound + 0.1), double(0.0, 0.0, 0.0)
    (slope,) = gradients(nca_loss(chosen, rejected, beta=BETA), chosen)
    assert slope[0] < 0 < slope[2]
    assert slope[1].item() == pytest.approx(0, abs=1e-12)


def test_squares_pull_back_from_beyond_their_goal():
    chosen, rejected = double(4.9, 5.1), double(-5.1, -4.9)
    chosen_slope, rejected_slope = gradients(sppo_loss(chosen, rejected, beta=BETA), chosen, rejected)
    assert chosen_slope.tolist() == pytest.approx([-0.2, 0.2], abs=1e-12)
    assert rejected_slope.tolist() == pytest.approx([-0.2, 0.2], abs=1e-12)
    chosen = double(4.9, 5.1)
    (slope,) = gradients(ipo_loss(chosen, torch.zeros(2), beta=BETA), chosen)
    assert slope.tolist() == pytest.approx([-0.2, 0.2], abs=1e-12)


def test_hinge_is_content_with_its_lead():
    chosen = double(9.9, 10.1)
    loss = hinge_loss(chosen, torch.zeros(2, dtype=torch.float64), beta=BETA)
    assert loss.tolist() == pytest.approx([0.01, 0], abs=1e-12)
    assert gradients(loss, chosen)[0].tolist() == [-BETA, 0]


def test_kto_saturates_on_both_sides():
    log_ratio, desirable = double(300.0, -300.0), torch.tensor([True, True])
    for sign, labels in ((1, desirable), (-1, ~desirable)):
        loss = kto_loss(sign * log_ratio, labels, torch.tensor(0.0), beta=BETA)
        assert loss.tolist() == pytest.approx([0, 1], abs=1e-12)


def test_kto_reference_point_is_not_trained_and_never_negative():
    log_ratio, desirable = double(1.0, -0.5), torch.tensor([True, False])
    kl = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(kto_loss(log_ratio, desirable, kl, beta=BETA).sum(), kl, allow_unused=True) == (None,)
    below = kto_loss(log_ratio, desirable, torch.tensor(-3.0), beta=BETA)
    assert_close(below, kto_loss(log_ratio, desirable, torch.tensor(0.0), beta=BETA), rtol=0, atol=0)


def test_simpo_margin_is_in_units_of_reward():
    chosen, rejected = double(-1.0), double(-1.55)
    assert simpo_loss(chosen, rejected, beta=2.5, margin=1.375).item() == pytest.approx(LOG2, abs=1e-12)


def test_odds_by_hand():
    # odds of 3 and 1 / 4
    chosen, rejected = double(math.log(0.75)), double(math.log(0.2))
    assert odds_ratio_loss(chosen, rejected).item() == pytest.approx(-math.log(12 / 13), abs=1e-12)


def test_odds_of_near_certainty_keep_their_digits():
    loss = odds_ratio_loss(torch.tensor([-1.0]), torch.tensor([-1e-8]))
    odds_rejected = math.exp(-1e-8) / -math.expm1(-1e-8)
    odds_chosen = math.exp(-1) / -math.expm1(-1)
    assert loss.item() == pytest.approx(math.log1p(odds_rejected / odds_chosen), rel=1e-6)


def test_odds_of_certainty_are_bounded():
    certain, chosen = torch.tensor([0.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    loss = odds_ratio_loss(chosen, certain)
    assert loss.item() == pytest.approx(20 - math.log(math.exp(-1) / -math.expm1(-1)), rel=1e-6)
    slopes = gradients(loss, chosen, certain)
    assert slopes[0].item() == pytest.approx(1 / math.expm1(-1), rel=1e-6)
    assert slopes[1].item() == 0
    assert odds_ratio_loss(certain, certain).item() == pytest.approx(LOG2)


@pytest.mark.parametrize("name", PAIRED)
def test_gradients_in_double_precision(name, log_ratios):
    chosen, rejected = (-x.abs() - 0.1 for x in log_ratios)
    assert torch.autograd.gradcheck(PAIRED[name], (chosen.requires_grad_(), rejected.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*PAIRED, *(f"{name}_steep" for name in CASES)])
def test_wild_arguments_stay_finite(name, dtype):  # section 11, E
    chosen = torch.tensor([100.0, -100.0, 100.0, -100.0, 0.0, -100.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-100.0, 100.0, 100.0, -100.0, -100.0, 0.0], dtype=dtype, requires_grad=True)
    steep = {f"{name}_steep": partial(case.function, beta=5.0) for name, case in CASES.items()}
    loss = (PAIRED | steep)[name](chosen, rejected)
    assert loss.isfinite().all()
    for slope in gradients(loss, chosen, rejected):
        assert slope.isfinite().all()


def test_a_wildly_wrong_pair_keeps_its_gradient():
    # log(sigmoid(x)) would underflow to log(0) here
    chosen, rejected = torch.tensor([-100.0], requires_grad=True), torch.tensor([100.0])
    loss = dpo_loss(chosen, rejected, beta=1.0)
    assert loss.item() == pytest.approx(200)
    assert gradients(loss, chosen)[0].item() == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIRED)
def test_half_precision_is_upcast_before_the_arithmetic(name, dtype, log_ratios):
    chosen, rejected = (-x.abs().to(dtype) for x in log_ratios)
    loss = PAIRED[name](chosen, rejected)
    assert loss.dtype == torch.float32
    assert_close(loss, PAIRED[name](chosen.float(), rejected.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRED)
def test_double_precision_stays(name, log_ratios):
    chosen, rejected = (-x.abs() for x in log_ratios)
    assert PAIRED[name](chosen, rejected).dtype == torch.float64


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_are_apart(name, log_ratios):
    chosen, rejected = (-x.abs().requires_grad_() for x in log_ratios)
    loss = PAIRED[name](chosen, rejected)
    assert loss.shape == (6,)
    for index in range(6):
        assert_close(loss[index : index + 1], PAIRED[name](chosen[index : index + 1], rejected[index : index + 1]))
    broken = PAIRED[name](torch.cat([torch.tensor([torch.nan]), chosen[1:]]), rejected)
    assert broken.isnan().tolist() == [True] + [False] * 5
    assert PAIRED[name](chosen[:0], rejected[:0]).shape == (0,)


@pytest.mark.parametrize("name", PAIRED)
def test_prompt_and_padding_do_not_matter(name):
    generator = torch.Generator().manual_seed(12)
    logprobs = -torch.rand(4, 5, dtype=torch.float64, generator=generator) - 0.1
    mask = torch.arange(5) < torch.tensor([[5], [2], [1], [3]])

    def loss_and_gradient(before, behind):
        widths = (before, behind)
        leaf = torch.nn.functional.pad(logprobs, widths, value=torch.nan).requires_grad_()
        wide_mask = torch.nn.functional.pad(mask, widths)
        chosen, rejected = sequence_logprobs(leaf, wide_mask, average=True).chunk(2)
        loss = PAIRED[name](chosen, rejected)
        (gradient,) = gradients(loss, leaf)
        assert not gradient[~wide_mask].any()
        return loss.detach(), gradient[:, before : before + 5]

    assert_close(loss_and_gradient(3, 4), loss_and_gradient(0, 0), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", PAIRED)
def test_rows_that_fill_a_batch_count_for_nothing(name):
    logprobs = -torch.linspace(0.2, 2, 24, dtype=torch.float64).reshape(6, 4).requires_grad_()
    mask = (torch.arange(4) < 3).expand(6, 4) & torch.tensor([[True], [True], [False]] * 2)

    def total(logprobs, mask):
        chosen, rejected = sequence_logprobs(logprobs, mask, average=True).chunk(2)
        real = mask.any(dim=1)[: len(chosen)]
        return aggregate(PAIRED[name](chosen, rejected).unsqueeze(1), real.unsqueeze(1), "token")

    loss = total(logprobs, mask)
    real = torch.tensor([0, 1, 3, 4])
    assert_close(loss, total(logprobs[real], mask[real]))
    (gradient,) = gradients(loss, logprobs)
    assert gradient.isfinite().all()
    assert not gradient[[2, 5]].any()


WRONG_SHAPES = [((2,), (3,)), ((2, 1), (2, 1)), ((2,), (2, 1)), ((), ())]


@pytest.mark.parametrize(("chosen", "rejected"), WRONG_SHAPES)
@pytest.mark.parametrize("name", [name for name in PAIRED if name != "kto"])
def test_shapes_that_would_mix_up_the_pairs_are_refused(name, chosen, rejected):
    with pytest.raises(ValueError, match=r"`chosen_.*` and `rejected_.*` must have one shape \(B,\), got \("):
        PAIRED[name](torch.zeros(chosen), torch.zeros(rejected))


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", [*CASES, "simpo", "kto"])
def test_wrong_betas_are_refused(name, beta):
    x = torch.zeros(1)
    call = {
        "simpo": lambda: simpo_loss(x, x, beta=beta, margin=1.0),
        "kto": lambda: kto_loss(x, x.bool(), torch.tensor(0.0), beta=beta),
    }
    with pytest.raises(ValueError, match=f"`beta` must be > 0 and finite, got {beta}"):
        call.get(name, lambda: CASES[name].function(x, x, beta=beta))()


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, math.nan])
@pytest.mark.parametrize("function", [dpo_loss, robust_dpo_loss])
def test_wrong_label_smoothing_is_refused(function, label_smoothing):
    with pytest.raises(ValueError, match=rf"`label_smoothing` must be in \[0, 0.5\), got {label_smoothing}"):
        function(torch.zeros(1), torch.zeros(1), beta=BETA, label_smoothing=label_smoothing)


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf])
def test_wrong_simpo_margins_are_refused(margin):
    with pytest.raises(ValueError, match=f"`margin` must be >= 0 and finite, got {margin}"):
        simpo_loss(torch.zeros(1), torch.zeros(1), beta=2.5, margin=margin)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"desirable": torch.ones(2)}, r"`desirable` must be bool and of shape \(B,\).* got torch.float32"),
        ({"desirable": torch.ones(1, dtype=torch.bool)}, r"`desirable` must be bool.*\(1,\) for \(2,\)"),
        (
            {"desirable": torch.ones(2, 1, dtype=torch.bool), "log_ratio": torch.zeros(2, 1)},
            r"`desirable` must be bool and of shape \(B,\)",
        ),
        ({"kl": torch.zeros(2)}, r"`kl` must have shape \(\), got \(2,\)"),
        ({"desirable_weight": -1.0}, r"`desirable_weight` must be >= 0 and finite, got -1.0"),
        ({"undesirable_weight": math.nan}, r"`undesirable_weight` must be >= 0 and finite, got nan"),
    ],
)
def test_wrong_kto_arguments_are_refused(changed, message):
    arguments = {
        "log_ratio": torch.zeros(2),
        "desirable": torch.ones(2, dtype=torch.bool),
        "kl": torch.tensor(0.0),
        "beta": BETA,
    }
    kto_loss(**arguments)
    with pytest.raises(ValueError, match=message):
        kto_loss(**arguments | changed)
