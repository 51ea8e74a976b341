"""Groups of options: how they are given, what is refused, and what is written down of them."""

from pathlib import Path

import pytest

from lit_posttrain import Critic, Rollouts, Sampling, Validation
from lit_posttrain.rollout.options import as_mapping, check_count, options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Rollouts()),
        ({}, Rollouts()),
        ({"num_epochs": 3, "seed": 7}, Rollouts(num_epochs=3, seed=7)),
        (Rollouts(batch_size=2), Rollouts(batch_size=2)),
    ],
)
def test_options_or_a_mapping_or_nothing(given, expected):
    assert options(Rollouts, given, argument="rollouts") == expected


def test_options_stay_the_object_that_they_are():
    given = Sampling(top_k=3)
    assert options(Sampling, given, argument="sampling") is given


def test_an_unknown_key_is_named_with_those_that_there_are():
    with pytest.raises(TypeError, match=r"`rollouts` has no option `epochs`: it has num_minibatches, num_ep"):
        options(Rollouts, {"num_minibatches": 2, "epochs": 2}, argument="rollouts")


@pytest.mark.parametrize("given", [4, "twice", [("num_epochs", 2)], Sampling()])
def test_another_type_is_named(given):
    message = rf"`rollouts` must be a `Rollouts` or a mapping of num_minibatches, .* got {type(given).__name__}\."
    with pytest.raises(TypeError, match=message):
        options(Rollouts, given, argument="rollouts")


def test_what_is_out_of_range_is_refused_in_a_mapping_too():
    with pytest.raises(ValueError, match=r"`rollouts.num_epochs` must be >= 1 or None, got 0"):
        options(Rollouts, {"num_epochs": 0}, argument="rollouts")
    with pytest.raises(ValueError, match=r"`validation.num_samples` must be >= 1, got 0"):
        Validation(num_samples=0)


@pytest.mark.parametrize(
    "chosen",
    [
        Sampling(max_new_tokens=3, temperature=0.5, top_p=0.9, top_k=4),
        Rollouts(num_minibatches=2, num_epochs=3, batch_size=4, seed=5),
        Rollouts(),
        Validation(num_samples=2, batch_size=3),
        Critic(start="shared", lr=0.1, coef=2.0, clip=None, gae_lambda=0.5, warmup_steps=6),
    ],
)
def test_what_is_written_down_is_plain_and_gives_the_options_back(chosen):
    written = as_mapping(chosen)
    assert all(value is None or type(value) in (bool, int, float, str) for value in written.values())
    assert options(type(chosen), written, argument="a") == chosen


def test_what_is_no_plain_value_is_written_as_the_default():
    written = as_mapping(Validation(metrics={"short": lambda completions: [0.0]}, num_samples=2))
    assert written == {"metrics": None, "num_samples": 2, "batch_size": None}
    named = {"short": "file.py:short"}
    assert as_mapping(Validation(metrics=named))["metrics"] == named
    assert as_mapping(Critic(Path("/a/critic")))["start"] == "/a/critic"


@pytest.mark.parametrize("count", [0, -3])
def test_counts(count):
    with pytest.raises(ValueError, match=rf"`rows` must be >= 1, got {count}\."):
        check_count("rows", count)
    with pytest.raises(ValueError, match=rf"`rows` must be >= 1 or None, got {count}\."):
        check_count("rows", count, optional=True)
    with pytest.raises(ValueError, match=r"`rows` must be >= 1, got None"):
        check_count("rows", None)
    check_count("rows", None, optional=True)
    check_count("rows", 1)
