"""Whether rollouts have anything to learn from, said while they are made and at the end."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)

MOSTLY_UNKNOWN = 0.5  # of the prompts' tokens


class SignalWatch:
    """Counts rollouts without a signal, and optimiser steps in which nothing was learnt.

    A warning comes with the first of them, and then when their number has doubled.
    """

    def __init__(self) -> None:
        self._rollouts = 0
        self._flat = 0  # rollouts whose rewards say nothing
        self._unknown = 0  # rollouts whose prompts are mostly unknown words
        self._idle_steps = 0
        self._reason = ""

    def saw_rollout(self, metrics: Mapping[str, Tensor], *, unknown_frac: float) -> None:
        """Look at a rollout.

        Args:
            metrics: of it, over all ranks.
            unknown_frac: share of unknown words among the tokens of the prompts.
        """
        self._rollouts += 1
        reason = _why_flat(metrics)
        if reason:
            self._flat, self._reason = self._flat + 1, reason
            if _is_power_of_two(self._flat):
                log.warning("%s (in %s of %s rollouts so far)", reason, self._flat, self._rollouts)
        if unknown_frac > MOSTLY_UNKNOWN:
            self._unknown += 1
            if self._unknown == 1:
                log.warning(
                    "%.0f %% of the prompts' tokens are words that the tokenizer does not know", 100 * unknown_frac
                )

    def skipped_step(self) -> None:
        """Count a step in which nothing was learnt."""
        self._idle_steps += 1

    def say_at_the_end(self, steps: int) -> None:
        """Sum up what was wrong, if anything was.

        Args:
            steps: optimiser steps of the run.
        """
        if self._idle_steps:
            reason = self._reason or "no token had an advantage"
            log.warning("nothing was learnt in %s of %s steps: %s", self._idle_steps, steps, reason)
        elif self._flat:
            log.warning("%s in %s of %s rollouts", self._reason, self._flat, self._rollouts)
        if self._unknown:
            log.warning("most tokens of the prompts were unknown in %s of %s rollouts", self._unknown, self._rollouts)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        vars(self).update(state)


def _why_flat(metrics: Mapping[str, Tensor]) -> str:
    if metrics["reward/mean"].isnan():
        return "no completion could be scored: the reward functions returned None for all of them"
    if metrics["rollout/zero_std_frac"] == 1 and metrics["reward/std"] > 0:
        return "all completions of a prompt had the same reward"
    return "all completions had the same reward" if metrics["reward/std"] == 0 else ""


def _is_power_of_two(number: int) -> bool:
    return math.log2(number).is_integer()
