"""REINFORCE with a leave-one-out baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.choices import check_clip_range
from lit_posttrain.algos.policy_gradient import PolicyGradientModule
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
from lit_posttrain.batching import Rollout
from lit_posttrain.functional import (
    Aggregation,
    PolicyLoss,
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    sequence_log_ratio,
)
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.samples import Judged
from lit_posttrain.rollout.sampling import Sampling


class RLOO(PolicyGradientModule):
    r"""RLOO: a whole completion is one action, its baseline the mean of the others of its prompt (arXiv:2402.14740).

    With score :math:`s_i` the reward of completion i is :math:`R_i = s_i - \beta \sum_t (\log\pi_\mathrm{old} -
    \log\pi_\mathrm{ref})_t`, its advantage :math:`A_i = R_i - \mathrm{mean}_{j \ne i} R_j`, and with the ratio of whole
    completions :math:`\rho_i = \pi(o_i) / \pi_\mathrm{old}(o_i)` the loss is the mean over completions of

    .. math:: -\min(\rho_i A_i, \mathrm{clip}(\rho_i, 1 - \epsilon_l, 1 + \epsilon_h) A_i)

    whose gradient in the first step is that of REINFORCE, :math:`-A_i \nabla \log\pi(o_i)`. Differs from the paper,
    which makes one step of each rollout and has no ratio. Log-ratios are summed over a completion, so the clip bites
    sooner the longer it is: for many steps a rollout, GRPO with `ratio="sequence"` is the better choice.

    Args:
        policy: see `GRPO`.
        rewards: see `GRPO`.
        tokenizer: see `GRPO`.
        scores: see `GRPO`.
        group_size: completions of each prompt, G.
        num_minibatches: optimiser steps in one pass over a rollout.
        num_epochs: passes over a rollout.
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        kl_coef: :math:`\beta` of the KL in the reward (k1, summed over the completion); 0 = no reference in memory.
        sampling: see `GRPO`.
        generation_batch_size: see `GRPO`.
        val_samples: see `GRPO`.
        seed: see `GRPO`.
        optimizer: see `GRPO`.
        scheduler: see `GRPO`.
        logits_chunk_size: see `GRPO`.

    Raises:
        ValueError: if a number is out of its range.
    """

    # Every token carries the loss of its completion; this makes of it the mean over completions.
    aggregation: Aggregation = "seq-mean-token-mean"

    def __init__(
        self,
        policy: PolicySource,
        rewards: RewardFunctions | RewardFunction | Sequence[RewardFunction],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        scores: Mapping[str, Callable[..., Any]] | None = None,
        group_size: int = 4,
        num_minibatches: int = 1,
        num_epochs: int = 1,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.05,
        sampling: Sampling | Mapping[str, Any] | None = None,
        generation_batch_size: int | None = None,
        val_samples: int = 4,
        seed: int = 0,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        logits_chunk_size: int = 512,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            tokenizer=tokenizer,
            scores=scores,
            group_size=group_size,
            num_minibatches=num_minibatches,
            num_epochs=num_epochs,
            needs_reference=kl_coef > 0,
            max_refills=0,
            sampling=sampling,
            generation_batch_size=generation_batch_size,
            val_samples=val_samples,
            seed=seed,
            optimizer=optimizer,
            scheduler=scheduler,
            logits_chunk_size=logits_chunk_size,
        )
        if group_size < 2:
            raise ValueError(f"`group_size` must be >= 2, got {group_size}: the baseline is the mean of the others.")
        check_clip_range(clip_low, clip_high)
        if not 0 <= kl_coef < math.inf:
            raise ValueError(f"`kl_coef` must be finite and >= 0, got {kl_coef}.")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.kl_coef = kl_coef
        self.save_hyperparameters(
            ignore=["policy", "rewards", "tokenizer", "scores", "optimizer", "scheduler", "sampling"]
        )
        self.save_hyperparameters({"sampling": asdict(self.sampling)})

    @property
    def needs_old_logprobs(self) -> bool:
        """For the ratio, and for the KL in the reward."""
        return super().needs_old_logprobs or self.kl_coef > 0

    def penalties(self, rollout: Rollout, judged: Judged) -> Tensor:
        """-beta times the KL of each completion from the reference, (B,)."""
        if rollout.old_logprobs is None or rollout.ref_logprobs is None:
            return super().penalties(rollout, judged)
        kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, estimator="k1")
        return -self.kl_coef * kl.masked_fill(~rollout.completion_mask, 0).sum(1)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards above the mean of the others of their group, (B,) to (B,)."""
        return group_advantages(rewards, group_size=self.group_size, baseline="leave_one_out", scale="none")

    def token_loss(self, logprobs: Tensor, old_logprobs: Tensor, entropy: Tensor, rollout: Rollout) -> PolicyLoss:
        """The clipped loss of a completion at each of its tokens, (B, C)."""
        log_ratio = sequence_log_ratio(logprobs - old_logprobs, rollout.loss_mask, reduction="sum")
        return clipped_policy_loss(log_ratio, rollout.advantages, clip_low=self.clip_low, clip_high=self.clip_high)
