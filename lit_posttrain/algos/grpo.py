"""Group relative policy optimisation."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.choices import check_choices
from lit_posttrain.algos.experience import Experience
from lit_posttrain.algos.online import OnlineModule
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
from lit_posttrain.batching import MicroBatch
from lit_posttrain.functional import (
    AdvantageScale,
    Aggregation,
    KLEstimator,
    KLGradient,
    PolicyLoss,
    aggregate,
    clipped_policy_loss,
    group_advantages,
    kl_estimate,
    kl_penalty,
    normalizer,
)
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.sampling import Sampling


class GRPO(OnlineModule):
    r"""GRPO: PPO without a value model; a completion is compared with the others of its prompt (arXiv:2402.03300).

    A rollout samples `group_size` completions of every prompt of a batch. With reward :math:`r_i` the advantage of
    all tokens of completion i is :math:`A_i = (r_i - \mathrm{mean}(r)) / (\mathrm{std}(r) + 10^{-4})` over its group,
    and with the ratio :math:`\rho_t = \pi(o_t) / \pi_\mathrm{old}(o_t)` a token's loss is

    .. math:: -\min(\rho_t A, \mathrm{clip}(\rho_t, 1 - \epsilon_l, 1 + \epsilon_h) A) + \beta\,\mathrm{KL}_t - c_H H_t

    Differs from the paper in its defaults, which are those that have proved themselves since: no KL term, the
    asymmetric clip and the mean over all tokens of an optimiser step of DAPO (arXiv:2503.14476). The paper's loss is
    `aggregation="seq-mean-token-mean", clip_high=0.2, kl_coef=0.04, kl_gradient="k3"`.

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
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        dual_clip: bound c > 1 on the loss -c A of negative advantages (arXiv:1912.09729); None = none.
        kl_coef: :math:`\beta`; 0 = no KL term and no reference in memory.
        kl_value: the estimator that the KL term's value is (`functional.kl_penalty`).
        kl_gradient: the estimator that its gradient is; the default descends KL(policy || reference).
        entropy_coef: :math:`c_H`, a bonus on the entropy; 0 = none.
        scale: what the centred rewards are divided by: "group" or "batch" standard deviation, or "none" (Dr. GRPO).
        aggregation: how token losses become one number (`functional.aggregate`); "constant" divides by
            `sampling.max_new_tokens` for each sequence (Dr. GRPO).
        mask_truncated: leave completions out of the loss that were cut off at the longest length.
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
        for name, clip in (("clip_low", clip_low), ("clip_high", clip_high)):
            if not 0 <= clip < 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1), got {clip}: the ratio is clipped to [1 - clip_low, 1 + clip_high]."
                )
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"`dual_clip` must be > 1 or None, got {dual_clip}: it bounds ratios above 1.")
        for name, coefficient in (("kl_coef", kl_coef), ("entropy_coef", entropy_coef)):
            if not coefficient >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {coefficient}.")
        if kl_coef > 0 and scale == "group":
            warnings.warn(
                'a KL term in the loss together with scale="group" weighs the KL differently for each prompt (by the '
                'standard deviation of its rewards), which moves the optimum. Consider scale="none" or kl_coef=0.',
                stacklevel=2,
            )
        check_choices(kl_value=kl_value, kl_gradient=kl_gradient, scale=scale, aggregation=aggregation)
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
        self.save_hyperparameters(
            ignore=["policy", "rewards", "tokenizer", "scores", "optimizer", "scheduler", "sampling"]
        )
        self.save_hyperparameters({"sampling": asdict(self.sampling)})

    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards relative to their group, (B,) to (B,)."""
        return group_advantages(rewards, group_size=self.group_size, scale=self.scale)

    def loss_mask(self, experience: Experience) -> Tensor:
        """All sampled tokens, or those of completions that ended by themselves: (B, C)."""
        mask = experience.tokens.completion_mask
        return mask & ~experience.truncated[:, None] if self.mask_truncated else mask

    def loss_normalizer(self, loss_mask: Tensor) -> Tensor:
        """What these rows add to the denominator of the step's loss: ()."""
        return normalizer(loss_mask, self.aggregation, max_length=self.sampling.max_new_tokens)

    def learning_tokens(self, loss_mask: Tensor, advantages: Tensor) -> Tensor:
        """Tokens with an advantage, or all where KL or entropy have a gradient of their own."""
        regularised = self.kl_coef > 0 or self.entropy_coef > 0
        return loss_mask.sum() if regularised else (loss_mask & (advantages != 0)).sum()

    def policy_loss(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> PolicyLoss:
        """The clipped loss of each token, (B, C); what a variant with another ratio replaces."""
        return clipped_policy_loss(
            logprobs - old_logprobs,
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )

    def loss(self, batch: MicroBatch) -> Tensor:
        """This micro-batch's share of the optimiser step's loss: ()."""
        rollout, mask = batch.rollout, batch.rollout.loss_mask
        logprobs, entropy = self.token_statistics(rollout, entropy_gradient=self.entropy_coef > 0)
        old_logprobs = logprobs.detach() if rollout.old_logprobs is None else rollout.old_logprobs

        token_loss, clipped = self.policy_loss(logprobs, old_logprobs, rollout.advantages, mask)
        if rollout.ref_logprobs is not None:
            token_loss = token_loss + self.kl_coef * kl_penalty(
                logprobs, rollout.ref_logprobs, old_logprobs, value=self.kl_value, gradient=self.kl_gradient
            )
            self._statistics.add("kl_ref", kl_estimate(logprobs, rollout.ref_logprobs, estimator=self.kl_value), mask)
        token_loss = token_loss - self.entropy_coef * entropy
        loss = aggregate(
            token_loss,
            mask,
            self.aggregation,
            normalizer=batch.normalizer,
            max_length=self.sampling.max_new_tokens,
        )

        log_ratio = (logprobs - old_logprobs).detach()
        self._statistics.add("loss", loss)
        self._statistics.add("tokens", mask)
        self._statistics.add("sequences", mask.any(1))
        self._statistics.add("clipped", clipped, mask)
        self._statistics.add("entropy", entropy, mask)
        self._statistics.add("approx_kl", kl_estimate(old_logprobs, logprobs, estimator="k3"), mask)
        self._statistics.maximum("ratio", log_ratio.exp(), mask)
        return loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the tokens of an optimiser step."""
        tokens = totals["tokens"].clamp(min=1)
        metrics = {
            "train/loss": totals["loss"],
            "policy/entropy": totals["entropy"] / tokens,
            "policy/approx_kl": totals["approx_kl"] / tokens,
            "policy/clip_frac": totals["clipped"] / tokens,
            "policy/ratio_max": totals["ratio"],
        }
        if "kl_ref" in totals:
            metrics["policy/kl_ref"] = totals["kl_ref"] / tokens
            metrics["policy/kl_ref_sequence"] = totals["kl_ref"] / totals["sequences"].clamp(min=1)
        return metrics
