"""Rows of prompt and completion as a causal model takes them best: with all padding on their right."""

from typing import Any

import torch
from torch import Tensor


def without_left_padding(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> dict[str, Any]:
    """Move every row to the left, so that all padding is on its right.

        O O I I I R R O          I I I R R O
        O I I I I R R R    ->    I I I I R R R

    There a causal model never looks at it: no mask is needed, which lets attention take its fast path, positions count
    from 0, and no query is without a key. Returned as the arguments of a transformers model.
    """
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    lengths = prompt_mask.sum(1, keepdim=True) + completion_mask.sum(1, keepdim=True)
    positions = torch.arange(max(1, int(lengths.max())), device=ids.device).expand(len(ids), -1)
    left_padding = prompt_ids.shape[1] - prompt_mask.sum(1, keepdim=True)
    # the last token stands in for the padding: transformers warns of pad ids that come without a mask
    source = left_padding + torch.minimum(positions, lengths - 1).clamp(min=0)
    return {"input_ids": ids.gather(1, source), "attention_mask": None, "position_ids": positions, "use_cache": False}
