"""REINFORCE++: PPO's loss without a critic."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.algos.choices import RewardBaseline, check_choices, check_clip_range, check_not_negative
from lit_posttrain.batching import Rollout
from lit_posttrain.functional import (
    PolicyLoss,
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    reward_to_go,
    rewards_of_tokens,
)
from lit_posttrain.models.source import Model
from lit_posttrain.modules.online import OnlineModule, Rewards, TokenLossInputs
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler
from lit_posttrain.rollout.options import Rollouts, Sampling, Validation


class ReinforcePlusPlus(OnlineModule):
    r"""REINFORCE++: a token's advantage is what is still to come, whitened over the rollout (arXiv:2501.03262).

    The reward of a token is :math:`r_t = -\beta (\log\pi_\mathrm{old} - \log\pi_\mathrm{ref})_t`, and the last one gets
    the score beside it; :math:`A_t = \sum_{s \ge t} r_s`, then mean 0 and variance 1 over the tokens of the whole
    rollout on all ranks. The loss is PPO's clipped one, as in `GRPO`, over all tokens of an optimiser step.
    `baseline="group"` first subtracts the mean score of the prompt's completions (the paper's REINFORCE++-baseline).
    Differs from the paper there: the KL stays in the reward, where the paper moves it into the loss.

    Args:
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one.
        rewards: one reward function, several, or `RewardFunctions` where they have weights.
        group_size: completions of each prompt.
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        kl_coef: :math:`\beta` of the per-token KL in the reward (k1); 0 = no reference in memory.
        baseline: "none", or "group" for the mean score of a prompt's completions.
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
        group_size: int = 1,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.01,
        baseline: RewardBaseline = "none",
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
        check_choices(baseline=baseline)
        check_clip_range(clip_low, clip_high)
        check_not_negative(kl_coef=kl_coef)
        if baseline == "group" and group_size < 2:
            raise ValueError(
                f'`group_size` must be >= 2 with baseline="group", got {group_size}: a baseline is the mean of several '
                "completions."
            )
        self.clip_low, self.clip_high = clip_low, clip_high
        self.kl_coef = kl_coef
        self.baseline = baseline

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether they are needed: for the ratio, and for the KL in the reward."""
        return super().needs_old_logprobs or self.kl_coef > 0

    def advantages(self, rewards: Tensor) -> Tensor:
        """Compare scores with their baseline, (B,) to (B,); NaN stays NaN."""
        if self.baseline == "none":
            return rewards
        centered = group_advantages(rewards, group_size=self.group_size, scale="none")
        return torch.where(rewards.isfinite(), centered, torch.nan)

    def token_advantages(self, advantages: Tensor, rollout: Rollout) -> Tensor:
        """Whiten rewards-to-go, (B,) to (B, C); 0 where a completion could not be scored."""
        kl = None
        if rollout.old_logprobs is not None and rollout.ref_logprobs is not None:
            kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, estimator="k1")
        rewards = rewards_of_tokens(advantages.nan_to_num(), rollout.completion_mask, kl=kl, kl_coef=self.kl_coef)
        mask = rollout.loss_mask & advantages.isfinite()[:, None]
        return self.ranks.whiten(reward_to_go(rewards, rollout.completion_mask), mask)

    def token_loss(self, inputs: TokenLossInputs) -> PolicyLoss:
        """Compute the clipped loss of each token, (B, C)."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        return clipped_policy_loss(log_ratio, inputs.advantages, clip_low=self.clip_low, clip_high=self.clip_high)
