"""Group relative policy optimisation."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.algos.choices import Clipping, Ratio, check_choices, check_clip_range, check_not_negative
from lit_posttrain.batching import Rollout
from lit_posttrain.functional import (
    AdvantageScale,
    Aggregation,
    KLEstimator,
    KLGradient,
    PolicyLoss,
    cispo_loss,
    clipped_policy_loss,
    group_advantages,
    kl_penalty,
    overlong_penalty,
    sequence_log_ratio,
)
from lit_posttrain.models.source import Model
from lit_posttrain.modules.online import OnlineModule, Rewards, TokenLossInputs
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler
from lit_posttrain.rollout.collector import MAX_RESAMPLE_BATCHES
from lit_posttrain.rollout.options import Rollouts, Sampling, Validation


class GRPO(OnlineModule):
    r"""GRPO: PPO without a value model; a completion is compared with the others of its prompt (arXiv:2402.03300).

    A rollout samples `group_size` completions of every prompt of a batch. With reward :math:`r_i` the advantage of
    all tokens of completion i is :math:`A_i = (r_i - \mathrm{mean}(r)) / (\mathrm{std}(r) + 10^{-4})` over its group,
    and with the ratio :math:`\rho_t = \pi(o_t) / \pi_\mathrm{old}(o_t)` a token's loss is

    .. math:: -\min(\rho_t A, \mathrm{clip}(\rho_t, 1 - \epsilon_l, 1 + \epsilon_h) A) + \beta\,\mathrm{KL}_t - c_H H_t

    Differs from the paper in its defaults, which are those that have proved themselves since: no KL term, the
    asymmetric clip and the mean over all tokens of an optimiser step of DAPO (arXiv:2503.14476). The published
    variants are combinations of the arguments, each with a configuration of its own: `experiment=grpo_original`,
    `dapo`, `dr_grpo`, `gspo`, `cispo`.

    Args:
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one.
        rewards: one reward function `reward(prompts, completions, **columns) -> list[float | None]`, several, or
            `RewardFunctions` where they have weights.
        group_size: completions of each prompt, G.
        ratio: "token", or "sequence" for the geometric mean of a completion's ratios, the same at each of its tokens
            (GSPO, arXiv:2507.18071).
        clipping: what the clip range bounds: "surrogate", the objective above; or "weight", the detached ratio by
            which :math:`-A \log\pi(o_t)` is weighted, so that no token loses its gradient (CISPO, arXiv:2506.13585).
        clip_low: :math:`\epsilon_l`, in [0, 1); 1 = no lower bound of a weight.
        clip_high: :math:`\epsilon_h`, in [0, 1); >= 0 for a weight.
        dual_clip: bound c > 1 on the loss -c A of negative advantages (arXiv:1912.09729); None = none.
        kl_coef: :math:`\beta`; 0 = no KL term and no reference in memory.
        kl_value: the estimator that the KL term's value is (`functional.kl_penalty`).
        kl_gradient: the estimator that its gradient is; the default descends KL(policy || reference).
        entropy_coef: :math:`c_H`, a bonus on the entropy; 0 = none.
        scale: what the centred rewards are divided by: "group" or "batch" standard deviation, or "none" (Dr. GRPO).
        aggregation: how token losses become one number (`functional.aggregate`); "constant" divides by
            `sampling.max_new_tokens` for each sequence (Dr. GRPO).
        mask_truncated: leave completions out of the loss that were cut off at the longest length.
        overlong_fraction: the last part of `sampling.max_new_tokens` over which a penalty on the reward builds up, as a
            share (DAPO's soft overlong punishment, `functional.overlong_penalty`); None = no penalty.
        overlong_factor: the largest penalty, in units of reward.
        max_resample_batches: dynamic sampling (DAPO): drop groups whose rewards are all equal and sample further
            prompts in their place, from up to this many further prompt batches; 0 = keep all groups.
        sampling: how completions are drawn, in rollouts and in sampled validation.
        rollouts: how a rollout is made and used.
        validation: how the policy is judged in validation.
        optimizer: makes the optimiser from the parameters; None = AdamW with lr 1e-6 and no weight decay.
        scheduler: makes the schedule from the optimiser; None = linear warm-up over 10 steps, then constant.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        policy: Model,
        rewards: Rewards,
        *,
        group_size: int = 8,
        ratio: Ratio = "token",
        clipping: Clipping = "surrogate",
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        dual_clip: float | None = None,
        kl_coef: float = 0.0,
        kl_value: KLEstimator = "k3",
        kl_gradient: KLGradient = "ratio_k3",
        entropy_coef: float = 0.0,
        scale: AdvantageScale = "group",
        aggregation: Aggregation = "token",
        mask_truncated: bool = False,
        overlong_fraction: float | None = None,
        overlong_factor: float = 1.0,
        max_resample_batches: int = 0,
        sampling: Sampling | Mapping[str, Any] | None = None,
        rollouts: Rollouts | Mapping[str, Any] | None = None,
        validation: Validation | Mapping[str, Any] | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            group_size=group_size,
            sampling=sampling,
            rollouts=rollouts,
            validation=validation,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.ratio, self.clipping = ratio, clipping
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.kl_coef, self.kl_value, self.kl_gradient = kl_coef, kl_value, kl_gradient
        self.entropy_coef = entropy_coef
        self.scale, self.aggregation = scale, aggregation
        self.mask_truncated = mask_truncated
        self.overlong_fraction, self.overlong_factor = overlong_fraction, overlong_factor
        self.max_resample_batches = max_resample_batches
        self._check()

    def reward_shaping(self, rollout: Rollout) -> Tensor:
        """Give the soft overlong punishment, (B,); 0 where there is none."""
        if self.overlong_fraction is None:
            return torch.zeros_like(rollout.rewards)
        longest = self.sampling.max_new_tokens
        buffer = max(1, round(self.overlong_fraction * longest))
        lengths = rollout.completion_mask.sum(1)
        return overlong_penalty(lengths, max_length=longest, buffer=buffer, factor=self.overlong_factor)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Compare rewards with their group, (B,) to (B,)."""
        return group_advantages(rewards, group_size=self.group_size, scale=self.scale)

    def learning_mask(self, rollout: Rollout) -> Tensor:
        """Tell which tokens have a gradient: all where KL or entropy have one of their own, (B, C)."""
        regularized = self.kl_coef > 0 or self.entropy_coef > 0
        return rollout.loss_mask if regularized else rollout.loss_mask & (rollout.advantages != 0)

    def token_loss(self, inputs: TokenLossInputs) -> PolicyLoss:
        """Compute the policy-gradient term, the KL term and the entropy bonus of each token, (B, C)."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        if self.ratio == "sequence":
            log_ratio = sequence_log_ratio(log_ratio, inputs.mask, reduction="mean")
        bounds = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        if self.clipping == "weight":
            loss, clipped = cispo_loss(inputs.logprobs, log_ratio, inputs.advantages, **bounds)
        else:
            loss, clipped = clipped_policy_loss(log_ratio, inputs.advantages, **bounds, dual_clip=self.dual_clip)
        if inputs.ref_logprobs is not None:
            loss = loss + self.kl_coef * kl_penalty(
                inputs.logprobs,
                inputs.ref_logprobs,
                inputs.old_logprobs,
                value=self.kl_value,
                gradient=self.kl_gradient,
            )
        return PolicyLoss(loss - self.entropy_coef * inputs.entropy, clipped)

    def _check(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"`group_size` must be >= 2, got {self.group_size}: GRPO compares completions of one prompt."
            )
        for name in ("ratio", "clipping", "kl_value", "kl_gradient", "scale", "aggregation"):
            check_choices(**{name: getattr(self, name)})
        if self.clipping == "surrogate":
            check_clip_range(self.clip_low, self.clip_high, dual_clip=self.dual_clip)
        elif self.dual_clip is not None:
            raise ValueError('`dual_clip` bounds the loss of clipping="surrogate": leave it None with "weight".')
        elif not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(
                f'`clip_low` must be in [0, 1] and `clip_high` >= 0 with clipping="weight", got {self.clip_low} and '
                f"{self.clip_high}: the weight is clipped to [1 - clip_low, 1 + clip_high]."
            )
        for name in ("kl_coef", "entropy_coef", "overlong_factor"):
            check_not_negative(**{name: getattr(self, name)})
        if not 0 <= self.max_resample_batches < MAX_RESAMPLE_BATCHES:
            raise ValueError(
                f"`max_resample_batches` must be from 0 to {MAX_RESAMPLE_BATCHES - 1}, got "
                f"{self.max_resample_batches}: further prompt batches."
            )
        if self.overlong_fraction is not None and not 0 < self.overlong_fraction <= 1:
            raise ValueError(
                f"`overlong_fraction` must be None or in (0, 1], got {self.overlong_fraction}: it is a share of "
                "`sampling.max_new_tokens`."
            )
        if self.kl_coef > 0 and self.scale == "group":
            warnings.warn(
                'a KL term in the loss together with scale="group" weighs the KL differently for each prompt (by the '
                'standard deviation of its rewards), which moves the optimum. Consider scale="none" or kl_coef=0.',
                stacklevel=3,
            )
        if self.overlong_fraction is not None and self.mask_truncated:
            warnings.warn(
                "`mask_truncated` leaves out the completions that `overlong_fraction` punishes most; they still count "
                "in the mean of their group. One of the two is usually enough.",
                stacklevel=3,
            )
