"""Proximal policy optimisation with a critic."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_posttrain.algos.choices import (
    MissingEOS,
    check_choices,
    check_clip_range,
    check_not_negative,
    check_shares,
)
from lit_posttrain.algos.critic import POLICY, Critic, CriticStart
from lit_posttrain.algos.kl_control import KLControl, RolloutBound
from lit_posttrain.batching import MicroBatch, PlannedRollout, Rollout
from lit_posttrain.functional import (
    KLEstimator,
    PolicyLoss,
    aggregate,
    clipped_policy_loss,
    gae,
    kl_estimate,
    rewards_of_tokens,
)
from lit_posttrain.models.networks.policy import TokenStatistics
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork
from lit_posttrain.models.sharding import total_norm
from lit_posttrain.models.source import Model
from lit_posttrain.modules.defaults import linear_to_zero
from lit_posttrain.modules.online import OnlineModule, Rewards, TokenLossInputs
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler
from lit_posttrain.rollout.engine import PromptRow
from lit_posttrain.rollout.options import Rollouts, Sampling, Validation, as_mapping

log = logging.getLogger(__name__)


class PPO(OnlineModule):
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
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one.
        rewards: one reward function, several, or `RewardFunctions` where they have weights; a function may return a
            list of numbers for a completion, one for each token.
        critic: the value model and how it learns, or only where it starts, as `Critic.start` says.
        group_size: completions of each prompt in a rollout.
        clip_low: :math:`\epsilon_l`, in [0, 1).
        clip_high: :math:`\epsilon_h`, in [0, 1).
        dual_clip: bound c > 1 on the loss -c A of negative advantages (arXiv:1912.09729); None = none.
        kl_coef: :math:`\beta`, to begin with; 0 = no reference in memory.
        kl_estimator: of the KL in the reward: "k1" above; "k2" and "k3" are never negative and biased there.
        kl_target: steer :math:`\beta` so that the KL stays near this, in nats per sequence (arXiv:1909.08593); None =
            it is fixed.
        kl_horizon: sequences over which it adapts.
        discount: of the next token, in [0, 1].
        gae_lambda: of the advantages, in [0, 1]: 1 = no bias, 0 = least variance.
        whiten_advantages: mean 0 and variance 1 over the rollout.
        whiten_rewards: variance 1 of the tokens' rewards over the rollout, their mean kept.
        entropy_coef: :math:`c_H`, a bonus on the entropy; 0 = none.
        target_kl: leave out a step, and the rest of its rollout, where the policy is farther than this from the one
            that sampled (`policy/approx_kl`, nats per token); None = no bound.
        missing_eos: what becomes of the score of a completion that was cut off: "replace" it by -`missing_eos_penalty`,
            "subtract" that from it, "mask" the completion out of the loss, "keep" it. Rewards of single tokens stay.
        missing_eos_penalty: in units of reward.
        sampling: how completions are drawn, in rollouts and in sampled validation.
        rollouts: how a rollout is made and used; 4 epochs unless told otherwise.
        validation: how the policy is judged in validation.
        optimizer: makes the optimiser from two parameter groups, `policy` and `value`; None = AdamW with lr 3e-6, betas
            0.9 and 0.95, eps 1e-5, no weight decay.
        scheduler: makes the schedule, of both; None = linear to 0 over the steps of the Trainer.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if `critic` is none of these.
    """

    num_epochs = 4
    unsaved = (*OnlineModule.unsaved, "critic")

    def __init__(
        self,
        policy: Model,
        rewards: Rewards,
        *,
        critic: Critic | CriticStart | Mapping[str, Any] = POLICY,
        group_size: int = 1,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        kl_coef: float = 0.05,
        kl_estimator: KLEstimator = "k1",
        kl_target: float | None = None,
        kl_horizon: int = 10_000,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
        whiten_advantages: bool = True,
        whiten_rewards: bool = False,
        entropy_coef: float = 0.0,
        target_kl: float | None = None,
        missing_eos: MissingEOS = "replace",
        missing_eos_penalty: float = 1.0,
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
        self.critic = Critic.of(critic)
        self.save_hyperparameters({"critic": as_mapping(self.critic)})
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.kl_coef, self.kl_estimator = kl_coef, kl_estimator
        self.discount, self.gae_lambda, self.entropy_coef = discount, gae_lambda, entropy_coef
        self.whiten_advantages, self.whiten_rewards = whiten_advantages, whiten_rewards
        self.missing_eos, self.missing_eos_penalty = missing_eos, missing_eos_penalty
        self.mask_truncated = missing_eos == "mask"
        self._check()
        self.value_model: ValueNetwork | ValueHead | None = None
        self.kl_control = self.states["kl_control"] = KLControl(kl_coef, target=kl_target, horizon=kl_horizon)
        self.rollout_bound = self.states["rollout_bound"] = RolloutBound(target_kl)

    def default_optimizer(self) -> MakeOptimizer:
        """Give AdamW with lr 3e-6, betas 0.9 and 0.95, eps 1e-5, no weight decay."""
        return partial(torch.optim.AdamW, lr=3e-6, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0)

    def default_scheduler(self) -> MakeScheduler:
        """Give a line to 0 over the steps of the Trainer."""
        return linear_to_zero(self)

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether they are needed: for the ratio, and for the KL in the reward."""
        return super().needs_old_logprobs or self.kl_coef > 0

    @property
    def warms_up(self) -> bool:
        """Whether the critic alone learns in the current step."""
        return self.trainer.global_step < self.critic.warmup_steps

    # Rewards and advantages.

    def make_rollout(
        self, rows: list[PromptRow], index: int, more_rows: Callable[[], list[PromptRow]]
    ) -> PlannedRollout:
        """Make a rollout, as every one is made, with the KL coefficient that it gets."""
        self.rollout_bound.begin()
        self.kl_control.begin(index)
        return super().make_rollout(rows, index, more_rows)

    def reward_shaping(self, rollout: Rollout) -> Tensor:
        """Give what a completion without an EOS loses, (B,): of the part of its reward that is for all of it."""
        if self.missing_eos not in ("replace", "subtract"):
            return super().reward_shaping(rollout)
        change = torch.full_like(rollout.rewards, -self.missing_eos_penalty)
        if self.missing_eos == "replace":
            change = change - (rollout.rewards - rollout.token_rewards.sum(1)).nan_to_num()
        return change.masked_fill(~rollout.truncated, 0)

    def advantages(self, rewards: Tensor) -> Tensor:
        """Leave rewards as they are, (B,): the critic is what they are compared with."""
        return rewards

    def token_advantages(self, advantages: Tensor, rollout: Rollout) -> Tensor:
        """Estimate advantages of each token, (B,) to (B, C), and beside them in the rollout the critic's returns."""
        assert rollout.values is not None
        rollout.loss_mask = mask = rollout.loss_mask & advantages.isfinite()[:, None]
        rewards = self._token_rewards(advantages.nan_to_num(), rollout)
        if self.whiten_rewards:
            rewards = self.ranks.whiten(rewards, mask, shift_mean=False)
        estimate = partial(gae, rewards, rollout.values, mask, discount=self.discount)
        of_returns = self.gae_lambda if self.critic.gae_lambda is None else self.critic.gae_lambda
        _, rollout.returns = estimate(gae_lambda=1.0 if self.warms_up else of_returns)
        token_advantages, _ = estimate(gae_lambda=self.gae_lambda)
        return self.ranks.whiten(token_advantages, mask) if self.whiten_advantages else token_advantages

    def _token_rewards(self, rewards: Tensor, rollout: Rollout) -> Tensor:
        """Find what each token earns, (B,) to (B, C), 0 where the loss does not count; measure the KL."""
        old, ref, kl = rollout.old_logprobs, rollout.ref_logprobs, None
        if old is not None and ref is not None:
            kl = kl_estimate(old, ref, estimator=self.kl_estimator)
            self.kl_control.measure(kl_estimate(old, ref, estimator="k1"), rollout.loss_mask, self.ranks)
        earned = rewards_of_tokens(
            rewards, rollout.completion_mask, given=rollout.token_rewards, kl=kl, kl_coef=self.kl_control.kl_coef
        )
        return earned.masked_fill(~rollout.loss_mask, 0)

    def learning_mask(self, rollout: Rollout) -> Tensor:
        """Tell which tokens have a gradient: all, since the critic learns where the policy does not, (B, C)."""
        return rollout.loss_mask

    def rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """Report how much of the returns the critic had foreseen, and the coefficient of the KL."""
        metrics = {"value/explained_var": self.critic.explained_variance(rollout, self.ranks)}
        if self.reference is not None:
            metrics["policy/kl_coef"] = torch.tensor(self.kl_control.kl_coef)
        return metrics

    # The critic.

    def check_model(self) -> None:
        """Fail now, before data are read or weights loaded, where policy or critic cannot be found or do not fit."""
        super().check_model()
        self.critic.check(self.source)

    def build_networks(self) -> None:
        """Load policy, reference and critic."""
        super().build_networks()
        if self.value_model is None:
            assert self.policy is not None
            self.value_model = self.critic.build(self.policy, self.source).train()

    def trained_networks(self) -> list[nn.Module]:
        """List policy and critic."""
        assert self.value_model is not None
        return [*super().trained_networks(), self.value_model]

    def parameter_groups(self) -> list[Any]:
        """Give the policy with the optimiser's learning rate, and the critic with its own.

        Their gradients are clipped apart: the size of the critic's errors says nothing about how far the policy may go.
        """
        assert self.value_model is not None
        return [
            {"params": [p for p in self.main_network.parameters() if p.requires_grad], "name": "policy"},
            {"params": list(self.value_model.parameters()), "lr": self.critic.lr, "name": "value"},
        ]

    def token_statistics(self, batch: Rollout) -> TokenStatistics:
        """Compute log-probs and entropies of a batch's completions, and values where there is a gradient, (B, C)."""
        if isinstance(self.value_model, ValueHead):  # it travels through the policy's forward, the root that is sharded
            drawn = {"temperature": self.sampling.temperature, "entropy_gradient": self.entropy_coef > 0}
            return self.main_network(batch, **drawn, value_head=self.value_model)
        statistics = super().token_statistics(batch)
        return statistics._replace(values=self._values(batch)) if torch.is_grad_enabled() else statistics

    def _values(self, batch: Rollout) -> Tensor:
        shared = isinstance(self.value_model, ValueHead)
        values = self.token_statistics(batch).values if shared else self.value_model(batch)  # type: ignore[misc]
        assert values is not None
        return values

    def add_logprobs(self, rollout: Rollout) -> None:
        """Fill in also what the critic expects of the rollout before it learns from it."""
        super().add_logprobs(rollout)
        rollout.values = self.infer(rollout, self._values, *self.trained_networks())

    def on_fit_start(self) -> None:
        """Say so where the policy will not learn at all."""
        super().on_fit_start()
        if 0 < self.trainer.max_steps <= self.critic.warmup_steps:
            steps = self.trainer.max_steps, self.critic.warmup_steps
            log.warning("the critic warms up in all %s steps (`warmup_steps` = %s): the policy stays as it is", *steps)

    # The loss, and steps.

    def token_loss(self, inputs: TokenLossInputs) -> PolicyLoss:
        """Compute the clipped loss of each token and the entropy bonus, (B, C)."""
        log_ratio = inputs.logprobs - inputs.old_logprobs
        low, high = self.clip_low, self.clip_high
        loss, clipped = clipped_policy_loss(
            log_ratio, inputs.advantages, clip_low=low, clip_high=high, dual_clip=self.dual_clip
        )
        return PolicyLoss(loss - self.entropy_coef * inputs.entropy, clipped)

    def loss(self, batch: MicroBatch) -> Tensor:
        """Compute the loss of policy and critic, (); of the critic alone while it warms up."""
        rollout, inputs = batch.rollout, self.loss_inputs(batch.rollout)
        policy_loss = self.policy_loss(inputs, batch)
        losses, clipped = self.critic.loss(inputs.values, rollout)
        self.statistics.add("value_loss", losses, inputs.mask)
        self.statistics.add("value_clipped", clipped, inputs.mask)
        value_loss = aggregate(losses, inputs.mask, self.aggregation, normalizer=batch.normalizer)
        # times 0 and not left out: under DDP every parameter has to have a gradient
        return policy_loss * (0.0 if self.warms_up else 1.0) + self.critic.coef * value_loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take means over the tokens of an optimiser step; one that is too far from the rollout's policy ends it."""
        tokens = totals["tokens"].clamp(min=1)
        metrics = {
            **super().step_metrics(totals),
            "value/loss": totals["value_loss"] / tokens,
            "value/clip_frac": totals["value_clipped"] / tokens,
        }
        if self.rollout_bound.bounds:
            self.rollout_bound.measure(metrics["policy/approx_kl"])
            metrics["policy/stopped"] = torch.tensor(float(self.rollout_bound.is_over), device=tokens.device)
        return metrics

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norms of the whole step's gradients, before clipping, and take away those of groups that rest.

        So neither weight decay nor momentum moves the policy while the critic warms up, or what has gone too far.
        """
        super().on_before_optimizer_step(optimizer)
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            self.log(f"{group['name']}/grad_norm", total_norm(gradients))
            if self.rollout_bound.is_over or (group["name"] == "policy" and self.warms_up):
                for parameter in group["params"]:
                    parameter.grad = None  # which AdamW passes over; a zero it would not

    def _check(self) -> None:
        check_choices(missing_eos=self.missing_eos, kl_estimator=self.kl_estimator)
        check_clip_range(self.clip_low, self.clip_high, dual_clip=self.dual_clip)
        for name in ("kl_coef", "entropy_coef", "missing_eos_penalty"):
            check_not_negative(**{name: getattr(self, name)})
        check_shares(discount=self.discount, gae_lambda=self.gae_lambda)
