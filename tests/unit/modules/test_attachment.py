"""A module's own training loader in a Trainer, without a fit."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, DistributedSampler

from lit_posttrain.modules.attachment import attach_training_loader, detach_training_loader, without_repeats


class Strategy:
    """Of Lightning, as far as loaders go through it."""

    def process_dataloader(self, loader):
        return ("processed", loader)


class Makes:
    """Wraps what it is given."""

    def __init__(self, name):
        self.name = name

    def training_loader(self, loader):
        return (self.name, loader)


def trainer_of(module, stage=RunningStage.TRAINING):
    return SimpleNamespace(strategy=Strategy(), lightning_module=module, state=SimpleNamespace(stage=stage))


def test_the_module_is_asked_for_the_loader_to_train_from():
    trainer = trainer_of(Makes("own"))
    assert trainer.strategy.process_dataloader("rows") == ("processed", "rows")
    attach_training_loader(trainer)
    assert trainer.strategy.process_dataloader("rows") == ("own", ("processed", "rows"))


def test_the_module_is_the_one_that_the_trainer_has_at_the_time():
    trainer = trainer_of(Makes("first"))
    attach_training_loader(trainer)
    trainer.lightning_module = Makes("second")
    assert trainer.strategy.process_dataloader("rows")[0] == "second"


def test_what_a_failed_fit_has_left_is_replaced():
    trainer = trainer_of(Makes("own"))
    attach_training_loader(trainer)
    attach_training_loader(trainer)
    assert trainer.strategy.process_dataloader("rows") == ("own", ("processed", "rows"))  # and not twice


def test_afterwards_the_trainer_is_as_it_was():
    trainer = trainer_of(Makes("own"))
    detach_training_loader(trainer)  # nothing there
    attach_training_loader(trainer)
    detach_training_loader(trainer)
    assert vars(trainer.strategy) == {}
    assert trainer.strategy.process_dataloader("rows") == ("processed", "rows")


def test_another_module_keeps_its_loader():
    trainer = trainer_of(object())
    attach_training_loader(trainer)
    assert trainer.strategy.process_dataloader("rows") == ("processed", "rows")


def dealt(rows, *, rank=0, ranks=3, **settings):
    return DataLoader(rows, sampler=DistributedSampler(rows, ranks, rank, shuffle=False, **settings))


def taken(loaders):
    return sorted(index for loader in loaders for index in loader.sampler)


@pytest.mark.parametrize("stage", [RunningStage.VALIDATING, RunningStage.PREDICTING, RunningStage.SANITY_CHECKING])
def test_elsewhere_no_row_comes_twice(monkeypatch, stage):
    trainer = trainer_of(Makes("own"), stage)
    monkeypatch.setattr(Strategy, "process_dataloader", lambda self, loader: loader)
    attach_training_loader(trainer)
    loaders = [trainer.strategy.process_dataloader(dealt(list(range(7)), rank=rank)) for rank in range(3)]
    assert taken(loaders) == list(range(7))


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_repeats_are_left_out(count):
    rows = list(range(count))
    loaders = [without_repeats(dealt(rows, rank=rank)) for rank in range(3)]
    assert taken(loaders) == rows
    assert [len(loader) for loader in loaders] == [len(rows[rank::3]) for rank in range(3)]
    assert [list(loader.sampler) for loader in loaders] == [rows[rank::3] for rank in range(3)]


def test_with_fewer_rows_than_ranks_they_stay():
    loaders = [without_repeats(dealt([0, 1], rank=rank)) for rank in range(3)]
    assert [len(loader) for loader in loaders] == [1, 1, 1]


def test_what_drops_rows_and_what_has_no_such_sampler_stays_as_it_is():
    dropping = without_repeats(dealt(list(range(7)), drop_last=True))
    assert dropping.sampler.total_size == 6
    plain, thing = DataLoader(list(range(7))), object()
    assert without_repeats(plain) is plain
    assert len(plain) == 7
    assert without_repeats(thing) is thing
