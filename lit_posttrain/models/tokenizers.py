"""What a tokenizer must have, which tokens end a completion, and how many a model reads."""

import copy

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAD_TOKEN = "<|pad|>"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot work with a model.

    A missing pad token is normal (GPT-2): padding is told by length, and any id may stand there.

    Args:
        tokenizer: the tokenizer.
        vocab_size: rows of the model's embedding.

    Raises:
        ValueError: if there is no EOS, or the tokenizer has ids that the model has no embedding for.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no EOS token: a completion could not end. "
            "Set it before saving the folder: `tokenizer.eos_token = ...; tokenizer.save_pretrained(folder)`."
        )
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model only {vocab_size} embeddings: they do not belong "
            "together. Take the model's own tokenizer, or resize the model with `resize_token_embeddings`."
        )


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[int]:
    """Every id that ends a completion: that of the tokenizer and all that the model's own settings name."""
    ids: set[int] = {tokenizer.eos_token_id}
    for named in (model.config.get_text_config().eos_token_id, model.generation_config.eos_token_id):
        ids.update([] if named is None else [named] if isinstance(named, int) else named)
    return sorted(ids)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to write where there is no token; masks come from lengths, so that it may be the EOS."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def with_own_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy with one token more where it has no pad token or uses the EOS as one.

    transformers reads the score of a sequence at the last token that is not the pad id, so in the folder of a reward
    model it must not be the EOS.
    """
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return tokenizer


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model of this configuration has positions for, None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def unknown_share(ids: Tensor, mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> float:
    """Find the share of unknown words among tokens, 0 where the tokenizer has no such token.

    Args:
        ids: (B, P).
        mask: (B, P), True on real tokens.
        tokenizer: that of the ids.
    """
    unknown = tokenizer.unk_token_id
    if unknown in (None, tokenizer.eos_token_id, tokenizer.bos_token_id):
        return 0.0  # GPT-2's is its EOS
    return (ids == unknown)[mask].float().mean().item()
