import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_posttrain.functional import bradley_terry_loss


def scores(*values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_by_hand():
    chosen, rejected = scores(1.2, 1.2), scores(0.4, 0.4)
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([0.37110067] * 2, abs=6e-9)
    for margin in (1 / 3, torch.tensor([1 / 3, 1 / 3], dtype=torch.float64)):
        assert bradley_terry_loss(chosen, rejected, margin=margin).tolist() == pytest.approx([0.48679258] * 2, abs=6e-9)
    centered = bradley_terry_loss(chosen, rejected, centering=0.01)
    assert centered.tolist() == pytest.approx([0.37110067 + 0.0256] * 2, abs=6e-9)
    assert bradley_terry_loss(rejected, chosen).tolist() == pytest.approx([0.37110067 + 0.8] * 2, abs=6e-9)


def test_each_pair_has_its_own_margin():
    chosen, rejected = scores(1.2, 1.2, 0.0), scores(0.4, 0.4, 0.0)
    loss = bradley_terry_loss(chosen, rejected, margin=torch.tensor([0.0, 1 / 3, 0.0]))
    assert loss.tolist() == pytest.approx([0.37110067, 0.48679258, math.log(2)], abs=1e-7)


def test_a_constant_of_all_scores_changes_only_the_centering():
    chosen, rejected = scores(1.2, -0.3), scores(0.4, 2.0)
    plain = bradley_terry_loss(chosen, rejected, margin=0.5)
    assert_close(bradley_terry_loss(chosen + 7, rejected + 7, margin=0.5), plain)
    centered = bradley_terry_loss(chosen + 7, rejected + 7, margin=0.5, centering=0.01)
    assert_close(centered - plain, 0.01 * (chosen + rejected + 14) ** 2)


def test_descending_raises_the_chosen_and_lowers_the_rejected():
    chosen, rejected = scores(0.0), scores(0.0)
    slopes = torch.autograd.grad(bradley_terry_loss(chosen, rejected).sum(), (chosen, rejected))
    assert [slope.item() for slope in slopes] == [-0.5, 0.5]
    with_margin = torch.autograd.grad(bradley_terry_loss(chosen, rejected, margin=1.0).sum(), chosen)[0]
    assert with_margin.item() == pytest.approx(-1 / (1 + math.exp(-1)), abs=1e-12)


def test_a_linear_teacher_is_recovered_from_its_preferences():  # of the loss alone
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    teacher, first, second = draw(6), draw(20_000, 6), draw(20_000, 6)
    p = torch.sigmoid((first - second) @ teacher)
    wins = torch.rand(p.shape, generator=generator, dtype=torch.float64) < p
    chosen, rejected = (torch.where(side[:, None], first, second) for side in (wins, ~wins))
    student = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([student], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = bradley_terry_loss(chosen @ student, rejected @ student).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    student = student.detach()
    assert_close(student, teacher, atol=0.1, rtol=0)  # as it is not by a loss of another temperature or link
    right = torch.where((first - second) @ student > 0, p, 1 - p).mean()
    assert torch.maximum(p, 1 - p).mean() - right < 0.01
    held_out = draw(2000, 6)
    ranks = [(held_out @ weights).argsort().argsort().double() for weights in (student, teacher)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.98


def test_half_precision_margins_are_upcast():
    chosen, rejected = torch.tensor([1.2]), torch.tensor([0.4])
    margin = torch.tensor([1 / 3], dtype=torch.bfloat16)
    half = bradley_terry_loss(chosen.bfloat16(), rejected.bfloat16(), margin=margin)
    full = bradley_terry_loss(chosen.bfloat16().float(), rejected.bfloat16().float(), margin=margin.float())
    assert_close(half, full, rtol=0, atol=0)
    assert bradley_terry_loss(chosen, rejected, margin=torch.tensor([1])).item() > 0  # whole numbers are margins too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": -0.1}, r"`margin` must be >= 0 and finite, got -0.1"),
        ({"margin": math.nan}, r"`margin` must be >= 0 and finite, got nan"),
        ({"margin": torch.zeros(2, 1)}, r"`margin` must have the shape of the scores, \(2,\), got \(2, 1\)"),
        ({"margin": torch.zeros(1)}, r"`margin` must have the shape of the scores, \(2,\), got \(1,\)"),
        ({"centering": -0.01}, r"`centering` must be >= 0 and finite, got -0.01"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), **arguments)
