"""Pairs of paths, ranked by the true return."""

from collections import Counter

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
