"""How far a policy may go: from its reference over a run, from the policy that sampled over a rollout."""

from typing import Any

from torch import Tensor

from lit_posttrain.functional import adapted_kl_coef


class KLControl:
    """Fixed, or steered so that the KL from the reference stays near a target (arXiv:1909.08593).

    What was measured of a rollout changes the coefficient when the next one begins, and not before: a rollout that is
    made again, since it was interrupted, is made with the coefficient that it had.

    Args:
        kl_coef: to begin with.
        target: nats per sequence; None = the coefficient is fixed.
        horizon: sequences over which it adapts (`functional.adapted_kl_coef`).
    """

    def __init__(self, kl_coef: float, *, target: float | None, horizon: int) -> None:
        self.kl_coef = kl_coef
        self._target = target
        self._horizon = horizon
        self._index = -1
        self._measured: tuple[float, int] | None = None

    @property
    def adapts(self) -> bool:
        """Whether it needs to be told what was measured."""
        return self._target is not None

    def begin(self, index: int) -> None:
        """Take the coefficient of the `index`-th rollout."""
        if index != self._index and self._measured is not None and self._target is not None:
            kl, num_sequences = self._measured
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, kl=kl, target=self._target, horizon=self._horizon, num_sequences=num_sequences
            )
            self._measured = None
        self._index = index

    def measure(self, kl: float, num_sequences: int) -> None:
        """Remember the KL of the current rollout.

        Args:
            kl: mean over its sequences of all ranks of the sum over their tokens, nats.
            num_sequences: how many there are.
        """
        self._measured = (kl, num_sequences) if num_sequences > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        measured = None if self._measured is None else list(self._measured)
        return {"kl_coef": self.kl_coef, "index": self._index, "measured": measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.kl_coef, self._index = state["kl_coef"], state["index"]
        self._measured = None if state["measured"] is None else (state["measured"][0], int(state["measured"][1]))


class RolloutBound:
    """Ends the use of a rollout where the policy has gone too far from the one that sampled.

    The weights stay as they are in the step that is too far and in the others of its rollout; they still count.

    Args:
        target: the largest KL, in nats per token; None = there is no bound.
    """

    def __init__(self, target: float | None) -> None:
        self._target = target
        self.is_over = False

    @property
    def bounds(self) -> bool:
        """Whether there is a bound."""
        return self._target is not None

    def begin(self) -> None:
        """Learn again, from a new rollout."""
        self.is_over = False

    def measure(self, kl: Tensor) -> None:
        """Look at the KL of a step, ()."""
        if self._target is not None and kl > self._target:
            self.is_over = True

    def state_dict(self) -> dict[str, Any]:
        """Say whether the rest of the current rollout is left out."""
        return {"is_over": self.is_over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the same way."""
        self.is_over = state["is_over"]
