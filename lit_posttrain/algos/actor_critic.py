"""A policy and a critic that learn together: one optimiser, a parameter group for each."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_posttrain.algos.policy_gradient import PolicyGradientModule
from lit_posttrain.batching import Rollout, in_batches
from lit_posttrain.models.networks.policy import TokenStatistics
from lit_posttrain.models.networks.reward import check_reward_model
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork, check_same_tokens, value_head_of
from lit_posttrain.models.sharding import total_norm

log = logging.getLogger(__name__)

CriticSource = str | Path | ValueNetwork
POLICY, SHARED = "policy", "shared"


class ActorCriticModule(PolicyGradientModule):
    """Trains a value model beside the policy.

    The optimiser has the groups `policy` and `value`, whose gradients are clipped apart: the size of the critic's
    errors says nothing about how far the policy may go. A group that rests in a step, the policy while the critic
    warms up, has no gradient when the optimiser is stepped, so that neither weight decay nor momentum moves it.

    Its arguments are those of `RolloutModule`; the constructor of a subclass calls `set_critic`.

    Attributes:
        value_model: the critic, a network of its own or a head on the policy's trunk; there once `configure_model` has
            run.
    """

    value_model: ValueNetwork | ValueHead | None
    _rollout_is_over = False  # too far from the policy that sampled: its other steps are left out

    def set_critic(self, critic: CriticSource, *, value_lr: float, warmup_steps: int) -> None:
        """Take the options of the critic.

        Args:
            critic: "policy" for a copy of the initial policy's trunk with a head of zeros, "shared" for a head of zeros
                on the policy's own trunk, the folder of a reward model, or a built network.
            value_lr: learning rate of its group.
            warmup_steps: optimiser steps at the beginning in which the critic learns and the policy does not.

        Raises:
            ValueError: if a number is out of its range.
            TypeError: if `critic` is none of these.
        """
        if not isinstance(critic, str | Path | ValueNetwork):
            shown = "null" if critic is None else type(critic).__name__
            raise TypeError(
                f'`critic` must be "policy", "shared", the folder of a reward model or a `ValueNetwork`, got {shown}.'
            )
        if not 0 <= value_lr < float("inf"):
            raise ValueError(f"`value_lr` must be finite and >= 0, got {value_lr}.")
        if warmup_steps < 0:
            raise ValueError(f"`critic_warmup_steps` must be >= 0, got {warmup_steps}: it counts optimiser steps.")
        self._critic = lambda: critic  # in a function, since a module would be registered before `configure_model`
        self.value_lr = value_lr
        self.critic_warmup_steps = warmup_steps
        self.value_model = None

    @property
    def warms_up(self) -> bool:
        """Whether the critic alone learns in the current step."""
        return self.trainer.global_step < self.critic_warmup_steps

    @property
    def _critic_folder(self) -> str | None:
        critic = self._critic()
        return None if isinstance(critic, ValueNetwork) or critic in (POLICY, SHARED) else str(critic)

    def check_model(self) -> None:
        """Fail now, before data are read or weights loaded, where policy or critic cannot be found or do not fit."""
        super().check_model()
        if self._critic_folder is None:
            return
        try:
            check_reward_model(self._critic_folder, option="algo.critic")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"`critic` must be {POLICY}, {SHARED} or a reward model, got `{self._critic_folder}`: {error}"
            ) from error
        check_same_tokens(self._critic_folder, self.tokenizer)

    def on_fit_start(self) -> None:
        """Say so where the policy will not learn at all."""
        super().on_fit_start()
        if 0 < self.trainer.max_steps <= self.critic_warmup_steps:
            log.warning(
                "the critic warms up in all %s steps (`critic_warmup_steps` = %s): the policy stays as it is",
                self.trainer.max_steps,
                self.critic_warmup_steps,
            )

    def build_networks(self) -> None:
        """Load policy, reference and critic; the critic of a policy with an adapter is trained whole."""
        super().build_networks()
        if self.value_model is None:
            self.value_model = self._make_critic().train()

    def trained_networks(self) -> list[nn.Module]:
        """Policy and critic."""
        assert self.value_model is not None
        return [*super().trained_networks(), self.value_model]

    def _make_critic(self) -> ValueNetwork | ValueHead:
        critic, policy = self._critic(), self.policy
        assert policy is not None
        if isinstance(critic, ValueNetwork):
            return critic
        if self._critic_folder is not None:
            check_reward_model(self._critic_folder, option="algo.critic")
            check_same_tokens(self._critic_folder, self.tokenizer)
            network = ValueNetwork.from_reward_model(self._critic_folder, dtype=policy.model.dtype)
            if policy.model.is_gradient_checkpointing:
                network.trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            return network
        if critic == POLICY:
            return ValueNetwork.from_causal_lm(self.merged_model())
        if not policy.has_known_head:
            raise ValueError(
                "`critic=shared` needs the policy's hidden states, and how its logits come from them is not known of "
                f"{type(policy.model).__name__}: use `critic=policy`."
            )
        return value_head_of(policy.model, like=policy.model.get_output_embeddings().weight)

    def parameter_groups(self) -> list[Any]:
        """The policy with the optimiser's learning rate, and the critic with its own."""
        assert self.policy is not None
        assert self.value_model is not None
        return [
            {"params": [p for p in self.policy.parameters() if p.requires_grad], "name": "policy"},
            {"params": list(self.value_model.parameters()), "lr": self.value_lr, "name": "value"},
        ]

    def token_statistics(self, batch: Rollout, *, entropy_gradient: bool = False) -> TokenStatistics:
        """Log-probs, entropies and values of a batch's completions, (B, C)."""
        if isinstance(self.value_model, ValueHead):
            assert self.policy is not None
            return self.policy(
                **batch.model_inputs(),
                temperature=self.sampling.temperature,
                entropy_gradient=entropy_gradient,
                value_head=self.value_model,
            )
        statistics = super().token_statistics(batch, entropy_gradient=entropy_gradient)
        return statistics._replace(values=self._network_values(batch)) if torch.is_grad_enabled() else statistics

    def _network_values(self, batch: Rollout) -> Tensor:
        assert isinstance(self.value_model, ValueNetwork)
        return self.value_model(**batch.model_inputs())

    def _shared_values(self, batch: Rollout) -> Tensor:
        values = self.token_statistics(batch).values
        assert values is not None
        return values

    def _add_old_and_reference_logprobs(self, rollout: Rollout) -> None:
        """With what the critic expects of the rollout before it learns from it."""
        super()._add_old_and_reference_logprobs(rollout)
        shared = isinstance(self.value_model, ValueHead)
        with self.inference(*self.trained_networks()):
            rollout.values = in_batches(
                rollout,
                self._shared_values if shared else self._network_values,
                batch_size=self.rows_at_once(rollout),
            )

    def end_rollout(self) -> None:
        """Leave the weights alone in this step and in the others of the current rollout; they still count."""
        self._rollout_is_over = True

    def begin_rollout(self) -> None:
        """Learn again."""
        self._rollout_is_over = False

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the norms of the whole step's gradients, before clipping, and take away those of groups that rest."""
        super().on_before_optimizer_step(optimizer)
        for group in optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            self.log(f"{group['name']}/grad_norm", total_norm(gradients))
            if self._rollout_is_over or (group["name"] == "policy" and self.warms_up):
                for parameter in group["params"]:
                    parameter.grad = None  # which AdamW passes over; a zero it would not

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say also whether the rest of the current rollout is left out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollout_is_over"] = self._rollout_is_over

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the same way."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._rollout_is_over = checkpoint["rollout_is_over"]
