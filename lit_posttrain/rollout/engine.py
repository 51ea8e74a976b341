"""Prompts in, completions out: decoding in this process, over transformers' KV cache."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.batching import TokenBatch, lengths_to_mask, pad_left
from lit_posttrain.data.formats.chat import completion_as, encode_prompt
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.functional.random import pick_tokens, sample_keys, uniforms
from lit_posttrain.models.networks.policy import evaluation_mode
from lit_posttrain.models.source import ModelSource
from lit_posttrain.models.tokenizers import context_length, eos_token_ids, pad_token_id
from lit_posttrain.rewards.protocol import RewardFunctions, Scores
from lit_posttrain.rollout.options import Sampling

PromptRow = dict[str, Any]

# Finished rows leave the batch once they are this share of it: every departure copies the cache.
COMPACT_SHARE = 0.25


@dataclass(frozen=True)
class Completions:
    """What a policy wrote: completions of N prompts, G for each, next to each other, B = N * G.

    Attributes:
        rows: the prompt's row of each completion.
        completions: text, or messages where the prompt is messages.
        texts: the completions as plain text.
        tokens: (B, P) and (B, C).
        truncated: (B,), True where the longest length was reached without an EOS.
        generate_s: seconds that sampling took.
    """

    rows: list[PromptRow]
    completions: list[Any]
    texts: list[str]
    tokens: TokenBatch
    truncated: Tensor
    generate_s: float

    @classmethod
    def join(cls, parts: "Sequence[Completions]", *, pad_id: int) -> "Completions":
        """Put several together, in their order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            rows=[row for part in parts for row in part.rows],
            completions=[completion for part in parts for completion in part.completions],
            texts=[text for part in parts for text in part.texts],
            tokens=TokenBatch.join([part.tokens for part in parts], pad_id=pad_id),
            truncated=torch.cat([part.truncated for part in parts]),
            generate_s=sum(part.generate_s for part in parts),
        )

    def score(self, functions: RewardFunctions) -> Tensor:
        """Score every completion by each function: (B, F), NaN where it gave None."""
        return self.scores(functions).values

    def scores(self, functions: RewardFunctions) -> Scores:
        """Score every completion, and keep what was given token by token."""
        names = self.rows[0].keys() - {"prompt"}
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in self.rows] for name in names}
        lengths = self.tokens.completion_mask.sum(1).tolist()
        ids = self.tokens.completion_ids.tolist()
        columns["completion_ids"] = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        columns["truncated"] = self.truncated.tolist()
        return functions.scores([row["prompt"] for row in self.rows], self.completions, columns)


class WritesText(Protocol):
    """What an engine asks of a module."""

    @property
    def main_network(self) -> nn.Module:
        """The policy, with whole weights."""

    @property
    def source(self) -> ModelSource:
        """Where that came from, with its tokenizer."""

    @property
    def trainer(self) -> Any:
        """The Trainer, in whose precision it computes."""


class LocalEngine:
    """Completes prompts in this process, with the model that is being trained.

    Args:
        module: whose model that is.
    """

    def __init__(self, module: WritesText) -> None:
        self._module = module

    def complete(
        self,
        rows: Sequence[PromptRow],
        *,
        sampling: Sampling,
        num_samples: int,
        prompt_keys: Tensor,
        seed: int,
        batch_size: int | None,
    ) -> Completions:
        """Complete every prompt `num_samples` times; the random numbers are a function of key and seed.

        Args:
            rows: N prompts, at least one, each with a `prompt` that is text or messages.
            sampling: how tokens are drawn.
            num_samples: completions of each prompt, G.
            prompt_keys: what tells the prompts apart, (N,) int64.
            seed: any integer.
            batch_size: completions decoded together; None = all.

        Raises:
            ValueError: if a prompt leaves no room for a completion in the model's context.
        """
        started = time.perf_counter()
        model, tokenizer = self._module.main_network.model, self._module.source.tokenizer
        assert isinstance(model, PreTrainedModel)
        context = context_length(model.config)
        prompts = encode_rows(rows, tokenizer, context=context, longest=sampling.max_new_tokens)
        with evaluation_mode(model), self._module.trainer.precision_plugin.forward_context():
            tokens, truncated = sample_completions(
                model,
                prompts,
                sampling=sampling,
                num_samples=num_samples,
                keys=sample_keys(prompt_keys, num_samples=num_samples, seed=seed),
                eos_ids=eos_token_ids(tokenizer, model),
                pad_id=pad_token_id(tokenizer),
                batch_size=batch_size,
            )
        lengths = tokens.completion_mask.sum(1).tolist()
        ids = [row[:length] for row, length in zip(tokens.completion_ids.tolist(), lengths, strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        repeated = [row for row in rows for _ in range(num_samples)]
        completions = [completion_as(row["prompt"], text) for row, text in zip(repeated, texts, strict=True)]
        return Completions(repeated, completions, texts, tokens, truncated, time.perf_counter() - started)


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
) -> tuple[TokenBatch, Tensor]:
    """Complete every prompt `num_samples` times.

    Greedy output equals that of `generate(do_sample=False)`. Positions follow from the mask, so left padding changes
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

    Returns:
        The sequences, the samples of a prompt next to each other, and which of them reached the longest length without
        an EOS, (N * G,).
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
    return tokens, ~finished.flatten()


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
    # transformers 5.24 has another name for it, and knows the old one until 5.40
    cached = {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}
    positions = (prompt_mask.cumsum(1) - 1).clamp(min=0)
    logits = _next_logits(model, prompt_ids, prompt_mask, positions, cached).repeat_interleave(num_samples, 0)
    cache.batch_repeat_interleave(num_samples)  # the prompt is computed once for its whole group
    mask = prompt_mask.repeat_interleave(num_samples, 0)
    position = prompt_mask.sum(1).repeat_interleave(num_samples, 0)
    rows = torch.arange(len(keys), device=keys.device)  # which rows the batch holds

    for step in range(sampling.max_new_tokens):
        token = pick_tokens(
            logits,
            uniforms(keys[rows], step),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
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


def encode_rows(
    rows: Sequence[PromptRow], tokenizer: PreTrainedTokenizerBase, *, context: int | None, longest: int
) -> list[list[int]]:
    """Make tokens of the prompts of rows, each of which must fit the context together with the longest completion.

    Args:
        rows: N dictionaries, each with a `prompt`.
        tokenizer: of the model.
        context: tokens that the model has positions for; None = not known.
        longest: tokens of the longest completion.

    Raises:
        TypeError: if a row is no dictionary.
        KeyError: if it has no prompt.
        ValueError: if a prompt is too long.
    """
    encoded = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"prompt batches must be a list of dictionaries, got {type(rows).__name__} of {type(row).__name__}: "
                "a stock DataLoader stacks its rows unless told otherwise: `DataLoader(rows, collate_fn=list)`."
            )
        if "prompt" not in row:
            raise KeyError(f"a prompt row needs the key `prompt`; this one has {', '.join(map(repr, row)) or 'none'}.")
        ids = encode_prompt(row["prompt"], tokenizer)
        if context is not None and len(ids) + longest > context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and `sampling.max_new_tokens` is {longest}, but the model's context "
                f"is {context} tokens. Shorten or remove the prompt, or lower `max_new_tokens`. "
                f"It begins: {str(row['prompt'])[:80]!r}"
            )
        encoded.append(ids)
    return encoded


# What a chat template may add to a prompt, in tokens, at the most generous guess.
TEMPLATE_ALLOWANCE = 256


def check_prompt_lengths(
    datamodule: PromptDataModule, tokenizer: PreTrainedTokenizerBase, *, context: int | None, longest: int
) -> None:
    """Find prompts that leave no room for a completion, in all rows and before anything long begins.

    A token is at least a byte of text, so that only prompts of many bytes have to be tokenised.

    Args:
        datamodule: its rows have been read.
        tokenizer: of the model.
        context: tokens that the model has positions for; None = not known.
        longest: tokens of the longest completion.

    Raises:
        ValueError: naming file and line of the first such prompt.
    """
    if context is None:
        return
    for split, rows in (("train", datamodule.train_rows), ("validation", datamodule.val_rows)):
        for index in range(len(rows)):
            if len(str(rows[index]["prompt"]).encode()) + TEMPLATE_ALLOWANCE + longest <= context:
                continue
            try:
                encode_rows([rows[index]], tokenizer, context=context, longest=longest)
            except ValueError as error:
                raise ValueError(f"{datamodule.where(split, index)}: {error}") from None
