"""Demonstrations for supervised fine-tuning as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_posttrain.data.formats.instruction import InstructFormat
from lit_posttrain.data.formats.templates import ChatShape, Value
from lit_posttrain.data.loaders import Batching
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.row_engine import RowEngine
from lit_posttrain.data.sources.row_sources import HeldOut, Paths, RowSources
from lit_posttrain.data.sources.rows import Source
from lit_posttrain.data.supervised import SupervisedDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InstructDataModule(SupervisedDataModule):
    r"""Texts, prompts with completions, or chats, of which the model learns what it is to write.

    A batch is a `StepPart` of a `SupervisedBatch`. Only completions are supervised: of a chat every turn of the
    assistant, its end token included; of plain text all of it. The EOS at the end is supervised. No row is cut.

    Args:
        path: a file (.jsonl, .json, .csv, .parquet), a folder, the name of a data set on the Hub, a list of mappings,
            or a function that makes the rows of a split ("train" or "validation"); or a list of paths and functions.
        val_path: another source for validation. At most one of `val_path`, `val_fraction` and `val_split`.
        val_fraction: the fraction of each source's training rows to hold out for validation, from 0 to below 1.
        val_size: how many rows to validate on: drawn from the validation rows where there are some (by `val_path`,
            `val_split` or a function), else held out from the training rows; with several sources only with `val_path`.
            None takes all there are; 0 none.
        split: the training split of a data set on the Hub.
        val_split: its validation split.
        subset: its configuration, such as "main".
        weights: with several sources, how often the rows of each come in an epoch: 2 twice, 0.5 every other row.
        format: "text", "prompt_completion" or "messages"; None tells it by the columns.
        prompt_column: holds the prompt, text or messages.
        completion_column: holds the completion, text or messages.
        messages_column: holds a whole chat.
        text_column: holds plain text.
        prompt_template: makes the prompt out of the columns, as "Question: {question}\nAnswer:"; of several a row takes
            the first of which no column is empty.
        completion_template: makes the completion, as " {answer}" where the prompt ends without a space; or several.
        system_prompt: put before the messages of a chat.
        chat: make a prompt that is text the user's message of a chat, and its completion the assistant's.
        max_length: tokens of prompt and completion that a row may have; longer rows are left out and counted. None
            takes what the tokenizer knows of its model.
        max_dropped: the largest share of a source's rows that may be left out, from 0 to 1.
        drop_invalid: leave out rows that are wrong and count them, instead of stopping at the first.
        rewritten_turns: where a chat template rewrites earlier turns (as those that strip thinking): supervise the
            "last" turn alone, or "refuse".
        batch_size: rows of an optimiser step, over all ranks; `accumulate_grad_batches` cuts it into micro-batches.
        val_batch_size: rows of a validation batch, over all ranks.
        packing: let rows share sequences as long as the longest row of a step, without seeing one another. What a step
            learns from does not change; less padding is computed. Not with flash attention.
        shuffle: whether each epoch goes through the rows in an order of its own.
        seed: of that order and of the rows held out.
        num_workers: processes that make tokens of the rows; 0 does it in this one.
        val_prompts: prompts to complete in validation, beside the loss on the validation rows; its `scores` judge them.
        tokenizer: None takes that of the LightningModule (its attribute `tokenizer`).

    Raises:
        ValueError: if a number is out of its range or options exclude one another. What depends on the data is said by
            `setup`, before weights are loaded.
    """

    def __init__(
        self,
        path: Paths,
        *,
        val_path: Source | None = None,
        val_fraction: float = 0.0,
        val_size: int | None = None,
        split: str = "train",
        val_split: str | None = None,
        subset: str | None = None,
        weights: Sequence[float] | None = None,
        format: str | None = None,
        prompt_column: str = "prompt",
        completion_column: str = "completion",
        messages_column: str = "messages",
        text_column: str = "text",
        prompt_template: str | Sequence[str] | None = None,
        completion_template: str | Sequence[str] | None = None,
        system_prompt: str | None = None,
        chat: bool = False,
        max_length: int | None = None,
        max_dropped: float = 0.1,
        drop_invalid: bool = False,
        rewritten_turns: str = "last",
        batch_size: int = 64,
        val_batch_size: int = 64,
        packing: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        val_prompts: PromptDataModule | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        held_out = HeldOut(path=val_path, split=val_split, fraction=val_fraction, size=val_size)
        sources = RowSources(path, weights=weights, split=split, subset=subset, seed=seed, held_out=held_out)
        prompt = Value("prompt", prompt_column, prompt_template)
        completion = Value("completion", completion_column, completion_template)
        shape = ChatShape(chat=chat, system_prompt=system_prompt)
        columns = InstructFormat(
            format=format, prompt=prompt, completion=completion, messages=messages_column, text=text_column, shape=shape
        )
        engine = RowEngine(tokenizer, max_length, max_dropped, drop_invalid, rewritten_turns, num_workers)
        batching = Batching(batch_size, val_batch_size, packing=packing, shuffle=shuffle, seed=seed)
        super().__init__(sources, columns, engine, batching, val_prompts=val_prompts)
