"""From the rows of a source to what is learned from, with an account of those that are left out."""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_posttrain.batching import EncodedPair, EncodedRow, JudgedRow
from lit_posttrain.data.formats.encoder import Encoder
from lit_posttrain.data.formats.templates import Row
from lit_posttrain.data.sources.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHUNK = 256  # rows handed to a worker at a time
WAY_OUT = "`drop_invalid=True` leaves such rows out and counts them."


@dataclass
class KeptRows:
    """The rows of a source that could be read, or made tokens of.

    Attributes:
        examples: what each says, or its tokens.
        rows: where each came from.
        dropped: what is wrong with those that were left out, with their places.
    """

    examples: list[Any] = field(repr=False)
    rows: Rows
    dropped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class RowEngine:
    """Reads rows and makes tokens of them; none is ever cut.

    Args:
        tokenizer: that makes the tokens; None takes that of the LightningModule.
        max_length: tokens that a sequence may have; longer rows are left out.
        max_dropped: the largest share of a source's rows that may be left out, from 0 to 1.
        drop_invalid: leave out rows that are wrong, instead of stopping at the first.
        rewritten_turns: where a chat template rewrites earlier turns, supervise the "last" turn only, or "refuse".
        num_workers: processes that make tokens; 0 does it in this one.

    Raises:
        ValueError: if a number is out of its range.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    max_length: int | None = None
    max_dropped: float = 0.1
    drop_invalid: bool = False
    rewritten_turns: str = "last"
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"`max_length` must be >= 2, got {self.max_length}.")
        if self.num_workers < 0:
            raise ValueError(f"`num_workers` must be >= 0, got {self.num_workers}.")
        if not 0 <= self.max_dropped <= 1:
            raise ValueError(f"`max_dropped` must be a share from 0 to 1, got {self.max_dropped}.")

    def find_tokenizer(self, datamodule: Any) -> PreTrainedTokenizerBase | None:
        """The tokenizer given, else that of the LightningModule; None where no Trainer has attached one.

        Args:
            datamodule: the LightningDataModule whose rows these are.

        Raises:
            ValueError: if the LightningModule has none.
        """
        if self.tokenizer is not None or datamodule.trainer is None:
            return self.tokenizer
        module = datamodule.trainer.lightning_module
        tokenizer = getattr(module, "tokenizer", None)
        if tokenizer is None:
            raise ValueError(
                f"`tokenizer` is needed: {type(module).__name__} has no attribute `tokenizer`, so give one to "
                f"{type(datamodule).__name__}."
            )
        return tokenizer

    def encoder(self, tokenizer: PreTrainedTokenizerBase) -> Encoder:
        """What makes tokens with this tokenizer."""
        return Encoder(tokenizer, self.max_length, self.rewritten_turns)

    def read(self, rows: Rows, reader: Callable[[Rows], Callable[[Row], Any]]) -> KeptRows:
        """Read every row.

        Args:
            rows: of a source, perhaps none.
            reader: gives what reads one of these rows; a row that it makes None of is of no concern.

        Raises:
            ValueError: if one is wrong and may not be left out, or too many are; with file and line.
        """
        examples, kept, dropped = [], [], []
        read = reader(rows) if len(rows) > 0 else None
        for index, row in enumerate(rows):
            assert read is not None
            try:
                example = read(row)
            except ValueError as error:
                dropped.append(self._leave_out(rows.where(index), error, dict(row)))
                continue
            if example is not None:
                examples.append(example)
                kept.append(index)
        self._check_share(dropped, len(rows), rows)
        return KeptRows(examples, rows.select(kept), dropped)

    def encode(self, kept: KeptRows, encoder: Encoder) -> KeptRows:
        """Make tokens of every row, and leave out those that are too long.

        Raises:
            ValueError: if a row is wrong, or too many are too long; with file and line.
        """
        rows, limit = kept.rows, encoder.limit
        examples, places, dropped, rewritten = [], [], list(kept.dropped), 0
        for index, result in enumerate(self._encode_all(kept.examples, encoder)):
            if isinstance(result, ValueError):
                dropped.append(self._leave_out(rows.where(index), result, kept.examples[index]))
                continue
            example, changed = result
            if limit is not None and example.length > limit:
                dropped.append(f"{rows.where(index)}: {example.length} tokens, more than `max_length` = {limit}.")
                continue
            rewritten += changed
            examples.append(example)
            places.append(index)
        total = len(kept) + len(kept.dropped)
        self._check_share(dropped, total, rows)
        if dropped:
            log.warning("%s: %d of %d rows are left out, first %s", rows.name, len(dropped), total, dropped[0])
        _warn_of_unknown_tokens(examples, encoder.tokenizer, rows.name)
        if rewritten:
            log.warning(
                "%s: the chat template rewrites earlier turns of %d rows, of these the last turn alone is supervised",
                rows.name,
                rewritten,
            )
        return KeptRows(examples, rows.select(places), dropped)

    def _leave_out(self, where: str, error: ValueError, row: Any) -> str:
        """What is said of a row that is wrong, if it may be left out."""
        if not self.drop_invalid:
            raise ValueError(f"{where}: {error} The row is {reprlib.repr(row)}. {WAY_OUT}") from error
        return f"{where}: {error}"

    def _check_share(self, dropped: Sequence[str], total: int, rows: Rows) -> None:
        if len(dropped) > self.max_dropped * total or (dropped and len(dropped) == total):
            raise ValueError(
                f"{rows.name}: {len(dropped)} of {total} rows would be left out, at most a share of `max_dropped` = "
                f"{self.max_dropped} may be, and one row must stay. The first is {dropped[0]} "
                "Raise `max_length` or `max_dropped`, or mend the rows."
            )

    def _encode_all(self, examples: list[Any], encoder: Encoder) -> Iterator[Any]:
        if self.num_workers == 0:
            yield from (_encode(encoder, example) for example in examples)
            return
        # the workers are many already; a tokenizer that forks threads of its own would warn
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with ProcessPoolExecutor(self.num_workers) as pool:
            yield from pool.map(partial(_encode, encoder), examples, chunksize=CHUNK)


def _encode(encoder: Encoder, example: Any) -> tuple[Any, bool] | ValueError:
    """The tokens and whether earlier turns are left unsupervised, or what is wrong."""
    try:
        encoded: tuple[Any, bool] = example.encode(encoder)
    except ValueError as error:
        return error
    return encoded


def _warn_of_unknown_tokens(examples: list[Any], tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id):  # GPT-2's is its EOS
        return
    parts = [ids for example in examples for row in _sequences(example) for ids in (row.prompt_ids, row.completion_ids)]
    number = sum(ids.count(unknown) for ids in parts)
    if number:
        log.warning(
            "%s: %d of %d tokens are `%s`, words that the tokenizer does not know and the model cannot tell apart",
            source,
            number,
            sum(map(len, parts)),
            tokenizer.unk_token,
        )


def _sequences(example: Any) -> tuple[EncodedRow, ...]:
    """Those of a row; a prompt has none, its tokens are only counted."""
    if isinstance(example, EncodedPair):
        return example.chosen, example.rejected
    if isinstance(example, JudgedRow):
        return (example.row,)
    return (example,) if isinstance(example, EncodedRow) else ()
