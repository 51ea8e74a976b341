"""Pairs of paths, ranked by the true return."""

from collections import Counter
from itertools import pairwise

import pytest

from lit_posttrain.rewards.gridworld import path_reward
from lit_posttrain.tasks.gridworld import (
    DemonstrationGenerator,
    Grid,
    PreferenceGenerator,
    demonstration_rows,
    is_validation,
    path_return,
    preference_rows,
    prompt_rows,
    score_path,
)
from lit_posttrain.tasks.gridworld_preferences import FAULTS, SHARES

PAIRS = preference_rows(300, split="train", seed=2)


def test_the_chosen_path_has_the_higher_return():
    for row in PAIRS:
        prompts, texts = [row["prompt"]] * 2, [row["chosen"], row["rejected"]]
        better, worse = (path_return(row["prompt"], text) for text in texts)
        assert better - worse == pytest.approx(row["margin"], abs=1e-6)
        assert row["margin"] >= 0.1
        rewards = path_reward(prompts, texts, [False, False])
        assert rewards == pytest.approx([0.7 + 0.3 * each if each else 0.0 for each in (better, worse)])


def test_unfinished_and_invalid_paths_and_detours_are_among_them():
    kinds = Counter()
    for row in PAIRS:
        score = score_path(Grid.from_prompt(row["prompt"]), row["rejected"])
        empty = not row["rejected"].strip()
        kinds[
            "stops at once" if empty else "detour" if score.success else "unfinished" if score.valid else "invalid"
        ] += 1
        assert empty or row["rejected"].startswith(" ")
    assert all(kinds[kind] >= 15 for kind in ("stops at once", "detour", "unfinished", "invalid")), kinds


def test_pairs_are_seeded_and_follow_the_prompts():
    assert preference_rows(20, split="train", seed=2) == PAIRS[:20]
    assert preference_rows(20, split="train", seed=3) != PAIRS[:20]
    assert [row["prompt"] for row in PAIRS] == [row["prompt"] for row in prompt_rows(300, split="train", seed=2)]


def test_generators_make_disjoint_splits_and_one_validation_set():
    make = PreferenceGenerator(num_pairs=30, num_validation=20, seed=1)
    assert len(make("train")) == 30
    assert make("validation") == PreferenceGenerator(num_validation=20, seed=5)("validation")
    assert all(is_validation(Grid.from_prompt(row["prompt"])) for row in make("validation"))
    shown = DemonstrationGenerator(num_demonstrations=5, num_validation=2, seed=1)("train")
    want = demonstration_rows(5, split="train", seed=1)
    assert [row["completion"] for row in shown] == [f" {row['completion']}" for row in want]


@pytest.mark.parametrize("difference", [0, 1.0])
def test_the_difference_is_checked(difference):
    with pytest.raises(ValueError, match=r"`min_difference` must be above 0 and at most 0\.9"):
        preference_rows(1, split="train", min_difference=difference)


@pytest.mark.parametrize("kind", ["longer", *FAULTS])
def test_the_rejected_path_is_of_the_kind_that_has_a_weight(kind):
    rows = preference_rows(60, split="train", seed=4, shares={"unfinished": 1e-3, kind: 3})
    kinds = Counter(fault(row) for row in rows)
    if kind == "invalid":
        assert kinds["unfinished"] == kinds["longer"] == 0
    else:
        assert kinds[kind] >= 50, kinds  # where it does not apply to a grid another one is drawn
    assert all(score_path(Grid.from_prompt(row["prompt"]), row["chosen"]).success for row in rows)


@pytest.mark.parametrize("kind", ["through_wall", "astray"])
def test_twins_differ_in_one_cell(kind):
    rows = preference_rows(60, split="train", seed=4, shares={"unfinished": 1e-3, kind: 3})
    differences = Counter()
    for row in rows:
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        if len(chosen) == len(rejected):
            differences[sum(a != b for a, b in zip(chosen, rejected, strict=True))] += 1
    assert set(differences) == {1}
    assert differences[1] >= 50


def fault(row) -> str:
    """Of a rejected path with one fault at most: which."""
    grid = Grid.from_prompt(row["prompt"])
    chosen, rejected = (cells(row[name]) for name in ("chosen", "rejected"))
    path = [grid.start, *rejected]
    steps = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in pairwise(path)]
    arrived, wall = path[-1] == grid.goal, not grid.walls.isdisjoint(path)
    if not arrived:
        until = rejected[:-1] if steps[-1:] == [0] else rejected
        return ("unfinished" if until == rejected else "standing") if until == chosen[: len(until)] else "several"
    wrong = [step for step in steps if step != 1]
    if wall or not wrong:
        return "several" if wrong else "through_wall" if wall else "longer"
    if len(rejected) == len(chosen) - 2:
        return "leap" if wrong == [3] else "several"
    return "astray" if set(wrong) == {3} else "several"


def cells(path: str) -> list[tuple[int, int]]:
    return [(ord(word[0]) - ord("a"), int(word[1]) - 1) for word in path.split()]


def test_shares_are_weights_of_training_alone_and_their_order_does_not_matter():
    assert preference_rows(9, split="train", shares={name: 2 * share for name, share in SHARES.items()}) == (
        preference_rows(9, split="train")
    )
    forth = {"longer": 1, "leap": 2, "standing": 1}
    back = dict(reversed(forth.items()))
    assert preference_rows(9, split="train", shares=forth) == preference_rows(9, split="train", shares=back)
    plain, other = (PreferenceGenerator(num_pairs=9, num_validation=9, shares=shares) for shares in (SHARES, forth))
    assert plain("validation") == other("validation")
    assert plain("train") != other("train")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"longer": 1, "lazy": 1}, "no kind 'lazy': there are longer, unfinished, invalid"),
        ({"longer": 1, "unfinished": -1}, r"finite and >= 0, got -1 for `unfinished`"),
        ({"longer": "much", "unfinished": 1}, "finite and >= 0, got much for `longer`"),
        ({"longer": True, "unfinished": 1}, "finite and >= 0, got True for `longer`"),
        (None, "`shares` must give a weight to each of longer, unfinished"),
        ({"longer": float("nan"), "unfinished": 1}, "finite and >= 0, got nan for `longer`"),
        ({"longer": 1, "unfinished": 0}, "a weight above 0 to one of unfinished, invalid, standing, got"),
        ({"longer": 1, "leap": 1}, "a weight above 0 to one of unfinished, invalid, standing, got"),
    ],
)
def test_shares_are_checked(shares, message):
    with pytest.raises(ValueError, match=message):
        preference_rows(1, split="train", shares=shares)
