"""Preferences for reward models, DPO and KTO as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_posttrain.data.columns import ChatShape
from lit_posttrain.data.encoded_rows import LeavingOut
from lit_posttrain.data.preference_format import PreferenceFormat
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.row_sources import RowSources
from lit_posttrain.data.rows import Source
from lit_posttrain.data.source_list import SourceList, Sources, split_sources
from lit_posttrain.data.supervised import SupervisedDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PreferenceDataModule(SupervisedDataModule):
    r"""Pairs of completions of which one is preferred, or completions that are desirable or not.

    A batch is a `StepPart` of a `PreferenceBatch` (for reward models and DPO) or of an `UnpairedBatch` (for KTO). The
    formats:

    - explicit: `prompt`, `chosen`, `rejected`, each text or messages;
    - implicit: two whole dialogues `chosen` and `rejected`, whose common beginning is the prompt: messages, or text as
      in HH-RLHF ("\\n\\nHuman: ...\\n\\nAssistant: ..."), which is made messages; other texts are split at the last
      white space that they share;
    - unpaired: `prompt`, `completion`, `label` (true for desirable).

    No sequence is cut: where one of a pair is too long, the pair is left out.

    Args:
        path: a file (.jsonl, .json, .csv, .parquet), a folder, the name of a data set on the Hub, a list of mappings,
            or a function that makes the rows of a split ("train" or "validation"); or a list of paths and functions.
        val_path: another source for validation. At most one of `val_path`, `val_fraction` and `val_split`.
        val_fraction: the fraction of each source's training rows to hold out for validation, from 0 to below 1.
        val_size: how many rows to validate on, see `PromptDataModule`; with several sources only with `val_path`.
        split: the training split of a data set on the Hub.
        val_split: its validation split.
        subset: its configuration, such as "main".
        weights: with several sources, how often the rows of each come in an epoch: 2 twice, 0.5 every other row.
        format: "explicit", "implicit" or "unpaired"; None tells it by the columns.
        prompt_column: holds the prompt, text or messages.
        chosen_column: holds the better completion or dialogue.
        rejected_column: holds the worse one.
        margin_column: holds by how much the chosen one is better; None takes `margin` where it is there, else 0.
        completion_column: holds the completion of an unpaired row.
        label_column: holds whether it is desirable.
        prompt_template: makes the prompt out of the columns, as "Question: {question}\nAnswer:"; of several a row takes
            the first of which no column is empty.
        system_prompt: put before the messages of a chat.
        chat: make a prompt that is text the user's message of a chat, and its completion the assistant's.
        max_length: tokens of prompt and completion that a sequence may have; longer ones are left out and counted. None
            takes what the tokenizer knows of its model.
        max_dropped: the largest share of a source's rows that may be left out, from 0 to 1.
        drop_invalid: leave out rows that are wrong and count them, instead of stopping at the first.
        rewritten_turns: where a chat template rewrites earlier turns (as those that strip thinking): supervise the
            "last" turn alone, or "refuse".
        batch_size: pairs of an optimiser step (or unpaired rows), over all ranks; `accumulate_grad_batches` cuts it
            into micro-batches.
        val_batch_size: pairs of a validation batch, over all ranks.
        packing: let the completions of a micro-batch share sequences as long as its longest one, without seeing one
            another; chosen and rejected ones apart. What a step learns from does not change; less padding is computed.
            Not with flash attention.
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
        path: Sources,
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
        chosen_column: str = "chosen",
        rejected_column: str = "rejected",
        margin_column: str | None = None,
        completion_column: str = "completion",
        label_column: str = "label",
        prompt_template: str | Sequence[str] | None = None,
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
        options = RowSources(
            path=split_sources(path)[0],
            val_path=val_path,
            val_fraction=val_fraction,
            val_size=val_size,
            split=split,
            val_split=val_split,
            subset=subset,
            seed=seed,
        )
        super().__init__(
            SourceList.of(options, path, weights),
            PreferenceFormat(
                format=format,
                prompt_column=prompt_column,
                chosen_column=chosen_column,
                rejected_column=rejected_column,
                margin_column=margin_column,
                completion_column=completion_column,
                label_column=label_column,
                prompt_template=prompt_template,
                shape=ChatShape(chat=chat, system_prompt=system_prompt),
            ),
            tokenizer=tokenizer,
            max_length=max_length,
            rewritten_turns=rewritten_turns,
            leaving_out=LeavingOut(max_dropped=max_dropped, drop_invalid=drop_invalid),
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            shuffle=shuffle,
            seed=seed,
            num_workers=num_workers,
            val_prompts=val_prompts,
            packing=packing,
        )
