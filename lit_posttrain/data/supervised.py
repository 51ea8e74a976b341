"""What the DataModules of supervised algorithms share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lit_posttrain.batching import (
    EncodedPair,
    EncodedRow,
    JudgedRow,
    PreferenceBatch,
    SupervisedBatch,
    UnpairedBatch,
    with_mismatches,
)
from lit_posttrain.data.columns import Row
from lit_posttrain.data.encoded_rows import EncodedRows, LeavingOut, ParsedRows, encode_rows, parse_rows
from lit_posttrain.data.encoder import Encoder
from lit_posttrain.data.examples import Example
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.rows import Rows
from lit_posttrain.data.source_list import SourceList
from lit_posttrain.data.step_loader import FixedLoader, StepLoader
from lit_posttrain.data.step_plan import StepPlan
from lit_posttrain.models.tokenizers import pad_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation")
BATCH_KINDS: dict[type, Any] = {
    EncodedRow: SupervisedBatch,
    EncodedPair: PreferenceBatch,
    JudgedRow: UnpairedBatch,
}


class RowFormat(Protocol):
    """How the rows of a source are read."""

    def reader(self, rows: Rows) -> Callable[[Row], Any]:
        """What reads one of these rows; refuses rows without the columns that it needs."""


class SupervisedDataModule(LightningDataModule):
    """Rows as micro-batches of optimiser steps (`StepPart`).

    `setup` reads and checks the rows, and encodes them as soon as there is a tokenizer: that given here, else that of
    the LightningModule (its attribute `tokenizer`), which the Trainer has attached by then. Both come before weights
    are loaded in `configure_model`. Without a Trainer `encode(tokenizer)` does it.

    Args:
        sources: where rows come from.
        format: how they are read.
        tokenizer: None takes the LightningModule's.
        max_length: tokens that a sequence may have; None takes what the tokenizer knows of its model.
        rewritten_turns: what to do where a chat template rewrites earlier turns.
        leaving_out: which rows may be left out.
        batch_size: rows of an optimiser step, over all ranks.
        val_batch_size: rows of a validation batch, over all ranks.
        shuffle: whether each epoch has an order of its own.
        seed: of that order.
        num_workers: processes that encode.
        val_prompts: prompts to complete in validation, beside the likelihood of its rows.
        packing: whether rows share sequences of the model's input.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        sources: SourceList,
        format: RowFormat,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        max_length: int | None,
        rewritten_turns: str,
        leaving_out: LeavingOut,
        batch_size: int,
        val_batch_size: int,
        shuffle: bool,
        seed: int,
        num_workers: int,
        val_prompts: PromptDataModule | None,
        packing: bool,
    ) -> None:
        super().__init__()
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("val_batch_size", val_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_length", 2 if max_length is None else max_length, 2),
        ):
            if number < least:
                raise ValueError(f"`{name}` must be >= {least}, got {number}.")
        self.sources = sources
        self.format = format
        self.max_length = max_length
        self.rewritten_turns = rewritten_turns
        self.leaving_out = leaving_out
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.val_prompts = val_prompts
        self.packing = packing
        self._given_tokenizer = tokenizer
        self._parsed: dict[str, list[ParsedRows]] = {}
        self._encoded: dict[str, list[EncodedRows]] = {}
        self._encoder: Encoder | None = None

    def prepare_data(self) -> None:
        """Download on one process per node, so that the others find the data set in the cache."""
        self.sources.download()
        if self.val_prompts is not None:
            self.val_prompts.prepare_data()

    def setup(self, stage: str) -> None:
        """Read, check and, where there is a tokenizer, encode all rows; once, whatever the stage.

        Raises:
            FileNotFoundError: if a source is not there.
            ValueError: if a row is wrong, with file and line.
        """
        if not self._parsed:
            self._parsed = {
                split: [parse_rows(rows, self.format.reader(rows), self.leaving_out) for rows in sources]
                for split, sources in zip(SPLITS, self.sources.read(), strict=True)
            }
            _check_kinds(self._parsed)
        if self.val_prompts is not None:
            self.val_prompts.trainer = self.trainer
            self.val_prompts.setup(stage)
        tokenizer = self._given_tokenizer
        if tokenizer is None and self.trainer is not None:
            tokenizer = getattr(self.trainer.lightning_module, "tokenizer", None)
            if tokenizer is None:
                raise ValueError(
                    f"`tokenizer` is needed: {type(self.trainer.lightning_module).__name__} has no attribute "
                    f"`tokenizer`, so give one to {type(self).__name__}."
                )
        if tokenizer is not None:
            self.encode(tokenizer)

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make tokens of all rows, unless this tokenizer has done so.

        Raises:
            RuntimeError: if `setup` has not read the rows.
            ValueError: if a row cannot be encoded or too many are too long, with file and line.
        """
        if not self._parsed:
            raise RuntimeError("the rows are read by `setup`, which a Trainer calls; call it first: `setup('fit')`.")
        if self._encoder is not None and self._encoder.tokenizer is tokenizer:
            return
        encoder = Encoder(tokenizer, self.max_length, self.rewritten_turns)
        self._encoded = {
            split: [encode_rows(rows, encoder, self.leaving_out, num_workers=self.num_workers) for rows in sources]
            for split, sources in self._parsed.items()
        }
        self._encoder = encoder

    def examples(self, split: str) -> list[Example]:
        """The rows of "train" or "validation" as they were read."""
        return [example for source in self._parsed.get(split, []) for example in source.examples]

    def encoded(self, split: str) -> list[EncodedRows]:
        """The encoded rows of "train" or "validation", of each source.

        Raises:
            RuntimeError: if there are none yet.
            ValueError: if there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f'`split` must be "train" or "validation", got {split!r}.')
        if self._encoder is None:
            raise RuntimeError("the rows are not encoded yet: `setup('fit')` and `encode(tokenizer)` do it.")
        return self._encoded[split]

    def where(self, split: str, index: int) -> str:
        """Where encoded row `index` of "train" or "validation" came from, such as "rows.jsonl:12"."""
        for source in self.encoded(split):
            if index < len(source):
                return source.rows.where(index)
            index -= len(source)
        raise IndexError(f"there is no row with that number in {split!r}.")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that made the tokens."""
        self.encoded("train")
        assert self._encoder is not None
        return self._encoder.tokenizer

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, for whoever knows how many the model has positions for."""
        sources = chain(self.encoded("train"), self.encoded("validation"))
        return max(example.length for source in sources for example in source.examples)

    def train_dataloader(self) -> StepLoader | FixedLoader:
        """The training steps, each epoch in its own order; without a Trainer those of the first epoch."""
        trainer: Any = self.trainer
        if trainer is None:
            return FixedLoader(self._plan("train", batch_size=self.batch_size, shuffle=self.shuffle))
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise ValueError(
                "GradientAccumulationScheduler does not work here: how a step is cut into micro-batches is fixed at "
                "the start. Use `accumulate_grad_batches`."
            )
        # `Trainer(overfit_batches=...)` promises the same batches each epoch; Lightning sees to that for `DataLoader`s.
        shuffle = self.shuffle and trainer.overfit_batches == 0
        micro_batches = trainer.accumulate_grad_batches
        plan = self._plan("train", batch_size=self.batch_size, shuffle=shuffle, micro_batches=micro_batches)
        return StepLoader(plan, trainer)

    @property
    def scores(self) -> dict[str, Any]:
        """What completions of the validation prompts are scored by, as `PromptDataModule` has it."""
        return {} if self.val_prompts is None else self.val_prompts.scores

    def val_dataloader(self) -> list[Any]:
        """The validation rows in the order of the source, and the prompts to complete; what there is of them."""
        loaders: list[Any] = []
        if self.encoded("validation"):
            loaders.append(FixedLoader(self._plan("validation", batch_size=self.val_batch_size, shuffle=False)))
        prompts = [] if self.val_prompts is None else self.val_prompts.val_dataloader()
        return loaders + (prompts if isinstance(prompts, list) else [prompts])

    def predict_dataloader(self) -> FixedLoader:
        """The validation rows, or the training rows where there are none, in the order of the source."""
        split = "validation" if self.encoded("validation") else "train"
        return FixedLoader(self._plan(split, batch_size=self.val_batch_size, shuffle=False))

    def every_row(self, split: str) -> StepPlan:
        """Every row of "train" or "validation" once; without `weights`, in the first epoch's micro-batches."""
        if split == "validation":
            return self._plan(split, batch_size=self.val_batch_size, shuffle=False)
        trainer: Any = self.trainer
        overfits = trainer is not None and trainer.overfit_batches != 0
        plan = self._plan(
            split,
            batch_size=self.batch_size,
            shuffle=self.shuffle and not overfits,
            micro_batches=1 if trainer is None else trainer.accumulate_grad_batches,
        )
        plan.weights = [1.0] * len(plan.sizes)
        return plan

    @property
    def batch_kind(self) -> type:
        """What the batches are."""
        return BATCH_KINDS[type(self.encoded("train")[0].examples[0])]

    def _plan(self, split: str, *, batch_size: int, shuffle: bool, micro_batches: int = 1) -> StepPlan:
        sources = [source.examples for source in self.encoded(split)]
        kind = type(sources[0][0])
        assert self._encoder is not None
        collate = partial(BATCH_KINDS[kind].collate, pad_id=pad_token_id(self._encoder.tokenizer))
        alone = kind is EncodedRow
        if not alone:  # two sequences a row, which are packed where they become a batch
            collate = partial(collate, packing=self.packing)
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return StepPlan(
            sources,
            collate=collate,
            batch_size=batch_size,
            micro_batches=micro_batches,
            weights=self.sources.weights if split == "train" else None,
            shuffle=shuffle,
            seed=self.seed,
            complete=partial(with_mismatches, max_length=self._encoder.limit) if kind is JudgedRow else None,
            packing=self.packing and alone,
            rank=rank,
            world_size=world_size,
        )


def _check_kinds(parsed: dict[str, list[ParsedRows]]) -> None:
    sources = [source for split in parsed.values() for source in split]
    kinds = {type(source.examples[0]).__name__: source.rows.source for source in sources}
    if len(kinds) > 1:
        named = ", ".join(f"{source or 'rows in memory'} ({kind.lower()}s)" for kind, source in kinds.items())
        raise ValueError(f"all sources must hold rows of one kind, got {named}: train on one kind at a time.")
