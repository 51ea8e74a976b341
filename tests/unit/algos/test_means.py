"""Means over batches and ranks."""

import math

import torch

from lit_posttrain.batching.ranks import Means


def alone(tensor):
    return tensor


def test_means_are_over_numbers_and_not_over_batches():
    means = Means(["loss", "accuracy"])
    means.update("loss", torch.tensor([1.0, 2.0, 3.0]))
    means.update("loss", torch.tensor([[10.0]], dtype=torch.float64))
    means.update("accuracy", torch.tensor([True, False]).float())
    assert {name: mean.item() for name, mean in means.pop(alone).items()} == {"loss": 4.0, "accuracy": 0.5}
    means.update("accuracy", torch.tensor([0.25]))
    popped = means.pop(alone)
    assert popped["accuracy"] == 0.25
    assert math.isnan(popped["loss"])
    assert popped["loss"].dtype == torch.float32


def test_a_rank_without_numbers_takes_part():
    """It has seen a batch, as the others have, whose rows stood in for none."""
    means, other = Means(["loss"]), Means(["loss"])
    assert means.is_empty
    means.update("loss", torch.zeros(0))
    assert not means.is_empty
    other.update("loss", torch.tensor([2.0, 4.0]))
    sent = []
    other.pop(lambda totals: sent.append(totals) or totals)
    assert means.pop(lambda totals: totals + sent[0])["loss"] == 3.0
    assert means.is_empty


def test_no_names():
    assert Means([]).pop(alone) == {}


def test_half_precision_is_added_up_in_float32():
    means = Means(["share"])
    for _ in range(20):
        means.update("share", torch.full((1000,), 0.5, dtype=torch.bfloat16))
    assert means.pop(alone)["share"] == 0.5
