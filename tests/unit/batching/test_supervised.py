"""Batches of given sequences: padding by length, pairs in one batch, rows that count for nothing."""

import pytest
import torch

from lit_posttrain.batching import (
    EncodedPair,
    EncodedRow,
    JudgedRow,
    PreferenceBatch,
    StepPart,
    SupervisedBatch,
    UnpairedBatch,
    with_mismatches,
)

LONG = EncodedRow([5, 6], [7, 1, 8, 1], [True, True, False, True])
SHORT = EncodedRow([9], [1], [True])
PAD = 1  # the EOS


def test_masks_come_from_lengths_though_the_pad_is_the_eos():
    batch = SupervisedBatch.collate([LONG, SHORT], pad_id=PAD)
    assert batch.prompt_ids.tolist() == [[5, 6], [1, 9]]
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]
    assert batch.completion_ids.tolist() == [[7, 1, 8, 1], [1, 1, 1, 1]]
    assert batch.completion_mask.tolist() == [[True] * 4, [True, False, False, False]]
    assert batch.loss_mask.tolist() == [[True, True, False, True], [True, False, False, False]]
    assert batch.lengths.tolist() == [LONG.length, SHORT.length] == [6, 2]
    assert (LONG.num_terms, SHORT.num_terms) == (3, 1)
    assert batch.select(torch.tensor([1])).loss_mask.tolist() == [[True]]


def test_a_batch_goes_into_a_policy(make_model):
    from lit_posttrain.models.networks.policy import Policy

    batch = SupervisedBatch.collate([LONG, SHORT], pad_id=PAD)
    statistics = Policy(make_model("gpt2"))(batch)
    assert torch.equal(statistics.logprobs != 0, batch.loss_mask)


def test_no_row_makes_one_that_counts_for_nothing():
    batch = SupervisedBatch.collate([], pad_id=PAD)
    assert (len(batch), batch.loss_mask.tolist(), batch.completion_mask.tolist()) == (1, [[False]], [[True]])
    pairs = PreferenceBatch.collate([], pad_id=PAD)
    assert (len(pairs), len(pairs.sequences), pairs.row_mask.tolist()) == (1, 2, [False])
    judged = UnpairedBatch.collate([], pad_id=PAD)
    assert (len(judged), len(judged.sequences), judged.row_mask.tolist()) == (1, 2, [False])


def test_a_pair_is_two_rows_of_one_batch():
    batch = PreferenceBatch.collate([EncodedPair(LONG, SHORT, 0.5), EncodedPair(LONG, SHORT)], pad_id=PAD)
    assert (len(batch), len(batch.sequences)) == (2, 4)
    assert batch.margins.tolist() == [0.5, 0.0]
    assert batch.row_mask.tolist() == [True, True]
    chosen, rejected = batch.halves(batch.sequences.lengths)
    assert (chosen.tolist(), rejected.tolist()) == ([6, 6], [2, 2])
    assert EncodedPair(SHORT, LONG).length == 6
    assert batch.to("cpu").margins.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("kind", [PreferenceBatch, UnpairedBatch])
def test_packed_rows_share_sequences_within_their_half(kind):
    rows = [EncodedPair(SHORT, LONG), EncodedPair(LONG, SHORT), EncodedPair(SHORT, SHORT)]
    if kind is UnpairedBatch:
        rows = [JudgedRow(pair.chosen, label=True, mismatched=pair.rejected) for pair in rows]
    batch = kind.collate(rows, pad_id=PAD, packing=True)
    assert batch.sequences.pack_ids.tolist() == [1, 0, 1, 2, 3, 3]  # the short ones of each half in one of 6 tokens
    assert batch.half(second=True).pack_ids.tolist() == [2, 3, 3]
    assert kind.collate(rows, pad_id=PAD).sequences.pack_ids is None


def test_mismatched_completions_are_those_of_the_next_row_of_the_step():
    rows = [JudgedRow(LONG, True), JudgedRow(SHORT, False)]
    batch = UnpairedBatch.collate(with_mismatches(rows, max_length=None), pad_id=PAD)
    assert batch.labels.tolist() == [True, False]
    assert batch.sequences.prompt_ids.tolist() == [[5, 6], [1, 9]] * 2
    assert batch.sequences.completion_ids[2, 0] == 1
    assert batch.sequences.completion_ids[3].tolist() == [7, 1, 8, 1]
    assert [r.mismatched.completion_ids for r in with_mismatches(rows, max_length=3)] == [[1], [7, 1]]
    assert with_mismatches(rows[:1], max_length=None)[0].mismatched == LONG


@pytest.mark.parametrize("kind", [SupervisedBatch, PreferenceBatch])
def test_lightning_leaves_the_floats_alone(kind):
    from lightning.pytorch.plugins import HalfPrecision

    part = StepPart(kind.collate([], pad_id=PAD), torch.tensor(3.0))
    assert HalfPrecision("bf16-true").convert_input(part).normalizer.dtype == torch.float32
    assert (len(part.to("cpu")), part.to("cpu").normalizer.item()) == (1, 3.0)
