"""Batch types, padding, and the planning of optimiser steps into micro-batches."""

from lit_posttrain.batching.digest import digest_of
from lit_posttrain.batching.packing import first_fit_decreasing
from lit_posttrain.batching.passes import PassLoader, Place
from lit_posttrain.batching.plan import PlannedRollout, in_batches, interleave_ranks, plan_steps
from lit_posttrain.batching.ranks import Means, Ranks, StepStatistics
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
from lit_posttrain.batching.tokens import MicroBatch, Rollout, TokenBatch, TrainingBatch
from lit_posttrain.functional import lengths_to_mask, pad_left
from lit_posttrain.functional.random import stable_hash

__all__ = [
    "EncodedPair",
    "EncodedRow",
    "JudgedRow",
    "Means",
    "MicroBatch",
    "PassLoader",
    "Place",
    "PlannedRollout",
    "PreferenceBatch",
    "Ranks",
    "ReplayedPasses",
    "Rollout",
    "StepPart",
    "StepStatistics",
    "SupervisedBatch",
    "TokenBatch",
    "TrainingBatch",
    "TwinBatch",
    "UnpairedBatch",
    "digest_of",
    "first_fit_decreasing",
    "in_batches",
    "interleave_ranks",
    "lengths_to_mask",
    "pad_left",
    "plan_steps",
    "stable_hash",
    "with_mismatches",
]
