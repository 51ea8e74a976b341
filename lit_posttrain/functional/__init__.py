"""The maths of post-training: pure functions of tensors.

Shapes: B sequences, G completions per prompt, P prompt length, C completion length, V vocabulary. Masks are bool, and
True counts. Losses come back per token, (B, C), or per preference pair, (B,); `aggregate` alone reduces them.
"""

from lit_posttrain.functional.advantages import (
    AdvantageScale,
    Baseline,
    gae,
    group_advantages,
    has_spread,
    overlong_penalty,
    reward_to_go,
    rewards_of_tokens,
)
from lit_posttrain.functional.kl import KLEstimator, KLGradient, adapted_kl_coef, kl_estimate, kl_penalty
from lit_posttrain.functional.logprobs import sequence_logprobs, token_entropy, token_logprobs
from lit_posttrain.functional.masking import (
    Aggregation,
    aggregate,
    lengths_to_mask,
    masked_mean,
    masked_var,
    normalizer,
    pad_left,
    pad_right,
    whiten,
)
from lit_posttrain.functional.policy_losses import (
    PolicyLoss,
    cispo_loss,
    clipped_policy_loss,
    importance_weights,
    sequence_log_ratio,
)
from lit_posttrain.functional.preference_losses import (
    apo_down_loss,
    apo_zero_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    nca_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
    sppo_loss,
)
from lit_posttrain.functional.ranking import calibration_error, correlation, pair_accuracy, pass_at_k
from lit_posttrain.functional.reward_losses import bradley_terry_loss
from lit_posttrain.functional.value_losses import ValueLoss, clipped_value_loss, explained_variance

__all__ = [
    "AdvantageScale",
    "Aggregation",
    "Baseline",
    "KLEstimator",
    "KLGradient",
    "PolicyLoss",
    "ValueLoss",
    "adapted_kl_coef",
    "aggregate",
    "apo_down_loss",
    "apo_zero_loss",
    "bradley_terry_loss",
    "calibration_error",
    "cispo_loss",
    "clipped_policy_loss",
    "clipped_value_loss",
    "correlation",
    "dpo_loss",
    "explained_variance",
    "gae",
    "group_advantages",
    "has_spread",
    "hinge_loss",
    "importance_weights",
    "ipo_loss",
    "kl_estimate",
    "kl_penalty",
    "kto_loss",
    "lengths_to_mask",
    "masked_mean",
    "masked_var",
    "nca_loss",
    "normalizer",
    "odds_ratio_loss",
    "overlong_penalty",
    "pad_left",
    "pad_right",
    "pair_accuracy",
    "pass_at_k",
    "reward_to_go",
    "rewards_of_tokens",
    "robust_dpo_loss",
    "sequence_log_ratio",
    "sequence_logprobs",
    "simpo_loss",
    "sppo_loss",
    "token_entropy",
    "token_logprobs",
    "whiten",
]
