"""A module's own training loader around whatever loader the Trainer was given, each row of which comes once."""

from typing import Any, Protocol, runtime_checkable

from lightning import Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DistributedSampler


def without_repeats(loader: Any) -> Any:
    """Take the repeated rows out of a `DistributedSampler`, such as Lightning puts into every `DataLoader`.

    It deals some rows out twice, so that all ranks get as many: a mean over validation prompts would depend on the
    number of ranks, and a training prompt come twice in an epoch. Here ranks may have unequal shares. With fewer rows
    than ranks the repeats stay, since Lightning does not start where a rank has no row at all.

    Args:
        loader: anything; what has no such sampler stays as it is.

    Returns:
        The loader.
    """
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler) and not sampler.drop_last:
        rows = len(sampler.dataset)  # type: ignore[arg-type]
        if rows >= sampler.num_replicas:
            sampler.total_size = rows
            sampler.num_samples = len(range(sampler.rank, rows, sampler.num_replicas))
    return loader


@runtime_checkable
class MakesTrainingLoader(Protocol):
    """A module that trains from a loader of its own making."""

    def training_loader(self, loader: Any) -> Any:
        """The loader to train from, made of the one that the Trainer was given."""


def attach_training_loader(trainer: Trainer) -> None:
    """Have the Trainer ask its module for the loader to train from.

    The strategy's `process_dataloader` is the one place that every loader goes through, after Lightning has put in its
    own sampler. Lightning calls no `teardown` after an exception: what a fit that failed has left there is replaced,
    and the module that is asked is the one that the Trainer has at the time.
    """
    detach_training_loader(trainer)
    process = trainer.strategy.process_dataloader

    def process_dataloader(loader: Any) -> Any:
        module = trainer.lightning_module
        loader = process(loader)
        if not isinstance(module, MakesTrainingLoader):
            return loader
        if trainer.state.stage != RunningStage.TRAINING:
            return without_repeats(loader)
        return module.training_loader(loader)

    vars(trainer.strategy)["process_dataloader"] = process_dataloader


def detach_training_loader(trainer: Trainer) -> None:
    """Undo it."""
    vars(trainer.strategy).pop("process_dataloader", None)
