"""Judging a policy by completions, with an engine that writes what it is told to."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain import RewardFunctions, Sampling, Validation
from lit_posttrain.batching import stable_hash
from lit_posttrain.rollout.engine import LocalEngine
from lit_posttrain.rollout.evaluator import VALIDATION_SEED, PromptEvaluator
from tests.rollout_stubs import StubEngine

SAMPLING = Sampling(max_new_tokens=8, temperature=0.7, top_k=5)
ROWS = [
    {"prompt": "a", "lengths": [4, 1, 2, 5], "cut": True},
    {"prompt": "b", "lengths": [3, 3, 1, 1]},
    {"prompt": "c", "lengths": [1, 1, 1, 1]},
]


def longer_than_3(completion_ids, **columns):
    return [float(len(ids) > 3) for ids in completion_ids]


def length(completion_ids, **columns):
    """None of the shortest ones."""
    return [None if len(ids) == 1 else float(len(ids)) for ids in completion_ids]


def alone(tensor):
    return tensor


def evaluator(engine=None, rewards=length, **settings):
    given = {name: settings.pop(name) for name in ("metrics", "num_samples") if name in settings}
    functions = None if rewards is None else RewardFunctions(rewards)
    validation = Validation(**given, batch_size=settings.pop("val_batch_size", None))
    return PromptEvaluator(engine or StubEngine(), functions, sampling=SAMPLING, validation=validation, **settings)


def test_the_numbers():
    judge = evaluator(metrics={"long": longer_than_3}, num_samples=4)
    judge.find_metrics(None)
    judge.evaluate(ROWS[:1])
    judge.evaluate(ROWS[1:])
    got = {name: mean.item() for name, mean in judge.pop(alone).items()}
    assert got == pytest.approx(
        {
            "val/reward": (4 + 2 + 5 + 3 + 3) / 5,  # of those that could be scored
            "val/long": 1 / 3,  # the greedy one is the first
            "val/long_sampled": 2 / 12,
            "val/pass_at_k": 1 / 3,
        }
    )
    assert all(math.isnan(mean) for mean in judge.pop(alone).values())  # collection has begun anew


def test_what_is_asked_of_the_engine():
    engine = StubEngine()
    judge = evaluator(engine, metrics={"long": longer_than_3}, num_samples=2, batch_size=7)
    judge.find_metrics(None)
    judge.evaluate(ROWS)
    sampled, greedy = engine.calls
    assert (sampled["sampling"], sampled["num_samples"]) == (SAMPLING, 2)
    assert (greedy["sampling"], greedy["num_samples"]) == (Sampling(max_new_tokens=8, temperature=0.0, top_k=5), 1)
    for call in engine.calls:
        assert call["prompt_keys"].tolist() == [stable_hash(text) for text in "abc"]  # in whatever batch, at any step
        assert (call["seed"], call["batch_size"]) == (VALIDATION_SEED, 7)


def test_the_batch_size_of_validation_goes_before_that_of_rollouts():
    for own, of_rollouts, used in ((3, 7, 3), (None, 7, 7), (None, None, None)):
        engine = StubEngine()
        evaluator(engine, num_samples=2, val_batch_size=own, batch_size=of_rollouts).evaluate(ROWS)
        assert [call["batch_size"] for call in engine.calls] == [used]


def test_without_metrics_nothing_is_written_greedily():
    engine = StubEngine()
    judge = evaluator(engine, num_samples=2)
    assert judge.judges
    judge.evaluate(ROWS)
    assert [call["num_samples"] for call in engine.calls] == [2]
    assert judge.pop(alone).keys() == {"val/reward"}


def test_without_anything_to_judge_by_nothing_is_written():
    engine = StubEngine()
    judge = evaluator(engine, rewards=None)
    judge.find_metrics(object())
    assert not judge.judges
    judge.evaluate(ROWS)
    assert engine.calls == []
    assert judge.pop(alone) == {}


def test_without_prompts_nothing_is_written():
    engine = StubEngine()
    evaluator(engine).evaluate([])
    assert evaluator(engine).predict([]) == []
    assert engine.calls == []


class WithScores:
    scores = {"long": longer_than_3}  # noqa: RUF012


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, ["longer_than_3"]), ({}, None), ({"len": length}, ["length"]), ({"a": f"{__name__}:length"}, ["length"])],
)
def test_metrics_that_are_given_go_before_those_of_the_data(given, found):
    judge = evaluator(metrics=given, rewards=None)
    assert judge.metrics is None
    judge.find_metrics(WithScores())
    assert (None if judge.metrics is None else judge.metrics.names) == found
    assert judge.judges == (found is not None)


def test_prediction_gives_the_rows_back():
    judge = evaluator(num_samples=4)
    rows = judge.predict(ROWS)
    assert [row["completion"] for row in rows] == ["w w w w", "w w w", "w"]
    assert [row["truncated"] for row in rows] == [True, False, False]
    assert [row["reward"] for row in rows[:2]] == [4.0, 3.0]
    assert math.isnan(rows[2]["reward"])
    assert [row["prompt"] for row in rows] == ["a", "b", "c"]
    assert "reward" not in evaluator(rewards=None).predict(ROWS)[0]
    assert "completion" not in ROWS[0]


def test_ranks_are_added_up():
    first, second = (evaluator(num_samples=2) for _ in range(2))
    first.evaluate(ROWS[:1])
    second.evaluate(ROWS[1:])
    sent = []
    second.pop(lambda totals: sent.append(totals) or totals)
    assert first.pop(lambda totals: totals + sent[0])["val/reward"].item() == pytest.approx((4 + 3 + 3) / 3)


@pytest.mark.parametrize("rows", [["a"], [("prompt", "a")]])
def test_rows_that_are_none_are_refused(make_model, word_tokenizer, rows):
    """By the engine, which is to complete them."""
    network = SimpleNamespace(model=make_model())
    module = SimpleNamespace(
        main_network=network,
        source=SimpleNamespace(tokenizer=word_tokenizer),
        trainer=SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext)),
    )
    judge = evaluator(LocalEngine(module))
    for act in (judge.evaluate, judge.predict):
        with pytest.raises(TypeError, match="must be a list of dictionaries"):
            act(rows)
        with pytest.raises(KeyError, match="needs the key `prompt`"):
            act([{"question": "a"}])


def test_numbers_are_in_single_precision():
    judge = evaluator(num_samples=2)
    judge.evaluate(ROWS)
    assert judge.pop(alone)["val/reward"].dtype == torch.float32
