"""Prompts in, scored completions out: what training and validation both do with the policy."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.batching import TokenBatch
from lit_posttrain.data.formats.chat import completion_as, encode_prompt
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.models.folders import context_length
from lit_posttrain.models.tokenizers import eos_token_ids, pad_token_id
from lit_posttrain.rewards.protocol import RewardFunctions, Scores
from lit_posttrain.rollout.sampler import sample_completions
from lit_posttrain.rollout.sampling import Sampling

PromptRow = dict[str, Any]


@dataclass(frozen=True)
class Experience:
    """Completions of N prompts, G for each, next to each other: B = N * G.

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
    def join(cls, parts: "Sequence[Experience]", *, pad_id: int) -> "Experience":
        """Several in one, in their order."""
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
        """What each function gives each completion: (B, F), NaN where it gave None."""
        return self.judge(functions).values

    def judge(self, functions: RewardFunctions) -> Scores:
        """The same, with what was given token by token."""
        names = self.rows[0].keys() - {"prompt"}
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in self.rows] for name in names}
        lengths = self.tokens.completion_mask.sum(1).tolist()
        ids = self.tokens.completion_ids.tolist()
        columns["completion_ids"] = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        columns["truncated"] = self.truncated.tolist()
        return functions.scores([row["prompt"] for row in self.rows], self.completions, columns)


def collect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PromptRow],
    *,
    sampling: Sampling,
    num_samples: int,
    keys: Tensor,
    batch_size: int | None,
    forward_context: Callable[[], AbstractContextManager[Any]],
) -> Experience:
    """Complete every prompt `num_samples` times.

    Args:
        model: the policy's language model.
        tokenizer: its tokenizer.
        rows: at least one, each with a `prompt` that is text or messages.
        sampling: how tokens are drawn.
        num_samples: completions of each prompt, G.
        keys: random keys of the completions, (N * G,).
        batch_size: rows decoded together; None = all.
        forward_context: that of the Trainer's precision.

    Raises:
        ValueError: if a prompt leaves no room for a completion in the model's context.
    """
    started = time.perf_counter()
    context = context_length(model.config)
    prompts = [encode_row(row, tokenizer, context=context, sampling=sampling) for row in rows]
    with evaluation_mode(model), forward_context():
        tokens, truncated = sample_completions(
            model,
            prompts,
            sampling=sampling,
            num_samples=num_samples,
            keys=keys,
            eos_ids=eos_token_ids(tokenizer, model),
            pad_id=pad_token_id(tokenizer),
            batch_size=batch_size,
        )
    lengths = tokens.completion_mask.sum(1).tolist()
    ids = tokens.completion_ids.tolist()
    texts = tokenizer.batch_decode(
        [row[:length] for row, length in zip(ids, lengths, strict=True)], skip_special_tokens=True
    )
    repeated = [row for row in rows for _ in range(num_samples)]
    completions = [completion_as(row["prompt"], text) for row, text in zip(repeated, texts, strict=True)]
    return Experience(repeated, completions, texts, tokens, truncated, time.perf_counter() - started)


def check_rows(rows: Sequence[PromptRow]) -> None:
    """Refuse a batch that is no list of row dictionaries with a prompt each.

    Raises:
        TypeError: if a row is no dictionary.
        KeyError: if it has no prompt.
    """
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"prompt batches must be a list of dictionaries, got {type(rows).__name__} of {type(row).__name__}: "
                "a stock DataLoader stacks its rows unless told otherwise: `DataLoader(rows, collate_fn=list)`."
            )
        if "prompt" not in row:
            raise KeyError(f"a prompt row needs the key `prompt`; this one has {', '.join(map(repr, row)) or 'none'}.")


def encode_row(
    row: PromptRow, tokenizer: PreTrainedTokenizerBase, *, context: int | None, sampling: Sampling
) -> list[int]:
    """Token ids of a row's prompt, which together with the longest completion must fit the model's context."""
    ids = encode_prompt(row["prompt"], tokenizer)
    if context is not None and len(ids) + sampling.max_new_tokens > context:
        raise ValueError(
            f"the prompt has {len(ids)} tokens and `sampling.max_new_tokens` is {sampling.max_new_tokens}, but the "
            f"model's context is {context} tokens. Shorten or remove the prompt, or lower `max_new_tokens`. "
            f"It begins: {str(row['prompt'])[:80]!r}"
        )
    return ids


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """`eval()` with gradients off; every sub-module gets its own mode back."""
    training = {child: child.training for module in modules for child in module.modules()}
    for module in modules:
        module.eval()
    try:
        with torch.no_grad():  # not inference_mode: its tensors may not take part in a later backward
            yield
    finally:
        for child, mode in training.items():
            child.training = mode


# What a chat template may add to a prompt, in tokens, at the most generous guess.
TEMPLATE_ALLOWANCE = 256


def check_prompt_lengths(
    datamodule: PromptDataModule, tokenizer: PreTrainedTokenizerBase, *, context: int | None, sampling: Sampling
) -> None:
    """Find prompts that leave no room for a completion, in all rows and before anything long begins.

    A token is at least a byte of text, so that only prompts of many bytes have to be tokenised.

    Raises:
        ValueError: naming file and line of the first such prompt.
    """
    if context is None:
        return
    for split, rows in (("train", datamodule.train_rows), ("validation", datamodule.val_rows)):
        for index in range(len(rows)):
            if len(str(rows[index]["prompt"]).encode()) + TEMPLATE_ALLOWANCE + sampling.max_new_tokens <= context:
                continue
            try:
                encode_row(rows[index], tokenizer, context=context, sampling=sampling)
            except ValueError as error:
                raise ValueError(f"{datamodule.where(split, index)}: {error}") from None
