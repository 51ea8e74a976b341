"""The completions of a rollout as rows: what a file and a table show of them."""

import math
from collections.abc import Iterable
from typing import Any

from lit_posttrain.callbacks.records import RolloutRecord


def completion_rows(record: RolloutRecord, which: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """Prompt, completion, each reward, advantage, length in tokens and step of this rank's completions.

    Args:
        record: the rollout.
        which: indices of completions; None = all.
    """
    experience = record.experience
    if experience is None:
        return []
    lengths = experience.tokens.completion_mask.sum(1).tolist()
    return [
        {
            "step": record.step,
            "rollout": record.index,
            "prompt": experience.rows[i]["prompt"],
            "completion": experience.completions[i],
            "reward": _or_none(record.rewards[i].item()),
            "rewards": {
                name: _or_none(score)
                for name, score in zip(record.reward_names, record.scores[i].tolist(), strict=True)
            },
            "penalty": record.penalties[i].item(),
            "advantage": record.advantages[i].item(),
            "length": lengths[i],
            "truncated": bool(experience.truncated[i]),
        }
        for i in (range(len(experience.rows)) if which is None else which)
    ]


def _or_none(value: float) -> float | None:
    """Return None for a reward that a function did not give, since JSON has no NaN."""
    return None if math.isnan(value) else value
