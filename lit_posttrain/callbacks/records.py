"""What callbacks may ask of a module that samples rollouts; its insides are its own."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from lit_posttrain.rollout.metrics import RolloutRecord


@runtime_checkable
class RecordsRollouts(Protocol):
    """A module that keeps the record of its last rollout."""

    @property
    def last_rollout(self) -> "RolloutRecord | None":
        """The record of the current rollout."""

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made of one rollout."""
