"""Where a fit stood when a checkpoint was written, and whether another fit can go on from there."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging


class Stage(StrEnum):
    """Where Lightning was when a checkpoint was written, which says what was still to be done for the last step."""

    BATCH_END = "batch_end"  # in `on_train_batch_end`, or in a validation that was not over
    VALIDATION_END = "validation_end"  # in `on_validation_end`
    EPOCH_END = "epoch_end"  # in `on_train_epoch_end`, or in `on_train_end`
    BETWEEN = "between"  # nothing was
    OVER = "over"  # the fit was, too


@dataclass(frozen=True)
class Standing:
    """Where a fit stands, as plain values.

    Attributes:
        step: optimiser steps done.
        epoch: the epoch that they were done in, by Lightning's number.
        batches: micro-batches of all epochs that these steps are made of.
        accumulate: micro-batches of a step.
        stage: what Lightning was doing.
        inside_update: whether weights, optimiser and counters are of different steps.
        stopping: whether a callback has ended the fit early.
        callback_metrics: what callbacks can see.
        row: what was about to be logged of the step.
        checkpoints: what each `ModelCheckpoint` keeps to itself: the step of its last checkpoint, and whether it waits
            for a validation.
        weights_of: the callback that has put other weights in the place of the trained ones, None = none has.
    """

    step: int
    epoch: int
    batches: int
    accumulate: int
    stage: str
    inside_update: bool
    stopping: bool
    callback_metrics: dict[str, float]
    row: dict[str, float]
    checkpoints: dict[str, list[Any]]
    weights_of: str | None


def standing_of(checkpoint: dict[str, Any]) -> Standing:
    """Where the fit stood that wrote a checkpoint.

    Raises:
        ValueError: if another fit cannot go on exactly from there.
    """
    if "standing" not in checkpoint:
        raise ValueError(
            "the checkpoint does not say where its fit stood: it was written without `ExactResume`, as by another "
            "version of this library. Go on with what wrote it, or start from the weights alone."
        )
    stored = checkpoint["standing"]
    standing = Standing(**{field.name: stored[field.name] for field in fields(Standing)})
    if standing.inside_update:
        raise ValueError(
            f"the checkpoint was written while the optimiser made step {standing.step + 1}: its weights and its "
            "counters do not belong together. Go on from an earlier checkpoint, or start from the weights alone."
        )
    if standing.weights_of is not None:
        raise ValueError(
            f"the checkpoint was written after the fit, when {standing.weights_of} had put the average of the weights "
            "in their place: the weights to go on from are not in it. Take one that was written while the fit went on, "
            "as `ModelCheckpoint(every_n_train_steps=...)` does."
        )
    return standing


def refuse_callbacks(trainer: Trainer) -> None:
    """Refuse stock callbacks that would do nothing here, or not what they promise.

    Raises:
        ValueError: naming the callback and what to use instead.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                "StochasticWeightAveraging does not work here: it copies a module before its networks are built, and "
                "would average nothing. Use `EMAWeightAveraging` or `WeightAveraging`."
            )
