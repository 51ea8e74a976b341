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
from lit_posttrain.data.formats.encoder import Encoder, Example
from lit_posttrain.data.formats.templates import Row
from lit_posttrain.data.loaders import Batching, FixedLoader, StepLoader
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.data.row_engine import KeptRows, RowEngine
from lit_posttrain.data.sources.row_sources import RowSources
from lit_posttrain.data.sources.rows import Rows
from lit_posttrain.data.step_plan import StepPlan
from lit_posttrain.models.tokenizers import pad_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation")
BATCH_KINDS: dict[type, Any] = {EncodedRow: SupervisedBatch, EncodedPair: PreferenceBatch, JudgedRow: UnpairedBatch}


class RowFormat(Protocol):
    """How the rows of a source are read."""

    def reader(self, rows: Rows) -> Callable[[Row], Example | None]:
        """What reads one of these rows; refuses rows without the columns that it needs."""


class SupervisedDataModule(LightningDataModule):
    """Rows as micro-batches of optimiser steps (`StepPart`).

    `setup` reads and checks the rows, and encodes them as soon as there is a tokenizer: that given here, else that of
    the LightningModule (its attribute `tokenizer`), which the Trainer has attached by then. Both come before weights
    are loaded in `configure_model`. Without a Trainer `encode(tokenizer)` does it.

    Args:
        sources: where rows come from.
        format: how they are read.
        engine: what makes tokens of them, and which may be left out.
        batching: which of them make a step.
        val_prompts: prompts to complete in validation, beside the likelihood of its rows.
    """

    def __init__(
        self,
        sources: RowSources,
        format: RowFormat,
        engine: RowEngine,
        batching: Batching,
        *,
        val_prompts: PromptDataModule | None,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.format = format
        self.engine = engine
        self.batching = batching
        self.val_prompts = val_prompts
        self._read: dict[str, list[KeptRows]] = {}
        self._encoded: dict[str, list[KeptRows]] = {}
        self._encoder: Encoder | None = None

    @property
    def packing(self) -> bool:
        """Whether rows share sequences of the model's input."""
        return self.batching.packing

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
        self.read_rows()
        if self.val_prompts is not None:
            self.val_prompts.trainer = self.trainer
            self.val_prompts.setup(stage)
        tokenizer = self.engine.find_tokenizer(self)
        if tokenizer is not None:
            self.encode(tokenizer)

    def read_rows(self) -> None:
        """Read and check all rows, once.

        Raises:
            FileNotFoundError: if a source is not there.
            ValueError: if a row is wrong, with file and line.
        """
        if self._read:
            return
        train, validation = (
            [self.engine.read(rows, self.format.reader) for rows in sources] for sources in self.sources.read()
        )
        for source in train:
            if len(source) == 0:
                raise ValueError(f"{source.rows.name}: there is nothing to learn from, no row is desirable.")
        _check_kinds([*train, *validation])
        self._read = {"train": train, "validation": [source for source in validation if len(source) > 0]}

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make tokens of all rows, unless this tokenizer has done so.

        Raises:
            RuntimeError: if `setup` has not read the rows.
            ValueError: if a row cannot be encoded or too many are too long, with file and line.
        """
        if not self._read:
            raise RuntimeError("the rows are read by `setup`, which a Trainer calls; call it first: `setup('fit')`.")
        if self._encoder is not None and self._encoder.tokenizer is tokenizer:
            return
        encoder = self.engine.encoder(tokenizer)
        self._encoded = {s: [self.engine.encode(rows, encoder) for rows in kept] for s, kept in self._read.items()}
        self._encoder = encoder

    def examples(self, split: str) -> list[Example]:
        """The rows of "train" or "validation" as they were read."""
        return [example for source in self._read.get(split, []) for example in source.examples]

    def encoded(self, split: str) -> list[KeptRows]:
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
            return FixedLoader(self._training_plan())
        if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
            raise ValueError(
                "GradientAccumulationScheduler does not work here: how a step is cut into micro-batches is fixed at "
                "the start. Use `accumulate_grad_batches`."
            )
        return StepLoader(self._training_plan(), trainer)

    @property
    def scores(self) -> dict[str, Any]:
        """What completions of the validation prompts are scored by, as `PromptDataModule` has it."""
        return {} if self.val_prompts is None else self.val_prompts.scores

    def val_dataloader(self) -> list[Any]:
        """The validation rows in the order of the source, and the prompts to complete; what there is of them."""
        loaders: list[Any] = [FixedLoader(self._fixed_plan("validation"))] if self.encoded("validation") else []
        prompts = [] if self.val_prompts is None else self.val_prompts.val_dataloader()
        return loaders + (prompts if isinstance(prompts, list) else [prompts])

    def predict_dataloader(self) -> FixedLoader:
        """The validation rows, or the training rows where there are none, in the order of the source."""
        return FixedLoader(self._fixed_plan("validation" if self.encoded("validation") else "train"))

    def every_row(self, split: str) -> StepPlan:
        """Every row of "train" or "validation" once; without `weights`, in the first epoch's micro-batches."""
        if split == "validation":
            return self._fixed_plan(split)
        plan = self._training_plan()
        plan.weights = [1.0] * len(plan.sizes)
        return plan

    @property
    def batch_kind(self) -> type:
        """What the batches are."""
        return BATCH_KINDS[type(self.encoded("train")[0].examples[0])]

    def _training_plan(self) -> StepPlan:
        """The training steps; `Trainer(overfit_batches=...)` promises the same batches each epoch."""
        trainer: Any = self.trainer
        shuffle = self.batching.shuffle and (trainer is None or trainer.overfit_batches == 0)
        micro_batches = 1 if trainer is None else trainer.accumulate_grad_batches
        return self._plan("train", self.batching.batch_size, shuffle=shuffle, micro_batches=micro_batches)

    def _fixed_plan(self, split: str) -> StepPlan:
        """All rows of a split once, in the order of the source."""
        return self._plan(split, self.batching.val_batch_size, shuffle=False)

    def _plan(self, split: str, batch_size: int, *, shuffle: bool, micro_batches: int = 1) -> StepPlan:
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
            weights=self.sources.weights if split == "train" else (),
            shuffle=shuffle,
            seed=self.batching.seed,
            complete=partial(with_mismatches, max_length=self._encoder.limit) if kind is JudgedRow else None,
            packing=self.packing and alone,
            rank=rank,
            world_size=world_size,
        )


def _check_kinds(sources: list[KeptRows]) -> None:
    kinds = {type(source.examples[0]).__name__: source.rows.source for source in sources if len(source) > 0}
    if len(kinds) > 1:
        named = ", ".join(f"{source or 'rows in memory'} ({kind.lower()}s)" for kind, source in kinds.items())
        raise ValueError(f"all sources must hold rows of one kind, got {named}: train on one kind at a time.")
