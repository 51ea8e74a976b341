"""What callbacks may ask of a module that samples rollouts; its insides are its own."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lit_posttrain.batching import TokenBatch


class Sampled(Protocol):
    """Prompts and completions of a rollout, B of them."""

    rows: list[dict[str, Any]]
    completions: list[Any]
    tokens: TokenBatch
    truncated: Tensor
    generate_s: float


class RolloutRecord(Protocol):
    """A rollout of this rank as the reward functions saw it."""

    index: int
    step: int
    slots: Tensor
    experience: Sampled | None
    reward_names: list[str]
    scores: Tensor
    rewards: Tensor
    penalties: Tensor
    advantages: Tensor
    group_size: int
    score_s: float
    num_tokens: int


@runtime_checkable
class RecordsRollouts(Protocol):
    """A module that keeps the record of its last rollout."""

    last_rollout: Any
    steps_per_rollout: int
