"""The completions of a rollout as rows: what a file and a table show of them."""

import math
from collections.abc import Iterable
from typing import Any

from lit_posttrain.rollout.metrics import RolloutRecord


def completion_rows(record: RolloutRecord, which: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """Prompt, completion, each reward, advantage, length in tokens and step of this rank's completions.

    Args:
        record: the rollout.
        which: indices of completions; None = all.
    """
    written = record.scored.completions
    if written is None:
        return []
    lengths = written.tokens.completion_mask.sum(1).tolist()
    return [
        {
            "step": record.step,
            "rollout": record.index,
            "prompt": written.rows[i]["prompt"],
            "completion": written.completions[i],
            "reward": _or_none(record.scored.rewards[i].item()),
            "rewards": {
                name: _or_none(score)
                for name, score in zip(record.reward_names, record.scored.scores[i].tolist(), strict=True)
            },
            "penalty": record.shaping[i].item(),
            "advantage": record.advantages[i].item(),
            "length": lengths[i],
            "truncated": bool(written.truncated[i]),
        }
        for i in (range(len(written.rows)) if which is None else which)
    ]


def _or_none(value: float) -> float | None:
    """Return None for a reward that a function did not give, since JSON has no NaN."""
    return None if math.isnan(value) else value
