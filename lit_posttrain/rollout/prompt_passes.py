"""The passes over prompts whose order is a function of the pass, and that can be begun anywhere."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

PromptBatch = list[dict[str, Any]]


@runtime_checkable
class StartsAnywhere(Protocol):
    """A prompt loader that can begin a pass at a given batch without making those before it."""

    def __len__(self) -> int:
        """Batches in a pass."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""

    def batches(self, start: int) -> Iterator[PromptBatch]:
        """The batches of the current pass from number `start` on."""

    def identity(self) -> dict[str, Any]:
        """What contents and order of the batches depend on, as plain values by the names of arguments."""


class PromptPasses:
    """The passes over such a loader.

    Args:
        prompts: the loader.
    """

    def __init__(self, prompts: StartsAnywhere) -> None:
        self._prompts = prompts

    @property
    def num_batches(self) -> int:
        """Batches of a pass."""
        return len(self._prompts)

    def batches(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        """The batches of a pass from number `start` on."""
        self._prompts.set_epoch(epoch)
        return self._prompts.batches(start)

    def batches_aside(self, epoch: int, start: int) -> Iterator[PromptBatch]:
        """The same of a pass beside the ones that are counted: passes do not disturb one another."""
        return self.batches(epoch, start)

    def identity(self) -> dict[str, Any]:
        """That of the prompts."""
        return self._prompts.identity()

    def state_dict(self, epoch: int, count: int) -> dict[str, Any]:
        """Nothing: the identity says all."""
        return {}

    def compare(self, state: dict[str, Any]) -> bool:
        """The identity has been compared."""
        return True
