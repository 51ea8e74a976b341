"""Proximal policy optimisation with a critic."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from lit_posttrain.algos.actor_critic import ActorCriticModule, CriticSource
from lit_posttrain.algos.choices import MissingEOS, check_choices, check_clip_range
from lit_posttrain.algos.kl_control import KLControl
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
from lit_posttrain.batching import MicroBatch, PlannedRollout, Rollout
from lit_posttrain.functional import (
    KLEstimator,
    PolicyLoss,
    aggregate,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
)
from lit_posttrain.models.networks.policy import TokenStatistics
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.experience import PromptRow
from lit_posttrain.rollout.samples import Judged
from lit_posttrain.rollout.sampling import Sampling


class PPO(ActorCriticModule):
    r"""PPO: a critic says what was to be expected, and the policy goes where it did better (arXiv:1707.06347).

    The reward of a token is :math:`r_t = -\beta (\log\pi_\mathrm{old} - \log\pi_\mathrm{ref})_t`; the last real token
    of a completion gets its score beside it, and each token what the reward function gave it, where it does so token
    by token. From these and the values :math:`V_t` before each token come advantages :math:`A` and returns :math:`R` by
    generalised advantage estimation, once for a rollout; the advantages get mean 0 and variance 1 over the tokens of
    the rollout on all ranks. Then `num_epochs` passes are made, and the loss is the mean over all tokens of a step of

    .. math:: -\min(\rho A, \mathrm{clip}(\rho, 1 - \epsilon_l, 1 + \epsilon_h) A) - c_H H
        + \tfrac{c_V}{2} \max((V - R)^2, (V_\mathrm{old} + \mathrm{clip}(V - V_\mathrm{old}, \pm\epsilon_V) - R)^2)

    Differs from the published codes: policy and critic have learning rates of their own, their gradients are clipped
    apart, and advantages are whitened once over the whole rollout. `experiment=ppo_n_details` has the numbers of
    arXiv:2403.17031.

    Args:
        policy: see `GRPO`.
        rewards: see `GRPO`; a function may return a list of numbers for a completion, one for each token.
        tokenizer: see `GRPO`.
        scores: see `GRPO`.
        critic: where the value model starts: "policy" for a copy of the policy's trunk with a head of zeros, the folder
            of a reward model (the better start where it is also the reward), "shared" for a head of zeros on the
            policy's own trunk, which needs the least memory, or a built `ValueNetwork`.
        group_size: completions of each prompt in a rollout.
        num_minibatches: optimiser steps in one pass over a rollout.
        num_epochs: passes over a rollout.
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        dual_clip: bound c > 1 on the loss -c A of negative advantages (arXiv:1912.09729); None = none.
        value_clip: :math:`\epsilon_V`, in units of value; None = none.
        value_coef: :math:`c_V`.
        value_lr: learning rate of the critic; that of the optimiser is the policy's.
        kl_coef: :math:`\beta`, to begin with; 0 = no reference in memory.
        kl_estimator: of the KL in the reward: "k1" above; "k2" and "k3" are never negative and biased there.
        kl_target: steer :math:`\beta` so that the KL stays near this, in nats per sequence (arXiv:1909.08593); None =
            it is fixed.
        kl_horizon: sequences over which it adapts.
        discount: of the next token, in [0, 1].
        gae_lambda: of the advantages, in [0, 1]: 1 = no bias, 0 = least variance.
        value_gae_lambda: of the returns (VC-PPO, arXiv:2503.01491, has 1); None = the same.
        whiten_advantages: mean 0 and variance 1 over the rollout.
        whiten_rewards: variance 1 of the tokens' rewards over the rollout, their mean kept.
        entropy_coef: :math:`c_H`, a bonus on the entropy; 0 = none.
        target_kl: leave out a step, and the rest of its rollout, where the policy is farther than this from the one
            that sampled (`policy/approx_kl`, nats per token); None = no bound.
        critic_warmup_steps: optimiser steps at the beginning in which the policy stays as it is and the critic is
            fitted to returns with lambda 1.
        missing_eos: what becomes of the score of a completion that was cut off: "replace" it by -`missing_eos_penalty`,
            "subtract" that from it, "mask" the completion out of the loss, "keep" it. Rewards of single tokens stay.
        missing_eos_penalty: in units of reward.
        sampling: see `GRPO`.
        generation_batch_size: see `GRPO`.
        val_samples: see `GRPO`.
        seed: see `GRPO`.
        optimizer: makes the optimiser from two parameter groups, `policy` and `value`; None = AdamW with lr 3e-6, betas
            0.9 and 0.95, eps 1e-5, no weight decay.
        scheduler: makes the schedule, of both; None = linear to 0 over the steps of the Trainer.
        logits_chunk_size: see `GRPO`.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if `critic` is none of these.
    """

    def __init__(
        self,
        policy: PolicySource,
        rewards: RewardFunctions | RewardFunction | Sequence[RewardFunction],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        scores: Mapping[str, Callable[..., Any]] | None = None,
        critic: CriticSource = "policy",
        group_size: int = 1,
        num_minibatches: int = 1,
        num_epochs: int = 4,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        value_clip: float | None = 0.2,
        value_coef: float = 1.0,
        value_lr: float = 9e-6,
        kl_coef: float = 0.05,
        kl_estimator: KLEstimator = "k1",
        kl_target: float | None = None,
        kl_horizon: int = 10_000,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
        value_gae_lambda: float | None = None,
        whiten_advantages: bool = True,
        whiten_rewards: bool = False,
        entropy_coef: float = 0.0,
        target_kl: float | None = None,
        critic_warmup_steps: int = 0,
        missing_eos: MissingEOS = "replace",
        missing_eos_penalty: float = 1.0,
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
        self.set_critic(critic, value_lr=value_lr, warmup_steps=critic_warmup_steps)
        check_choices(missing_eos=missing_eos, kl_estimator=kl_estimator)
        check_clip_range(clip_low, clip_high)
        if group_size < 1:
            raise ValueError(f"`group_size` must be >= 1, got {group_size}: it counts completions of a prompt.")
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"`dual_clip` must be > 1 or None, got {dual_clip}: it bounds ratios above 1.")
        for name, bound in (("value_clip", value_clip), ("kl_target", kl_target), ("target_kl", target_kl)):
            if bound is not None and not bound > 0:
                raise ValueError(f"`{name}` must be > 0 or None, got {bound}.")
        for name, number in (
            ("value_coef", value_coef),
            ("kl_coef", kl_coef),
            ("entropy_coef", entropy_coef),
            ("missing_eos_penalty", missing_eos_penalty),
        ):
            if not 0 <= number < math.inf:
                raise ValueError(f"`{name}` must be finite and >= 0, got {number}.")
        lambdas = {"discount": discount, "gae_lambda": gae_lambda, "value_gae_lambda": value_gae_lambda}
        for name, share in lambdas.items():
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {share}: it weighs what comes later.")
        if kl_horizon < 1:
            raise ValueError(f"`kl_horizon` must be >= 1, got {kl_horizon}: it counts sequences.")
        if kl_target is not None and kl_coef == 0:
            raise ValueError("`kl_target` steers `kl_coef` by factors, which 0 stays whatever: begin with another.")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.value_clip = value_clip
        self.value_coef = value_coef
        self.kl_estimator: KLEstimator = kl_estimator
        self.kl_control = KLControl(kl_coef, target=kl_target, horizon=kl_horizon)
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.value_gae_lambda = gae_lambda if value_gae_lambda is None else value_gae_lambda
        self.whiten_advantages = whiten_advantages
        self.whiten_rewards = whiten_rewards
        self.entropy_coef = entropy_coef
        self.target_kl = target_kl
        self.missing_eos: MissingEOS = missing_eos
        self.missing_eos_penalty = missing_eos_penalty
        self.mask_truncated = missing_eos == "mask"
        self.save_hyperparameters(
            ignore=["policy", "rewards", "tokenizer", "scores", "critic", "optimizer", "scheduler", "sampling"]
        )
        named = {"critic": str(critic)} if isinstance(critic, str | Path) else {}
        self.save_hyperparameters({**named, "sampling": asdict(self.sampling)})

    def default_optimizer(self) -> MakeOptimizer:
        """AdamW with lr 3e-6, betas 0.9 and 0.95, eps 1e-5, no weight decay."""
        return partial(torch.optim.AdamW, lr=3e-6, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)

    def default_scheduler(self) -> MakeScheduler:
        """Linear to 0 over the steps of the Trainer."""

        def linear(optimizer: Optimizer) -> LRScheduler:
            steps = self.trainer.estimated_stepping_batches
            if steps == math.inf:
                raise ValueError("the learning rate falls to 0 at the end of the run: give the Trainer `max_steps`.")
            return get_linear_schedule_with_warmup(optimizer, 0, int(steps))

        return linear

    @property
    def needs_old_logprobs(self) -> bool:
        """For the ratio, and for the KL in the reward."""
        return super().needs_old_logprobs or self._needs_reference

    def make_rollout(
        self, rows: list[PromptRow], index: int, more_rows: Callable[[], list[PromptRow]]
    ) -> PlannedRollout:
        """As every rollout, with the KL coefficient that it gets."""
        self.begin_rollout()
        self.kl_control.begin(index)
        return super().make_rollout(rows, index, more_rows)

    def penalties(self, rollout: Rollout, judged: Judged) -> Tensor:
        """What a completion without an EOS loses, (B,): of the part of its reward that is for all of it."""
        if self.missing_eos not in ("replace", "subtract"):
            return super().penalties(rollout, judged)
        change = torch.full_like(judged.rewards, -self.missing_eos_penalty)
        if self.missing_eos == "replace":
            change = change - (judged.rewards - judged.token_rewards.sum(1)).nan_to_num()
        return change.masked_fill(~judged.truncated, 0)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Rewards as they are, (B,): the critic is what they are compared with."""
        return rewards

    def token_advantages(self, advantages: Tensor, rollout: Rollout, judged: Judged) -> Tensor:
        """Advantages of each token, (B,) to (B, C), and beside them in the rollout the returns of the critic."""
        assert rollout.values is not None
        scorable = advantages.isfinite()
        rollout.loss_mask = mask = rollout.loss_mask & scorable[:, None]
        rewards = self._token_rewards(advantages.nan_to_num(), rollout, judged)
        if self.whiten_rewards:
            rewards = self.whiten_over_ranks(rewards, mask, shift_mean=False)
        estimate = partial(gae, rewards, rollout.values, mask, discount=self.discount)
        _, rollout.returns = estimate(gae_lambda=1.0 if self.warms_up else self.value_gae_lambda)
        token_advantages, _ = estimate(gae_lambda=self.gae_lambda)
        return self.whiten_over_ranks(token_advantages, mask) if self.whiten_advantages else token_advantages

    def _token_rewards(self, rewards: Tensor, rollout: Rollout, judged: Judged) -> Tensor:
        """What each token earns, (B,) to (B, C), 0 where the loss does not count."""
        earned = judged.token_rewards.to(rewards.dtype)
        last = rollout.completion_mask.sum(1, keepdim=True) - 1
        earned = earned.scatter_add(1, last, (rewards - earned.sum(1))[:, None])
        if rollout.old_logprobs is not None and rollout.ref_logprobs is not None:
            old, ref = rollout.old_logprobs, rollout.ref_logprobs
            earned = earned - self.kl_control.kl_coef * kl_estimate(old, ref, estimator=self.kl_estimator)
            if self.kl_control.adapts:
                kl = kl_estimate(old, ref, estimator="k1").masked_fill(~rollout.loss_mask, 0).sum()
                sequences = rollout.loss_mask.any(1).sum().to(kl.dtype)
                total, count = self.sum_over_ranks(torch.stack([kl, sequences])).tolist()
                self.kl_control.measure(total / max(count, 1), int(count))
        return earned.masked_fill(~rollout.loss_mask, 0)

    def further_rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """How much of the returns the critic had foreseen, and the coefficient of the KL."""
        assert rollout.values is not None
        assert rollout.returns is not None
        explained = explained_variance(
            rollout.values, rollout.returns, rollout.loss_mask, sum_over_ranks=self.sum_over_ranks
        )
        metrics = {"value/explained_var": explained.float()}
        if self.reference is not None:
            metrics["policy/kl_coef"] = torch.tensor(self.kl_control.kl_coef)
        return metrics

    def learning_tokens(self, loss_mask: Tensor, advantages: Tensor) -> Tensor:
        """All: the critic learns where the policy does not."""
        return loss_mask.sum()

    def token_loss(self, logprobs: Tensor, old_logprobs: Tensor, entropy: Tensor, rollout: Rollout) -> PolicyLoss:
        """The clipped loss of each token and the entropy bonus, (B, C)."""
        loss, clipped = clipped_policy_loss(
            logprobs - old_logprobs,
            rollout.advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
        )
        return PolicyLoss(loss - self.entropy_coef * entropy, clipped)

    def total_loss(self, policy_loss: Tensor, statistics: TokenStatistics, batch: MicroBatch) -> Tensor:
        """The loss of policy and critic, () to (); of the critic alone while it warms up."""
        rollout, mask = batch.rollout, batch.rollout.loss_mask
        assert statistics.values is not None
        assert rollout.returns is not None
        assert rollout.values is not None
        losses, clipped = clipped_value_loss(statistics.values, rollout.returns, rollout.values, clip=self.value_clip)
        self._statistics.add("value_loss", losses, mask)
        self._statistics.add("value_clipped", clipped, mask)
        value_loss = aggregate(losses, mask, self.aggregation, normalizer=batch.normalizer)
        # times 0 and not left out: under DDP every parameter has to have a gradient
        return policy_loss * (0.0 if self.warms_up else 1.0) + self.value_coef * value_loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over the tokens of an optimiser step; one that is too far from the rollout's policy ends it."""
        tokens = totals["tokens"].clamp(min=1)
        metrics = {
            **super().step_metrics(totals),
            "value/loss": totals["value_loss"] / tokens,
            "value/clip_frac": totals["value_clipped"] / tokens,
        }
        if self.target_kl is not None:
            if metrics["policy/approx_kl"] > self.target_kl:
                self.end_rollout()
            metrics["policy/stopped"] = torch.tensor(float(self._rollout_is_over), device=tokens.device)
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the KL coefficient and what will change it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kl_control"] = self.kl_control.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.kl_control.load_state_dict(checkpoint["kl_control"])
