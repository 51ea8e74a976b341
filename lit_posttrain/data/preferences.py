"""Preferences for reward models, DPO and KTO as a LightningDataModule, and what else can be learned from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_posttrain.data.formats.chat import Prompt
from lit_posttrain.data.formats.encoder import Comparison, Demonstration, Example, Judgment
from lit_posttrain.data.formats.preference import PreferenceFormat
from lit_posttrain.data.formats.templates import ChatShape, Row, Value
from lit_posttrain.data.loaders import Batching
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.row_engine import RowEngine
from lit_posttrain.data.sources.row_sources import HeldOut, Paths, RowSources
from lit_posttrain.data.sources.rows import Rows, Source
from lit_posttrain.data.supervised import SupervisedDataModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VIEWS = ("pairs", "chosen", "prompts")


@dataclass(frozen=True)
class ViewedFormat:
    """How rows become preferences, or what there is to imitate in them.

    Args:
        format: how they are read.
        view: "chosen" makes demonstrations; "pairs" and "prompts" leave them as they are.

    Raises:
        ValueError: if there is no such view.
    """

    format: PreferenceFormat
    view: str

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"`view` must be one of {', '.join(VIEWS)}, got {self.view!r}.")

    def reader(self, rows: Rows) -> Callable[[Row], Example | None]:
        """What reads one of these rows; None of a completion that shows what not to do."""
        read = self.format.reader(rows)
        return read if self.view != "chosen" else lambda row: _demonstration(read(row))


def _demonstration(example: Comparison | Judgment) -> Demonstration | None:
    if isinstance(example, Judgment) and not example.label:
        return None
    completion = example.chosen if isinstance(example, Comparison) else example.completion
    prompt = ChatShape().prompt(example.prompt)  # the beginning of a dialogue need not be one to answer
    return Demonstration(prompt, completion)


class PreferenceDataModule(SupervisedDataModule):
    r"""Pairs of completions of which one is preferred, or completions that are desirable or not.

    A batch is a `StepPart` of a `PreferenceBatch` (for reward models and DPO) or of an `UnpairedBatch` (for KTO). The
    formats:

    - explicit: `prompt`, `chosen`, `rejected`, each text or messages;
    - implicit: two whole dialogues `chosen` and `rejected`, whose common beginning is the prompt: messages, or text as
      in HH-RLHF ("\\n\\nHuman: ...\\n\\nAssistant: ..."), which is made messages; other texts are split at the last
      white space that they share;
    - unpaired: `prompt`, `completion`, `label` (true for desirable).

    No sequence is cut: where one of a pair is too long, the pair is left out. Seen as demonstrations or as prompts
    (`view`) the same rows serve supervised fine-tuning and online algorithms.

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
        view: what is learned from: "pairs" are the preferences themselves; "chosen" their preferred completions, or
            those judged desirable, as demonstrations; "prompts" the prompts alone, which `viewed()` gives as a
            `PromptDataModule`.
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

    format: ViewedFormat

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
        view: str = "pairs",
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
        held_out = HeldOut(path=val_path, split=val_split, fraction=val_fraction, size=val_size)
        sources = RowSources(path, weights=weights, split=split, subset=subset, seed=seed, held_out=held_out)
        columns = PreferenceFormat(
            format=format,
            prompt=Value("prompt", prompt_column, prompt_template),
            chosen=chosen_column,
            rejected=rejected_column,
            margin=margin_column,
            completion=completion_column,
            label=label_column,
            shape=ChatShape(chat=chat, system_prompt=system_prompt),
        )
        engine = RowEngine(tokenizer, max_length, max_dropped, drop_invalid, rewritten_turns, num_workers)
        batching = Batching(batch_size, val_batch_size, packing=packing, shuffle=shuffle, seed=seed)
        super().__init__(sources, ViewedFormat(columns, view), engine, batching, val_prompts=val_prompts)

    def setup(self, stage: str) -> None:
        """Read, check and, where there is a tokenizer, encode all rows; once, whatever the stage.

        Raises:
            FileNotFoundError: if a source is not there.
            ValueError: if a row is wrong, with file and line, or the view is that of the prompts.
        """
        if self.format.view == "prompts":
            raise ValueError('`view="prompts"` is of no pairs: give the Trainer what `viewed()` makes of this.')
        super().setup(stage)

    def viewed(self) -> PreferenceDataModule | PromptDataModule:
        """What a Trainer takes: of the view "prompts" their `PromptDataModule`, of the others this one."""
        if self.format.view != "prompts":
            return self
        engine, batching = self.engine, self.batching
        return PromptDataModule(
            self.prompts,
            max_length=engine.max_length,
            max_dropped=engine.max_dropped,
            drop_invalid=engine.drop_invalid,
            batch_size=batching.batch_size,
            val_batch_size=batching.val_batch_size,
            shuffle=batching.shuffle,
            seed=batching.seed,
            tokenizer=engine.tokenizer,
        )

    def prompts(self, split: str) -> list[dict[str, Any]]:
        """The prompts of "train" or "validation", each once; those of validation are left out of training.

        A function that makes the rows of a split, as `PromptDataModule` takes it.
        """
        self.read_rows()
        found = self._distinct_prompts(split)
        held_out = self._distinct_prompts("validation") if split == "train" else {}
        return [{"prompt": prompt} for key, prompt in found.items() if key not in held_out]

    def _distinct_prompts(self, split: str) -> dict[str, Prompt]:
        return {json.dumps(example.prompt): example.prompt for example in self.examples(split)}
