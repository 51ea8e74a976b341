"""REINFORCE++: PPO's loss without a critic."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.choices import RewardBaseline, check_choices, check_clip_range
from lit_posttrain.algos.policy_gradient import PolicyGradientModule
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
from lit_posttrain.batching import Rollout
from lit_posttrain.functional import PolicyLoss, clipped_policy_loss, group_advantages, kl_estimate, reward_to_go
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.samples import Judged
from lit_posttrain.rollout.sampling import Sampling


class ReinforcePlusPlus(PolicyGradientModule):
    r"""REINFORCE++: a token's advantage is what is still to come, whitened over the rollout (arXiv:2501.03262).

    The reward of a token is :math:`r_t = -\beta (\log\pi_\mathrm{old} - \log\pi_\mathrm{ref})_t`, and the last one gets
    the score beside it; :math:`A_t = \sum_{s \ge t} r_s`, then mean 0 and variance 1 over the tokens of the whole
    rollout on all ranks. The loss is PPO's clipped one, as in `GRPO`, over all tokens of an optimiser step.
    `baseline="group"` first subtracts the mean score of the prompt's completions (the paper's REINFORCE++-baseline).
    Differs from the paper there: the KL stays in the reward, where the paper moves it into the loss.

    Args:
        policy: see `GRPO`.
        rewards: see `GRPO`.
        tokenizer: see `GRPO`.
        scores: see `GRPO`.
        group_size: completions of each prompt.
        num_minibatches: optimiser steps in one pass over a rollout.
        num_epochs: passes over a rollout.
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        kl_coef: :math:`\beta` of the per-token KL in the reward (k1); 0 = no reference in memory.
        baseline: "none", or "group" for the mean score of a prompt's completions.
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

    def __init__(
        self,
        policy: PolicySource,
        rewards: RewardFunctions | RewardFunction | Sequence[RewardFunction],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        scores: Mapping[str, Callable[..., Any]] | None = None,
        group_size: int = 1,
        num_minibatches: int = 1,
        num_epochs: int = 1,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.01,
        baseline: RewardBaseline = "none",
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
        check_choices(baseline=baseline)
        check_clip_range(clip_low, clip_high)
        if group_size < (2 if baseline == "group" else 1):
            raise ValueError(
                f'`group_size` must be >= 1, and >= 2 with baseline="group", got {group_size}: a baseline is the mean '
                "of several completions."
            )
        if not 0 <= kl_coef < math.inf:
            raise ValueError(f"`kl_coef` must be finite and >= 0, got {kl_coef}.")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.kl_coef = kl_coef
        self.baseline: RewardBaseline = baseline
        self.save_hyperparameters(
            ignore=["policy", "rewards", "tokenizer", "scores", "optimizer", "scheduler", "sampling"]
        )
        self.save_hyperparameters({"sampling": asdict(self.sampling)})

    @property
    def needs_old_logprobs(self) -> bool:
        """For the ratio, and for the KL in the reward."""
        return super().needs_old_logprobs or self.kl_coef > 0

    def advantages(self, rewards: Tensor) -> Tensor:
        """Scores above their baseline, (B,) to (B,); NaN stays NaN."""
        if self.baseline == "none":
            return rewards
        centred = group_advantages(rewards, group_size=self.group_size, scale="none")
        return torch.where(rewards.isfinite(), centred, torch.nan)

    def token_advantages(self, advantages: Tensor, rollout: Rollout, judged: Judged) -> Tensor:
        """Whitened rewards-to-go, (B,) to (B, C); 0 where a completion could not be scored."""
        mask = rollout.loss_mask & advantages.isfinite()[:, None]
        rewards = torch.zeros_like(mask, dtype=advantages.dtype)
        if rollout.old_logprobs is not None and rollout.ref_logprobs is not None:
            rewards = -self.kl_coef * kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, estimator="k1")
        last = rollout.completion_mask.sum(1, keepdim=True) - 1
        rewards = rewards.scatter_add(1, last, advantages.nan_to_num().to(rewards.dtype)[:, None])
        return self.whiten_over_ranks(reward_to_go(rewards, rollout.completion_mask), mask)

    def token_loss(self, logprobs: Tensor, old_logprobs: Tensor, entropy: Tensor, rollout: Rollout) -> PolicyLoss:
        """The clipped loss of each token, (B, C)."""
        return clipped_policy_loss(
            logprobs - old_logprobs, rollout.advantages, clip_low=self.clip_low, clip_high=self.clip_high
        )
