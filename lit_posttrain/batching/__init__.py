"""Batch types, padding, and the planning of optimiser steps into micro-batches."""

from lit_posttrain.batching.digest import digest_of, stable_hash
from lit_posttrain.batching.packing import first_fit_decreasing
from lit_posttrain.batching.passes import PassLoader, Place
from lit_posttrain.batching.plan import PlannedRollout, in_batches, in_prompt_order, plan_steps
from lit_posttrain.batching.replayed import ReplayedPasses
from lit_posttrain.batching.supervised import (
    EncodedPair,
    EncodedRow,
    JudgedRow,
    PreferenceBatch,
    StepPart,
    SupervisedBatch,
    TwinBatch,
    UnpairedBatch,
    with_mismatches,
)
from lit_posttrain.batching.tokens import MicroBatch, Rollout, TokenBatch, lengths_to_mask, pad_left

__all__ = [
    "EncodedPair",
    "EncodedRow",
    "JudgedRow",
    "MicroBatch",
    "PassLoader",
    "Place",
    "PlannedRollout",
    "PreferenceBatch",
    "ReplayedPasses",
    "Rollout",
    "StepPart",
    "SupervisedBatch",
    "TokenBatch",
    "TwinBatch",
    "UnpairedBatch",
    "digest_of",
    "first_fit_decreasing",
    "in_batches",
    "in_prompt_order",
    "lengths_to_mask",
    "pad_left",
    "plan_steps",
    "stable_hash",
    "with_mismatches",
]
