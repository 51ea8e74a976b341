"""The maths of post-training: pure functions of tensors.

Shapes: B sequences, G completions per prompt, P prompt length, C completion length, V vocabulary. Masks are bool, and
True counts. Losses come back per token, [B, C]; `aggregate` alone reduces them.
"""

from lit_posttrain.functional.advantages import (
    AdvantageScale,
    Baseline,
    group_advantages,
    has_spread,
    overlong_penalty,
    reward_to_go,
)
from lit_posttrain.functional.aggregation import Aggregation, aggregate, normalizer
from lit_posttrain.functional.kl import KLEstimator, KLGradient, kl_estimate, kl_penalty
from lit_posttrain.functional.logprobs import token_entropy, token_logprobs
from lit_posttrain.functional.masking import masked_mean, masked_var, whiten
from lit_posttrain.functional.pass_at_k import pass_at_k
from lit_posttrain.functional.policy_losses import (
    PolicyLoss,
    cispo_loss,
    clipped_policy_loss,
    importance_weights,
    sequence_log_ratio,
)

__all__ = [
    "AdvantageScale",
    "Aggregation",
    "Baseline",
    "KLEstimator",
    "KLGradient",
    "PolicyLoss",
    "aggregate",
    "cispo_loss",
    "clipped_policy_loss",
    "group_advantages",
    "has_spread",
    "importance_weights",
    "kl_estimate",
    "kl_penalty",
    "masked_mean",
    "masked_var",
    "normalizer",
    "overlong_penalty",
    "pass_at_k",
    "reward_to_go",
    "sequence_log_ratio",
    "token_entropy",
    "token_logprobs",
    "whiten",
]
