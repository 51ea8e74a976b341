"""How far a policy may go: from its reference over a run, from the policy that sampled over a rollout."""

from typing import Any

import torch
from torch import Tensor

from lit_posttrain.algos.choices import check_positive
from lit_posttrain.batching import Ranks
from lit_posttrain.functional import adapted_kl_coef


class KLControl:
    """Fixed, or steered so that the KL from the reference stays near a target (arXiv:1909.08593).

    What was measured of a rollout changes the coefficient when the next one begins, and not before: a rollout that is
    made again, since it was interrupted, is made with the coefficient that it had.

    Args:
        kl_coef: to begin with.
        target: nats per sequence; None = the coefficient is fixed.
        horizon: sequences over which it adapts (`functional.adapted_kl_coef`).

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, kl_coef: float, *, target: float | None, horizon: int) -> None:
        check_positive(kl_target=target)
        if horizon < 1:
            raise ValueError(f"`kl_horizon` must be >= 1, got {horizon}: it counts sequences.")
        if target is not None and kl_coef == 0:
            raise ValueError("`kl_target` steers `kl_coef` by factors, which 0 stays whatever: begin with another.")
        self.kl_coef = kl_coef
        self._target = target
        self._horizon = horizon
        self._index = -1
        self._measured: tuple[float, int] | None = None

    def begin(self, index: int) -> None:
        """Take the coefficient of the `index`-th rollout."""
        if index != self._index and self._measured is not None and self._target is not None:
            kl, num_sequences = self._measured
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, kl=kl, target=self._target, horizon=self._horizon, num_sequences=num_sequences
            )
            self._measured = None
        self._index = index

    def measure(self, kl: Tensor, mask: Tensor, ranks: Ranks) -> None:
        """Remember the KL of the current rollout, its mean over the sequences of all ranks; not where it is fixed.

        Args:
            kl: of each token, (B, C), nats.
            mask: which tokens count, (B, C).
            ranks: the processes that made the rollout.
        """
        if self._target is None:
            return
        total = kl.masked_fill(~mask, 0).sum()
        total, count = ranks.sum(torch.stack([total, mask.any(1).sum().to(total.dtype)])).tolist()
        self._measured = (total / count, int(count)) if count > 0 else None

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

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, target: float | None) -> None:
        check_positive(target_kl=target)
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
