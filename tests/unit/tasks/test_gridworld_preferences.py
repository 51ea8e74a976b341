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
from lit_posttrain.tasks.gridworld_preferences import SHARES

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


@pytest.mark.parametrize("kind", ["through_wall", "leap", "standing"])
def test_a_kind_of_fault_is_drawn_where_it_has_a_weight(kind):
    rows = preference_rows(60, split="train", seed=4, shares={"shortest": 1, "unfinished": 0.01, kind: 3})
    kinds = Counter(fault(row["prompt"], row["rejected"]) for row in rows)
    assert kinds[kind] >= 50, kinds
    assert all(score_path(Grid.from_prompt(row["prompt"]), row["chosen"]).success for row in rows)


def fault(prompt: str, path: str) -> str:
    """Of a path with one fault at most: which."""
    grid = Grid.from_prompt(prompt)
    cells = [grid.start, *((ord(word[0]) - ord("a"), int(word[1]) - 1) for word in path.split())]
    steps = [abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in pairwise(cells)]
    if steps[-1:] == [0]:
        return "standing" if max(steps[:-1], default=1) == 1 and grid.walls.isdisjoint(cells) else "several"
    if any(step != 1 for step in steps):
        leaps = sum(step != 1 for step in steps)
        return "leap" if leaps == 1 and grid.walls.isdisjoint(cells) and cells[-1] == grid.goal else "several"
    if not grid.walls.isdisjoint(cells):
        return "through_wall" if cells[-1] == grid.goal else "several"
    return "unfinished" if cells[-1] != grid.goal else "none"


def test_shares_are_weights_of_training_alone_and_their_order_does_not_matter():
    assert preference_rows(9, split="train", shares={name: 2 * share for name, share in SHARES.items()}) == (
        preference_rows(9, split="train")
    )
    forth = {"shortest": 1, "leap": 2, "standing": 1}
    back = dict(reversed(forth.items()))
    assert preference_rows(9, split="train", shares=forth) == preference_rows(9, split="train", shares=back)
    plain, other = (PreferenceGenerator(num_pairs=9, num_validation=9, shares=shares) for shares in (SHARES, forth))
    assert plain("validation") == other("validation")
    assert plain("train") != other("train")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"shortest": 1, "lazy": 1}, "no kind 'lazy': there are shortest, noisy"),
        ({"shortest": 1, "unfinished": -1}, r"finite and >= 0, got -1 for `unfinished`"),
        ({"shortest": float("nan"), "unfinished": 1}, "finite and >= 0, got nan for `shortest`"),
        ({"noisy": 1, "unfinished": 1}, "a weight above 0 to `shortest` and to one of unfinished, invalid, standing"),
        ({"shortest": 1, "leap": 1}, "a weight above 0 to `shortest` and to one of unfinished, invalid, standing"),
    ],
)
def test_shares_are_checked(shares, message):
    with pytest.raises(ValueError, match=message):
        preference_rows(1, split="train", shares=shares)
