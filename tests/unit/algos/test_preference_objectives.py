"""The losses of DPO by name: against slow loops in plain Python, and what they refuse."""

from math import exp, log

import pytest
import torch

from lit_posttrain.algos.preference_objectives import OBJECTIVES, PairObjective, find_objective, used_numbers
from lit_posttrain.batching import EncodedPair, EncodedRow, JudgedRow, PreferenceBatch, UnpairedBatch

ROW = EncodedRow([5], [7], [True])
CHOSEN, REJECTED = [-0.3, 1.7, -2.0], [0.4, -1.1, -2.5]
LABELS = [True, False, True]
GIVEN = {"label_smoothing": 0.0, "margin": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
SPECIAL = {
    "sigmoid": {"label_smoothing": 0.1},
    "robust": {"label_smoothing": 0.2},
    "simpo": {"margin": 0.7},
    "kto": {"desirable_weight": 1.3, "undesirable_weight": 0.6},
}
BETA, KL = 0.4, 0.25


def sigmoid(x):
    return 1 / (1 + exp(-x))


def odds(logprob):
    return log(exp(logprob) / (1 - exp(logprob)))


# Of one pair (w, r), with beta b.
SLOW = {
    "sigmoid": lambda w, r, b: -0.9 * log(sigmoid(b * (w - r))) - 0.1 * log(sigmoid(-b * (w - r))),
    "robust": lambda w, r, b: (-0.8 * log(sigmoid(b * (w - r))) + 0.2 * log(sigmoid(-b * (w - r)))) / 0.6,
    "hinge": lambda w, r, b: max(0.0, 1 - b * (w - r)),
    "ipo": lambda w, r, b: (w - r - 1 / (2 * b)) ** 2,
    "apo_zero": lambda w, r, b: 1 - sigmoid(b * w) + sigmoid(b * r),
    "apo_down": lambda w, r, b: sigmoid(b * w) + 1 - sigmoid(b * (w - r)),
    "nca": lambda w, r, b: -log(sigmoid(b * w)) - (log(sigmoid(-b * w)) + log(sigmoid(-b * r))) / 2,
    "sppo": lambda w, r, b: (w - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    "simpo": lambda w, r, b: -log(sigmoid(b * (w - r) - 0.7)),
    "orpo": lambda w, r, b: -w - b * log(sigmoid(odds(w) - odds(r))),
}
KTO = {
    True: lambda h: 1.3 * (1 - sigmoid(BETA * (h - KL))),
    False: lambda h: 0.6 * (1 - sigmoid(BETA * (KL - h))),
}


def numbers_of(name):
    return used_numbers(find_objective(name), name, BETA, GIVEN | SPECIAL.get(name, {}))


def test_every_name_is_tried():
    assert {*SLOW, "kto"} == set(OBJECTIVES)


@pytest.mark.parametrize("name", SLOW)
def test_a_loss_of_pairs_is_that_of_a_slow_loop(name):
    objective = find_objective(name)
    shift = 3.0 if not objective.needs_reference else 0.0  # log-probs are negative
    chosen, rejected = ([value - shift for value in side] for side in (CHOSEN, REJECTED))
    batch = PreferenceBatch.collate([EncodedPair(ROW, ROW)] * 3, pad_id=0)
    got = objective.losses(
        batch, torch.tensor(chosen + rejected, dtype=torch.float64), torch.zeros(()), numbers_of(name)
    )
    want = [SLOW[name](w, r, BETA) for w, r in zip(chosen, rejected, strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-10)


def test_kto_is_that_of_a_slow_loop():
    objective = find_objective("kto")
    batch = UnpairedBatch.collate([JudgedRow(ROW, label) for label in LABELS], pad_id=0)
    values = torch.tensor(CHOSEN, dtype=torch.float64)
    got = objective.losses(batch, values, torch.tensor(KL, dtype=torch.float64), numbers_of("kto"))
    want = [KTO[label](h) for label, h in zip(LABELS, CHOSEN, strict=True)]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=0, atol=1e-10)
    sides = objective.sides(batch, values)
    assert sides.chosen[sides.chosen_mask].tolist() == [-0.3, -2.0]
    assert sides.rejected[sides.rejected_mask].tolist() == [1.7]
    assert objective.correct(batch, values, torch.tensor(-9.0)).tolist() == [False, False, False]
    assert objective.correct(batch, -values, torch.tensor(KL)).tolist() == [True, True, True]


def test_which_need_a_reference_and_which_take_means():
    assert {name for name, each in OBJECTIVES.items() if not each.needs_reference} == {"simpo", "orpo"}
    assert {name for name, each in OBJECTIVES.items() if each.length_normalized} == {"ipo", "simpo", "orpo"}
    assert {name for name, each in OBJECTIVES.items() if not each.takes_sums} == {"simpo", "orpo"}


def test_an_objective_of_ones_own():
    mine = PairObjective(lambda chosen, rejected, *, beta: beta * (rejected - chosen))
    assert find_objective(mine) is mine
    assert used_numbers(mine, "mine", 0.5, GIVEN) == {"beta": 0.5}


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"`loss` must be one of sigmoid, .*got `sigmod`. Did you mean `sigmoid`"):
        find_objective("sigmod")


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_beta_must_be_positive(name, beta):
    with pytest.raises(ValueError, match="`beta` must be > 0"):
        used_numbers(find_objective(name), name, beta, GIVEN)


@pytest.mark.parametrize(
    ("name", "number", "value", "says"),
    [
        ("hinge", "label_smoothing", 0.1, "`label_smoothing` means nothing to the loss `hinge`.*sigmoid, robust"),
        ("sigmoid", "margin", 1.0, "`margin` means nothing to the loss `sigmoid`.*belongs to simpo"),
        ("sigmoid", "desirable_weight", 2.0, "belongs to kto"),
        ("robust", "label_smoothing", 0.5, r"`label_smoothing` must be in \[0, 0.5\)"),
        ("simpo", "margin", -1.0, "`margin` must be >= 0"),
        ("kto", "undesirable_weight", -1.0, "`undesirable_weight` must be >= 0"),
    ],
)
def test_numbers_that_do_not_fit(name, number, value, says):
    with pytest.raises(ValueError, match=says):
        used_numbers(find_objective(name), name, 0.1, GIVEN | {number: value})
