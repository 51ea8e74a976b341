"""Batches of sequences that are given, not sampled: demonstrations, preference pairs, judged completions.

Loss masks are over completion positions. A dialogue of several turns counts as prompt what precedes its first
supervised token, and as completion the rest, in which the turns of others are masked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from lit_posttrain.batching.packing import pack_numbers
from lit_posttrain.batching.tokens import TrainingBatch
from lit_posttrain.functional import pad_left, pad_right


@dataclass(frozen=True)
class EncodedRow:
    """One sequence as tokens.

    Attributes:
        prompt_ids: at least one token.
        completion_ids: at least one token; the last one is supervised.
        loss_mask: for each completion token whether it is supervised.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    loss_mask: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_terms(self) -> int:
        """What it adds to the normaliser of a step: its supervised tokens."""
        return sum(self.loss_mask)


@dataclass(frozen=True)
class EncodedPair:
    """Two completions of one prompt, the first of which is preferred by `margin`."""

    chosen: EncodedRow
    rejected: EncodedRow
    margin: float = 0.0
    num_terms: int = 1

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return max(self.chosen.length, self.rejected.length)


@dataclass(frozen=True)
class JudgedRow:
    """A completion that is desirable or not, and another row's completion behind the same prompt.

    Attributes:
        row: prompt and completion.
        label: whether it is desirable.
        mismatched: the prompt with the completion of the next row of the step; KTO estimates its KL term with it. None
            until the step is known.
    """

    row: EncodedRow
    label: bool
    mismatched: EncodedRow | None = None
    num_terms: int = 1

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return self.row.length


def with_mismatches(rows: Sequence[JudgedRow], *, max_length: int | None) -> list[JudgedRow]:
    """Give every row of a step the completion of the next one, the last row that of the first.

    Which rows are together depends on the step alone, so neither ranks nor micro-batches change the estimate. A step of
    one row keeps its own completion, as there is no other.

    Args:
        rows: all rows of an optimiser step.
        max_length: tokens that a sequence may have; a borrowed completion is cut there.
    """
    made = []
    for index, judged in enumerate(rows):
        prompt, lender = judged.row.prompt_ids, rows[(index + 1) % len(rows)].row
        room = len(lender.completion_ids) if max_length is None else max(1, max_length - len(prompt))
        borrowed = EncodedRow(prompt, lender.completion_ids[:room], lender.loss_mask[:room])
        made.append(replace(judged, mismatched=borrowed))
    return made


@dataclass(kw_only=True, eq=False)
class SupervisedBatch(TrainingBatch):
    """Sequences of which some completion tokens are supervised: `loss_mask` is True on these."""

    @classmethod
    def collate(cls, rows: Sequence[EncodedRow], *, pad_id: int, pack_ids: Sequence[int] | None = None) -> Self:
        """Pad rows to one batch.

        Args:
            rows: of none a row of a single token is made that counts for nothing, so that a rank without sequences can
                still take part.
            pad_id: written where there is no token; masks come from lengths, so that it may be the EOS.
            pack_ids: for each row the sequence that it shares with others; None = none does.
        """
        rows = rows or [EncodedRow([pad_id], [pad_id], [False])]
        prompt_ids, prompt_mask = pad_left([row.prompt_ids for row in rows], pad_id=pad_id)
        completion_ids, completion_mask = pad_right([row.completion_ids for row in rows], pad_id=pad_id)
        loss_mask, _ = pad_right([row.loss_mask for row in rows], pad_id=0)
        return cls(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids,
            completion_mask=completion_mask,
            loss_mask=loss_mask.bool(),
            pack_ids=None if pack_ids is None else torch.tensor(pack_ids),
        )


@dataclass(kw_only=True, eq=False)
class TwinBatch:
    """Two sequences for each of B rows, all 2B of them in one batch for one forward.

    Args:
        sequences: 2B rows, the first halves of all rows and then the second. Packed ones share sequences of the model's
            input within their half, which can be taken by itself.
        row_mask: (B,), False on a row that only stands in where a rank has none.
    """

    sequences: SupervisedBatch
    row_mask: Tensor

    def __len__(self) -> int:
        return len(self.row_mask)

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`; dtypes stay."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})

    def halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What was computed of the 2B sequences, apart: (2B, ...) to twice (B, ...)."""
        first, second = values.split(len(self))
        return first, second

    @staticmethod
    def _collate_halves(
        first: Sequence[EncodedRow], second: Sequence[EncodedRow], *, pad_id: int, packing: bool
    ) -> SupervisedBatch:
        pack_ids = None
        if packing:
            pack_ids = pack_numbers([row.length for row in first])
            taken = max(pack_ids) + 1
            pack_ids += [taken + number for number in pack_numbers([row.length for row in second])]
        return SupervisedBatch.collate([*first, *second], pad_id=pad_id, pack_ids=pack_ids)

    def half(self, second: bool) -> SupervisedBatch:
        """The first or the second sequences of all rows, (B, ...)."""
        start = len(self) if second else 0
        return self.sequences.select(torch.arange(start, start + len(self), device=self.row_mask.device))


@dataclass(kw_only=True, eq=False)
class PreferenceBatch(TwinBatch):
    """B pairs: first the B chosen sequences, then the B rejected ones.

    Args:
        sequences: (2B, ...).
        row_mask: (B,).
        margins: (B,), by how much the chosen one is better; 0 where the data do not say.
    """

    margins: Tensor

    @classmethod
    def collate(cls, pairs: Sequence[EncodedPair], *, pad_id: int, packing: bool = False) -> Self:
        """Pad pairs to one batch; of none a pair is made that counts for nothing."""
        filler = EncodedRow([pad_id], [pad_id], [False])
        shown = pairs or [EncodedPair(filler, filler)]
        chosen, rejected = [pair.chosen for pair in shown], [pair.rejected for pair in shown]
        return cls(
            sequences=cls._collate_halves(chosen, rejected, pad_id=pad_id, packing=packing),
            row_mask=torch.full((len(shown),), len(pairs) > 0),
            margins=torch.tensor([pair.margin for pair in shown], dtype=torch.float32),
        )


@dataclass(kw_only=True, eq=False)
class UnpairedBatch(TwinBatch):
    """B judged completions: first the B sequences, then their prompts with the completions of other rows.

    Args:
        sequences: (2B, ...).
        row_mask: (B,).
        labels: (B,), True where the completion is desirable.
    """

    labels: Tensor

    @classmethod
    def collate(cls, judged: Sequence[JudgedRow], *, pad_id: int, packing: bool = False) -> Self:
        """Pad rows to one batch; of none a row is made that counts for nothing."""
        filler = EncodedRow([pad_id], [pad_id], [False])
        shown = judged or [JudgedRow(filler, label=True, mismatched=filler)]
        own, mismatched = [each.row for each in shown], [each.mismatched or each.row for each in shown]
        return cls(
            sequences=cls._collate_halves(own, mismatched, pad_id=pad_id, packing=packing),
            row_mask=torch.full((len(shown),), len(judged) > 0),
            labels=torch.tensor([each.label for each in shown]),
        )


class Batch(Protocol):
    """What can stand in a micro-batch."""

    def __len__(self) -> int:
        """Rows."""

    def to(self, device: torch.device | str) -> Any:
        """A copy on `device`."""


B = TypeVar("B", bound=Batch)


class StepPart(Generic[B]):
    """A micro-batch: what one forward and backward pass sees of an optimiser step.

    A plain object and no dataclass, for the same reason as `MicroBatch`.

    Args:
        batch: its rows; at least one, which may count for nothing.
        normalizer: the denominator of the whole step's loss, over all its micro-batches and ranks, (): supervised
            tokens of demonstrations, else pairs or judged rows.
        numbers: which rows of the data they are, (B,) int64, -1 for one that counts for nothing; None where not known.
        whole_step: with the first micro-batch of a step whose loss has a statistic of the whole step in it, all
            micro-batches of this rank, else none.
    """

    def __init__(
        self, batch: B, normalizer: Tensor, numbers: Tensor | None = None, whole_step: Sequence[B] = ()
    ) -> None:
        self.batch = batch
        self.normalizer = normalizer
        self.numbers = numbers
        self.whole_step = whole_step

    def __len__(self) -> int:
        return len(self.batch)

    def to(self, device: torch.device | str) -> StepPart[B]:
        """A copy on `device`; dtypes stay."""
        numbers = None if self.numbers is None else self.numbers.to(device)
        whole_step = [batch.to(device) for batch in self.whole_step]
        return StepPart(self.batch.to(device), self.normalizer.to(device), numbers, whole_step)
