"""What stands in for an engine where no model is to write: completions of given lengths, and what was asked for."""

from collections.abc import Sequence
from typing import Any

import torch

from lit_posttrain.batching import TokenBatch, lengths_to_mask
from lit_posttrain.rollout.engine import Completions


def completions_of(rows: Sequence[dict[str, Any]], lengths: Sequence[int], truncated: Sequence[bool]) -> Completions:
    """One completion of each row; its text is its length in words."""
    width = max(lengths)
    ids = torch.arange(len(lengths))[:, None] + torch.full((len(lengths), width), 3)
    texts = [" ".join(["w"] * length) for length in lengths]
    tokens = TokenBatch(
        prompt_ids=torch.full((len(lengths), 1), 2),
        prompt_mask=torch.ones(len(lengths), 1, dtype=torch.bool),
        completion_ids=ids,
        completion_mask=lengths_to_mask(torch.tensor(lengths), width),
    )
    return Completions(list(rows), texts, texts, tokens, torch.tensor(truncated), generate_s=0.5)


class StubEngine:
    """Completes prompts as their rows say: `lengths` are those of the samples, one after the other.

    The last sample of a prompt is truncated where its row has `cut`. `calls` are the arguments of each call.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def complete(self, rows: Sequence[dict[str, Any]], **arguments: Any) -> Completions:
        self.calls.append({"rows": list(rows), **arguments})
        count = arguments["num_samples"]
        lengths = [length for row in rows for length in row["lengths"][:count]]
        truncated = [row.get("cut", False) and sample == count - 1 for row in rows for sample in range(count)]
        return completions_of([row for row in rows for _ in range(count)], lengths, truncated)
