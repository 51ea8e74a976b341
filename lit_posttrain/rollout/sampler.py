"""The decode loop: completions of many prompts, several for each, over transformers' KV cache."""

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lit_posttrain.batching import TokenBatch, lengths_to_mask, pad_left
from lit_posttrain.functional.random import uniforms
from lit_posttrain.rollout.sampling import Sampling, pick_tokens

# Finished rows leave the batch once they are this share of it: every departure copies the cache.
COMPACT_SHARE = 0.25


class Completions(NamedTuple):
    """Sampled sequences, the samples of a prompt next to each other.

    Attributes:
        tokens: N prompts times G samples, B = N * G rows.
        truncated: (B,), True where the longest length was reached without an EOS.
    """

    tokens: TokenBatch
    truncated: Tensor


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    num_samples: int,
    keys: Tensor,
    eos_ids: Sequence[int],
    pad_id: int,
    batch_size: int | None = None,
) -> Completions:
    """Complete every prompt `num_samples` times.

    Greedy output equals `model.generate(do_sample=False)`. Positions follow from the mask, so left padding changes
    nothing, and a row's random numbers belong to its key, so neither does the batch that it is in.

    Args:
        model: a causal language model, in eval mode.
        prompts: token ids of each prompt, N of them, none empty.
        sampling: how tokens are drawn.
        num_samples: completions of each prompt, G.
        keys: a key for each row (`sample_keys`), (N * G,).
        eos_ids: every id that ends a completion.
        pad_id: written where there is no token; never read.
        batch_size: rows decoded together, a knob of memory and speed, in whole groups and at least one; None = all.
    """
    device = model.device
    prompts_at_once = max(1, (batch_size or len(prompts) * num_samples) // num_samples)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    ids = torch.full((len(prompts), num_samples, sampling.max_new_tokens), pad_id, device=device)
    lengths = torch.zeros((len(prompts), num_samples), dtype=torch.long, device=device)
    finished = torch.zeros((len(prompts), num_samples), dtype=torch.bool, device=device)
    keys = keys.to(device).view(len(prompts), num_samples)
    eos = torch.tensor(sorted(eos_ids), device=device)
    for start in range(0, len(order), prompts_at_once):
        chosen = order[start : start + prompts_at_once]
        prompt_ids, prompt_mask = pad_left([prompts[index] for index in chosen], pad_id=pad_id)
        part = _decode(
            model, prompt_ids.to(device), prompt_mask.to(device), sampling, keys[chosen].flatten(), eos, pad_id
        )
        for whole, piece in zip((ids, lengths, finished), part, strict=True):
            whole[chosen] = piece.view(len(chosen), num_samples, *piece.shape[1:])
    prompt_ids, prompt_mask = pad_left(prompts, pad_id=pad_id)
    lengths = lengths.flatten()
    width = int(lengths.max())
    tokens = TokenBatch(
        prompt_ids=prompt_ids.to(device).repeat_interleave(num_samples, 0),
        prompt_mask=prompt_mask.to(device).repeat_interleave(num_samples, 0),
        completion_ids=ids.flatten(0, 1)[:, :width],
        completion_mask=lengths_to_mask(lengths, width),
    )
    return Completions(tokens, ~finished.flatten())


def _decode(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    sampling: Sampling,
    keys: Tensor,
    eos: Tensor,
    pad_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Completion ids (B, max_new_tokens), their lengths (B,), whether they ended with an EOS (B,)."""
    num_samples = len(keys) // len(prompt_ids)
    ids = torch.full((len(keys), sampling.max_new_tokens), pad_id, device=keys.device)
    lengths = torch.full((len(keys),), sampling.max_new_tokens, device=keys.device)
    finished = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)

    cache = DynamicCache(config=model.config)
    cached = {_cache_argument(model): cache}
    positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    logits = _next_logits(model, prompt_ids, prompt_mask, positions, cached).repeat_interleave(num_samples, 0)
    cache.batch_repeat_interleave(num_samples)  # the prompt is computed once for its whole group
    mask = prompt_mask.repeat_interleave(num_samples, 0)
    position = prompt_mask.sum(1).repeat_interleave(num_samples, 0)
    rows = torch.arange(len(keys), device=keys.device)  # which rows the batch holds

    for step in range(sampling.max_new_tokens):
        token = pick_tokens(logits, sampling, uniforms(keys[rows], step))
        live = ~finished[rows]
        ids[rows[live], step] = token[live]
        ended = live & torch.isin(token, eos)
        lengths[rows[ended]] = step + 1
        finished[rows[ended]] = True
        live &= ~ended
        if step + 1 == sampling.max_new_tokens or not live.any():
            break
        if live.sum() <= (1 - COMPACT_SHARE) * len(rows):
            kept = live.nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            rows, token, mask, position = rows[kept], token[kept], mask[kept], position[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = _next_logits(model, token[:, None], mask, position[:, None], cached)
        position = position + 1
    return ids, lengths, finished


def _next_logits(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cached: dict[str, DynamicCache]
) -> Tensor:
    """Logits after the last given token, (B, V); the cache, under the model's name for it, grows by them."""
    output = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **cached,
    )
    return output.logits[:, -1]


def _cache_argument(model: PreTrainedModel) -> str:
    """What a model calls its cache: transformers 5.24 has another name for it, and knows the old one until 5.40."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
