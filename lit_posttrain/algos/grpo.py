"""Group relative policy optimisation."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.choices import Clipping, Ratio, check_choices, check_clip_range
from lit_posttrain.algos.policy_gradient import PolicyGradientModule
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
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
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.samples import Judged
from lit_posttrain.rollout.sampling import Sampling


class GRPO(PolicyGradientModule):
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
        policy: name or path of a model, a `Pretrained`, a built model, or a function that builds one.
        rewards: one reward function `reward(prompts, completions, **columns) -> list[float | None]`, several, or
            `RewardFunctions` where they have weights.
        tokenizer: needed with a built model that carries no name, otherwise found by the policy's name.
        scores: validation metrics by name, functions with the signature of a reward; None = those that the
            `PromptDataModule` brings.
        group_size: completions of each prompt, G.
        num_minibatches: optimiser steps in one pass over a rollout.
        num_epochs: passes over a rollout.
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
        max_refills: dynamic sampling (DAPO): drop groups whose rewards are all equal and sample further prompts in
            their place, from up to this many further prompt batches; 0 = keep all groups.
        sampling: how completions are drawn, in rollouts and in sampled validation.
        generation_batch_size: completions decoded together, a knob of memory and speed; None = all.
        val_samples: samples of each validation prompt, beside the greedy completion.
        seed: of all that is drawn in rollouts.
        optimizer: makes the optimiser from the parameters; None = AdamW with lr 1e-6 and no weight decay.
        scheduler: makes the schedule from the optimiser; None = linear warm-up over 10 steps, then constant.
        logits_chunk_size: positions whose logits exist at the same time; bounds memory, does not change the result.

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
        group_size: int = 8,
        num_minibatches: int = 1,
        num_epochs: int = 1,
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
        max_refills: int = 0,
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
            max_refills=max_refills,
            sampling=sampling,
            generation_batch_size=generation_batch_size,
            val_samples=val_samples,
            seed=seed,
            optimizer=optimizer,
            scheduler=scheduler,
            logits_chunk_size=logits_chunk_size,
        )
        if group_size < 2:
            raise ValueError(f"`group_size` must be >= 2, got {group_size}: GRPO compares completions of one prompt.")
        check_choices(
            ratio=ratio,
            clipping=clipping,
            kl_value=kl_value,
            kl_gradient=kl_gradient,
            scale=scale,
            aggregation=aggregation,
        )
        if clipping == "surrogate":
            check_clip_range(clip_low, clip_high)
        elif not (0 <= clip_low <= 1 and clip_high >= 0):
            raise ValueError(
                f'`clip_low` must be in [0, 1] and `clip_high` >= 0 with clipping="weight", got {clip_low} and '
                f"{clip_high}: the weight is clipped to [1 - clip_low, 1 + clip_high]."
            )
        if dual_clip is not None and clipping == "weight":
            raise ValueError('`dual_clip` bounds the loss of clipping="surrogate": leave it None with "weight".')
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"`dual_clip` must be > 1 or None, got {dual_clip}: it bounds ratios above 1.")
        for name, coefficient in (("kl_coef", kl_coef), ("entropy_coef", entropy_coef)):
            if not 0 <= coefficient < math.inf:
                raise ValueError(f"`{name}` must be finite and >= 0, got {coefficient}.")
        if kl_coef > 0 and scale == "group":
            warnings.warn(
                'a KL term in the loss together with scale="group" weighs the KL differently for each prompt (by the '
                'standard deviation of its rewards), which moves the optimum. Consider scale="none" or kl_coef=0.',
                stacklevel=2,
            )
        if overlong_fraction is not None and not 0 < overlong_fraction <= 1:
            raise ValueError(
                f"`overlong_fraction` must be None or in (0, 1], got {overlong_fraction}: it is a share of "
                "`sampling.max_new_tokens`."
            )
        if not 0 <= overlong_factor < math.inf:
            raise ValueError(f"`overlong_factor` must be finite and >= 0, got {overlong_factor}: it is subtracted.")
        if overlong_fraction is not None and mask_truncated:
            warnings.warn(
                "`mask_truncated` leaves out the completions that `overlong_fraction` punishes most; they still count "
                "in the mean of their group. One of the two is usually enough.",
                stacklevel=2,
            )
        self.ratio: Ratio = ratio
        self.clipping: Clipping = clipping
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.kl_coef = kl_coef
        self.kl_value: KLEstimator = kl_value
        self.kl_gradient: KLGradient = kl_gradient
        self.entropy_coef = entropy_coef
        self.scale: AdvantageScale = scale
        self.aggregation: Aggregation = aggregation
        self.mask_truncated = mask_truncated
        self.overlong_fraction = overlong_fraction
        self.overlong_factor = overlong_factor
        self.save_hyperparameters(
            ignore=["policy", "rewards", "tokenizer", "scores", "optimizer", "scheduler", "sampling"]
        )
        self.save_hyperparameters({"sampling": asdict(self.sampling)})

    def penalties(self, rollout: Rollout, judged: Judged) -> Tensor:
        """The soft overlong punishment, (B,); 0 where there is none."""
        lengths = rollout.completion_mask.sum(1)
        if self.overlong_fraction is None:
            return torch.zeros_like(lengths)
        longest = self.sampling.max_new_tokens
        buffer = max(1, round(self.overlong_fraction * longest))
        return overlong_penalty(lengths, max_length=longest, buffer=buffer, factor=self.overlong_factor)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards relative to their group, (B,) to (B,)."""
        return group_advantages(rewards, group_size=self.group_size, scale=self.scale)

    def learning_tokens(self, loss_mask: Tensor, advantages: Tensor) -> Tensor:
        """Tokens with an advantage, or all where KL or entropy have a gradient of their own."""
        regularised = self.kl_coef > 0 or self.entropy_coef > 0
        return loss_mask.sum() if regularised else super().learning_tokens(loss_mask, advantages)

    def token_loss(self, logprobs: Tensor, old_logprobs: Tensor, entropy: Tensor, rollout: Rollout) -> PolicyLoss:
        """The policy-gradient term, the KL term and the entropy bonus of each token, (B, C)."""
        loss, clipped = self.policy_loss(logprobs, old_logprobs, rollout.advantages, rollout.loss_mask)
        if rollout.ref_logprobs is not None:
            loss = loss + self.kl_coef * kl_penalty(
                logprobs, rollout.ref_logprobs, old_logprobs, value=self.kl_value, gradient=self.kl_gradient
            )
        return PolicyLoss(loss - self.entropy_coef * entropy, clipped)

    def policy_loss(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> PolicyLoss:
        """The policy-gradient term alone, (B, C)."""
        log_ratio = logprobs - old_logprobs
        if self.ratio == "sequence":
            log_ratio = sequence_log_ratio(log_ratio, mask, reduction="mean")
        if self.clipping == "weight":
            return cispo_loss(logprobs, log_ratio, advantages, clip_low=self.clip_low, clip_high=self.clip_high)
        return clipped_policy_loss(
            log_ratio, advantages, clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip
        )
