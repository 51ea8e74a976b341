"""Processes that train together: one of them, and a Trainer that plays two."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain.batching import Ranks, StepStatistics
from lit_posttrain.batching import ranks as ranks_module
from lit_posttrain.functional import whiten

VALUES = torch.tensor([[1.0, 2.0, 50.0], [4.0, -3.0, 0.5]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])


class Strategy:
    """This process is the second of two; the other one comes with the same numbers, and says yes to all."""

    def __init__(self):
        self.called = []

    def reduce(self, tensor, reduce_op):
        self.called.append(reduce_op)
        return {"sum": 2 * tensor, "max": tensor}[reduce_op]

    def reduce_boolean_decision(self, decision, all):
        self.called.append(("decision", all))
        return True


def module_of(trainer=None, device="cpu"):
    return SimpleNamespace(_trainer=trainer, trainer=trainer, device=torch.device(device))


@pytest.fixture
def strategy():
    return Strategy()


@pytest.fixture
def two(strategy):
    return Ranks(module_of(SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)))


def test_one_process_without_a_trainer():
    ranks = Ranks(module_of())
    assert ranks.place == (0, 1)
    assert torch.equal(ranks.sum(VALUES), VALUES)
    assert torch.equal(ranks.max(VALUES), VALUES)
    assert [ranks.any(flag) for flag in (True, False)] == [True, False]
    assert ranks.gather({"a": 1}) == [{"a": 1}]
    assert torch.equal(ranks.whiten(VALUES, MASK), whiten(VALUES, MASK))


def test_one_process_of_a_trainer_asks_no_strategy():
    ranks = Ranks(module_of(SimpleNamespace(world_size=1, global_rank=0)))
    assert ranks.sum(torch.tensor(3)).item() == 3
    assert not ranks.any(False)
    assert ranks.gather(3) == [3]


def test_the_trainer_is_looked_up_at_each_call(strategy):
    module = module_of()
    ranks = Ranks(module)
    assert ranks.place == (0, 1)
    module._trainer = module.trainer = SimpleNamespace(world_size=2, global_rank=1, strategy=strategy)
    assert ranks.place == (1, 2)
    assert ranks.sum(torch.tensor(3)).item() == 6


def test_two_processes(two, strategy):
    assert torch.equal(two.sum(VALUES), 2 * VALUES)
    assert torch.equal(two.max(VALUES), VALUES)
    assert two.any(False)
    assert strategy.called == ["sum", "max", ("decision", False)]


def test_what_is_reduced_is_on_the_module_s_device():
    assert Ranks(module_of(device="meta")).sum(torch.ones(2)).device.type == "meta"


def test_things_of_both_are_gathered(two, monkeypatch):
    def gather(into, thing):
        into[:] = [{"of": "the other"}, thing]

    monkeypatch.setattr(ranks_module.dist, "all_gather_object", gather)
    assert two.gather({"of": "this one"}) == [{"of": "the other"}, {"of": "this one"}]


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_over_both(two, shift_mean):
    """Of both, who have the same numbers, as of one that has them twice."""
    both = whiten(torch.cat([VALUES, VALUES]), torch.cat([MASK, MASK]), shift_mean=shift_mean)
    got = two.whiten(VALUES, MASK, shift_mean=shift_mean)
    torch.testing.assert_close(got, both[:2], atol=1e-12, rtol=0)
    mean = VALUES[MASK].mean()
    assert (got[MASK].mean().abs() < 1e-9) == shift_mean
    assert got[MASK].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert mean != 0


class Meeting:
    """A strategy of two threads, each of which brings numbers of its own."""

    def __init__(self):
        self.barrier, self.brought = threading.Barrier(2, timeout=20), {}

    def strategy(self, rank):
        def reduce(tensor, reduce_op):
            self.brought[rank] = tensor
            self.barrier.wait()
            both = torch.stack([self.brought[0], self.brought[1]])
            self.barrier.wait()
            return both.sum(0) if reduce_op == "sum" else both.amax(0)

        return SimpleNamespace(reduce=reduce)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_is_that_of_one_process_however_the_rows_are_dealt_out(shift_mean):
    numbers, mask = torch.cat([VALUES, 3 - VALUES.flip(1)]), torch.cat([MASK, MASK])
    meeting, parts = Meeting(), (slice(0, 1), slice(1, 4))

    def of_rank(rank):
        trainer = SimpleNamespace(world_size=2, global_rank=rank, strategy=meeting.strategy(rank))
        return Ranks(module_of(trainer)).whiten(numbers[parts[rank]], mask[parts[rank]], shift_mean=shift_mean)

    with ThreadPoolExecutor(2) as threads:
        got = torch.cat(list(threads.map(of_rank, range(2))))
    torch.testing.assert_close(got, whiten(numbers, mask, shift_mean=shift_mean), atol=1e-12, rtol=0)


def test_the_statistics_of_a_step_are_those_of_both(two, strategy):
    statistics = StepStatistics()
    statistics.add("tokens", MASK)
    statistics.add("value", VALUES, MASK)
    statistics.maximum("largest", VALUES, MASK)
    totals = statistics.pop(two)
    assert {name: total.item() for name, total in totals.items()} == {"tokens": 10, "value": 9.0, "largest": 4.0}
    assert strategy.called == ["sum", "max"]  # one all-reduce each
    assert statistics.pop(two) == {}
    assert strategy.called == ["sum", "max"]
