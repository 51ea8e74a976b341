"""All rows of a source as tokens, with an account of those that are left out."""

from __future__ import annotations

import logging
import os
import reprlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_posttrain.batching import EncodedPair, EncodedRow, JudgedRow
from lit_posttrain.data.columns import Row
from lit_posttrain.data.encoder import Encoder
from lit_posttrain.data.examples import Encoded, Example
from lit_posttrain.data.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHUNK = 256  # rows handed to a worker at a time


@dataclass(frozen=True, kw_only=True)
class LeavingOut:
    """Which rows may be left out, and how many.

    Args:
        max_dropped: the largest share of a source's rows, from 0 to 1.
        drop_invalid: leave out rows that are wrong, instead of stopping at the first.

    Raises:
        ValueError: if the share is none.
    """

    max_dropped: float = 0.1
    drop_invalid: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_dropped <= 1:
            raise ValueError(f"`max_dropped` must be a share from 0 to 1, got {self.max_dropped}.")


@dataclass
class ParsedRows:
    """The rows of a source that could be read.

    Attributes:
        examples: what they say.
        rows: where each came from.
        dropped: what is wrong with those that were left out, with their places.
    """

    examples: list[Example]
    rows: Rows
    dropped: list[str] = field(default_factory=list)


def parse_rows(rows: Rows, read: Callable[[Row], Example], leaving_out: LeavingOut) -> ParsedRows:
    """Read every row.

    Raises:
        ValueError: if one is wrong and may not be left out, or too many are; with file and line.
    """
    examples, kept, dropped = [], [], []
    for index, row in enumerate(rows):
        try:
            examples.append(read(row))
            kept.append(index)
        except ValueError as error:
            if not leaving_out.drop_invalid:
                raise ValueError(
                    f"{rows.where(index)}: {error} The row is {reprlib.repr(dict(row))}. "
                    "`data.drop_invalid=true` leaves such rows out and counts them."
                ) from error
            dropped.append(f"{rows.where(index)}: {error}")
    check_share(dropped, len(rows), rows, leaving_out)
    return ParsedRows(examples, rows.select(kept), dropped)


@dataclass
class EncodedRows:
    """The rows of a source as tokens.

    Attributes:
        examples: each row.
        rows: where each came from.
        dropped: what is wrong with those that were left out, with their places.
    """

    examples: list[Encoded] = field(repr=False)
    rows: Rows
    dropped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)


def encode_rows(parsed: ParsedRows, encoder: Encoder, leaving_out: LeavingOut, *, num_workers: int = 0) -> EncodedRows:
    """Encode every row; those that are too long are left out, never cut.

    Args:
        parsed: the rows of a source.
        encoder: with the tokenizer.
        leaving_out: how many may be left out.
        num_workers: processes that encode; 0 does it in this one.

    Raises:
        ValueError: if a row is wrong, or too many are too long; with file and line.
    """
    rows, limit = parsed.rows, encoder.limit
    examples, kept, dropped = [], [], list(parsed.dropped)
    rewritten = 0
    for index, result in enumerate(_encode_all(parsed.examples, encoder, num_workers)):
        if isinstance(result, str):
            if not leaving_out.drop_invalid:
                raise ValueError(
                    f"{rows.where(index)}: {result} The row is {reprlib.repr(parsed.examples[index])}. "
                    "`data.drop_invalid=true` leaves such rows out and counts them."
                )
            dropped.append(f"{rows.where(index)}: {result}")
            continue
        example, changed = result
        if limit is not None and example.length > limit:
            dropped.append(f"{rows.where(index)}: {example.length} tokens, more than `max_length` = {limit}.")
            continue
        rewritten += changed
        examples.append(example)
        kept.append(index)
    total = len(parsed.rows) + len(parsed.dropped)
    check_share(dropped, total, rows, leaving_out)
    if dropped:
        log.warning("%s: %d of %d rows are left out, first %s", _name(rows), len(dropped), total, dropped[0])
    _warn_of_unknown_tokens(examples, encoder.tokenizer, _name(rows))
    if rewritten:
        log.warning(
            "%s: the chat template rewrites earlier turns of %d rows, of these the last turn alone is supervised",
            _name(rows),
            rewritten,
        )
    return EncodedRows(examples, rows.select(kept), dropped)


def _warn_of_unknown_tokens(examples: list[Encoded], tokenizer: PreTrainedTokenizerBase, source: str) -> None:
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


def _sequences(example: Encoded) -> tuple[EncodedRow, ...]:
    if isinstance(example, EncodedPair):
        return example.chosen, example.rejected
    return (example.row,) if isinstance(example, JudgedRow) else (example,)


def check_share(dropped: Sequence[str], total: int, rows: Rows, leaving_out: LeavingOut) -> None:
    """Refuse to leave out too much.

    Raises:
        ValueError: naming the first row.
    """
    if len(dropped) > leaving_out.max_dropped * total or (dropped and len(dropped) == total):
        raise ValueError(
            f"{_name(rows)}: {len(dropped)} of {total} rows would be left out, at most a share of "
            f"`max_dropped` = {leaving_out.max_dropped} may be, and one row must stay. The first is {dropped[0]} "
            "Raise `data.max_length` or `data.max_dropped`, or mend the rows."
        )


def _name(rows: Rows) -> str:
    return rows.source or "the rows given"


Result = tuple[Encoded, bool] | str


def _encode_all(examples: list[Example], encoder: Encoder, num_workers: int) -> Iterator[Result]:
    if num_workers == 0:
        yield from (_encode(encoder, example) for example in examples)
        return
    # the workers are many already; a tokenizer that forks threads of its own would warn
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with ProcessPoolExecutor(num_workers) as pool:
        yield from pool.map(partial(_encode, encoder), examples, chunksize=CHUNK)


def _encode(encoder: Encoder, example: Example) -> Result:
    """The tokens, or what is wrong."""
    try:
        encoded, rewritten = example.encode(encoder)
    except ValueError as error:
        return str(error)
    return _packed(encoded), rewritten


def _packed(encoded: Any) -> Any:
    """With arrays in place of lists, which take a tenth of the memory."""
    if isinstance(encoded, EncodedPair):
        return EncodedPair(_packed(encoded.chosen), _packed(encoded.rejected), encoded.margin)
    if isinstance(encoded, JudgedRow):
        return JudgedRow(_packed(encoded.row), encoded.label)
    assert isinstance(encoded, EncodedRow)
    return EncodedRow(array("i", encoded.prompt_ids), array("i", encoded.completion_ids), array("b", encoded.loss_mask))
