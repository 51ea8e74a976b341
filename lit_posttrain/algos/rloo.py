"""REINFORCE with a leave-one-out baseline."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_posttrain.algos.choices import check_clip_range, check_not_negative
from lit_posttrain.batching import Rollout
from lit_posttrain.functional import (
    Aggregation,
    PolicyLoss,
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    sequence_log_ratio,
)
from lit_posttrain.models.source import Model
from lit_posttrain.modules.online import OnlineModule, Rewards, TokenLossInputs
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler
from lit_posttrain.rollout.options import Rollouts, Sampling, Validation


class RLOO(OnlineModule):
    r"""RLOO: a whole completion is one action, its baseline the mean of the others of its prompt (arXiv:2402.14740).

    With score :math:`s_i` the reward of completion i is :math:`R_i = s_i - \beta \sum_t (\log\pi_\mathrm{old} -
    \log\pi_\mathrm{ref})_t`, its advantage :math:`A_i = R_i - \mathrm{mean}_{j \ne i} R_j`, and with the ratio of whole
    completions :math:`\rho_i = \pi(o_i) / \pi_\mathrm{old}(o_i)` the loss is the mean over completions of

    .. math:: -\min(\rho_i A_i, \mathrm{clip}(\rho_i, 1 - \epsilon_l, 1 + \epsilon_h) A_i)

    whose gradient in the first step is that of REINFORCE, :math:`-A_i \nabla \log\pi(o_i)`. Differs from the paper,
    which makes one step of each rollout and has no ratio. Log-ratios are summed over a completion, so the clip bites
    sooner the longer it is: for many steps a rollout, GRPO with `ratio="sequence"` is the better choice.

    Args:
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one.
        rewards: one reward function, several, or `RewardFunctions` where they have weights.
        group_size: completions of each prompt, G.
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        kl_coef: :math:`\beta` of the KL in the reward (k1, summed over the completion); 0 = no reference in memory.
        sampling: how completions are drawn, in rollouts and in sampled validation.
        rollouts: how a rollout is made and used.
        validation: how the policy is judged in validation.
        optimizer: makes the optimiser from the parameters; None = AdamW with lr 1e-6 and no weight decay.
        scheduler: makes the schedule from the optimiser; None = linear warm-up over 10 steps, then constant.

    Raises:
        ValueError: if a number is out of its range.
    """

    # Every token carries the loss of its completion; this makes of it the mean over completions.
    aggregation: Aggregation = "seq-mean-token-mean"

    def __init__(
        self,
        policy: Model,
        rewards: Rewards,
        *,
        group_size: int = 4,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.05,
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
        if group_size < 2:
            raise ValueError(f"`group_size` must be >= 2, got {group_size}: the baseline is the mean of the others.")
        check_clip_range(clip_low, clip_high)
        check_not_negative(kl_coef=kl_coef)
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_coef = kl_coef

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether they are needed: for the ratio, and for the KL in the reward."""
        return super().needs_old_logprobs or self.kl_coef > 0

    def reward_shaping(self, rollout: Rollout) -> Tensor:
        """Give -beta times the KL of each completion from the reference, (B,)."""
        if rollout.old_logprobs is None or rollout.ref_logprobs is None:
            return super().reward_shaping(rollout)
        kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, estimator="k1")
        return -self.kl_coef * kl.masked_fill(~rollout.completion_mask, 0).sum(1)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Compare rewards with the mean of the others of their group, (B,) to (B,)."""
        return group_advantages(rewards, group_size=self.group_size, baseline="leave_one_out", scale="none")

    def token_loss(self, inputs: TokenLossInputs) -> PolicyLoss:
        """Compute the clipped loss of a completion at each of its tokens, (B, C)."""
        log_ratio = sequence_log_ratio(inputs.logprobs - inputs.old_logprobs, inputs.mask, reduction="sum")
        return clipped_policy_loss(log_ratio, inputs.advantages, clip_low=self.clip_low, clip_high=self.clip_high)
