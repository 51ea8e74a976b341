"""The prompts of reinforcement learning as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule

from lit_posttrain.data.formats.prompt import PromptFormat
from lit_posttrain.data.formats.templates import ChatShape, Value
from lit_posttrain.data.loaders import Batching, PromptLoader
from lit_posttrain.data.row_engine import KeptRows, RowEngine
from lit_posttrain.data.sources.row_sources import HeldOut, RowFunction, RowSource
from lit_posttrain.data.sources.rows import Rows, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptDataModule(LightningDataModule):
    r"""Prompts for GRPO, RLOO and PPO, from a file, a data set on the Hugging Face Hub, memory or a generator.

    A batch is a list of rows {"prompt": text or chat messages, other columns...}; reward functions get the other
    columns by name. Batches are the same on any number of ranks, and Lightning injects no sampler.

    Args:
        path: a file (.jsonl, .json, .csv, .parquet), a folder, the name of a data set on the Hub, a list of mappings,
            or a function that makes the rows of a split ("train" or "validation").
        val_path: another source for validation. At most one of `val_path`, `val_fraction` and `val_split`.
        val_fraction: the fraction of the training rows to hold out for validation, from 0 to below 1.
        val_size: how many rows to validate on: drawn from the validation rows where there are some (by `val_path`,
            `val_split` or a function), else held out from the training rows. None takes all there are; 0 none.
        split: the training split of a data set on the Hub; also a part such as "train[:1000]".
        val_split: its validation split.
        subset: its configuration, such as "main".
        prompt_column: the column that holds the prompt; it is given out as `prompt`, in place of any of that name.
        columns: new name -> column, for the columns to keep beside the prompt. None keeps all, under their own names.
        prompt_template: makes the prompt out of the columns, as "Question: {question}\nAnswer:", in place of a column
            `prompt`; of several a row takes the first of which no column is empty.
        system_prompt: put before the messages of a chat.
        chat: make a prompt that is text the user's message of a chat.
        max_length: tokens that a prompt may have; longer ones are left out and counted. None leaves out none.
        max_dropped: the largest share of the rows that may be left out, from 0 to 1.
        drop_invalid: leave out rows that are wrong and count them, instead of stopping at the first.
        batch_size: prompts per rollout, over all ranks.
        val_batch_size: prompts per validation batch, over all ranks.
        shuffle: whether each epoch goes through the training rows in an order of its own.
        seed: of that order and of the rows held out.
        scores: validation metrics, name -> function with the signature of a reward, or "module:function". Kept as given
            for whoever validates.
        tokenizer: counts tokens where there is a `max_length`; None takes that of the LightningModule.

    Raises:
        ValueError: if a number is out of its range or options exclude one another. What depends on the data is said by
            `setup`.

    >>> data = PromptDataModule([{"question": "2 + 2", "answer": "4"}], prompt_template="{question} =")
    >>> data.setup("fit")
    >>> next(iter(data.train_dataloader()))
    [{'prompt': '2 + 2 =', 'question': '2 + 2', 'answer': '4'}]
    """

    def __init__(
        self,
        path: Source | RowFunction,
        *,
        val_path: Source | None = None,
        val_fraction: float = 0.0,
        val_size: int | None = None,
        split: str = "train",
        val_split: str | None = None,
        subset: str | None = None,
        prompt_column: str = "prompt",
        columns: Mapping[str, str] | None = None,
        prompt_template: str | Sequence[str] | None = None,
        system_prompt: str | None = None,
        chat: bool = False,
        max_length: int | None = None,
        max_dropped: float = 0.1,
        drop_invalid: bool = False,
        batch_size: int = 32,
        val_batch_size: int = 256,
        shuffle: bool = True,
        seed: int = 0,
        scores: Mapping[str, Callable[..., Any] | str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        held_out = HeldOut(path=val_path, split=val_split, fraction=val_fraction, size=val_size)
        self.source = RowSource(path=path, split=split, subset=subset, seed=seed, held_out=held_out)
        prompt = Value("prompt", prompt_column, prompt_template)
        shape = ChatShape(chat=chat, system_prompt=system_prompt)
        self.format = PromptFormat(prompt=prompt, columns=columns, shape=shape)
        self.engine = RowEngine(tokenizer, max_length, max_dropped, drop_invalid)
        self.batching = Batching(batch_size, val_batch_size, shuffle=shuffle, seed=seed)
        self.scores = dict(scores or {})
        self._read: dict[str, KeptRows] = {}
        self._rows: dict[str, Rows] = {}
        self._counted_by: PreTrainedTokenizerBase | None = None

    def prepare_data(self) -> None:
        """Download on one process per node, so that the others find the data set in the cache."""
        self.source.download()

    def setup(self, stage: str) -> None:
        """Read and check all rows; once, whatever the stage.

        Raises:
            FileNotFoundError: if a source is not there.
            ValueError: if a column is missing or a prompt is no prompt, with file and line.
        """
        if not self._read:
            splits = zip(("train", "validation"), self.source.read(), strict=True)
            self._read = {split: self.engine.read(rows, self.format.reader) for split, rows in splits}
            self._rows = {split: _given_out(kept) for split, kept in self._read.items()}
        if self.engine.max_length is not None and (tokenizer := self.engine.find_tokenizer(self)) is not None:
            self.encode(tokenizer)

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Count tokens where there is a `max_length`, unless this tokenizer has done so; leave out longer prompts.

        Raises:
            RuntimeError: if `setup` has not read the rows.
            ValueError: if too many are too long, with file and line.
        """
        self._rows_of("train")
        if self.engine.max_length is not None and self._counted_by is not tokenizer:
            self._counted_by, encoder = tokenizer, self.engine.encoder(tokenizer)
            self._rows = {split: _given_out(self.engine.encode(kept, encoder)) for split, kept in self._read.items()}

    @property
    def train_rows(self) -> Rows:
        """The training rows as they are given out."""
        return self._rows_of("train")

    @property
    def val_rows(self) -> Rows:
        """The validation rows as they are given out, perhaps none."""
        return self._rows_of("validation")

    def where(self, split: str, index: int) -> str:
        """Where row `index` of "train" or "validation" came from, such as "prompts.jsonl:12"."""
        return self._rows_of(split).where(index)

    def train_dataloader(self) -> PromptLoader:
        """The training prompts, each epoch in its own order."""
        # `Trainer(overfit_batches=...)` promises the same batches each epoch; Lightning sees to that for `DataLoader`s.
        overfits = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader(
            self.train_rows, batch_size=self.batching.batch_size, shuffle=self.batching.shuffle and not overfits
        )

    def val_dataloader(self) -> PromptLoader | list[PromptLoader]:
        """The validation prompts in the order of the source; no loader where there are none."""
        if len(self.val_rows) == 0:
            return []
        return self._loader(self.val_rows, batch_size=self.batching.val_batch_size, shuffle=False)

    def predict_dataloader(self) -> PromptLoader:
        """The validation prompts, or the training prompts where there are none, in the order of the source."""
        rows = self.val_rows if len(self.val_rows) > 0 else self.train_rows
        return self._loader(rows, batch_size=self.batching.val_batch_size, shuffle=False)

    def _rows_of(self, split: str) -> Rows:
        if not self._rows:
            raise RuntimeError("the rows are read by `setup`, which a Trainer calls; call it first: `setup('fit')`.")
        if split not in self._rows:
            raise ValueError(f'`split` must be "train" or "validation", got {split!r}.')
        return self._rows[split]

    def _loader(self, rows: Rows, *, batch_size: int, shuffle: bool) -> PromptLoader:
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return PromptLoader(
            rows.rows, batch_size=batch_size, shuffle=shuffle, seed=self.batching.seed, rank=rank, world_size=world_size
        )


def _given_out(kept: KeptRows) -> Rows:
    """The prompts with their columns, still knowing where they came from."""
    return replace(kept.rows, rows=[example.values for example in kept.examples])
