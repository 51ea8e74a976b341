"""The value model beside a policy: where it starts, and how it learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_posttrain.algos.choices import check_not_negative, check_positive, check_shares
from lit_posttrain.batching import Ranks, Rollout
from lit_posttrain.functional import ValueLoss, clipped_value_loss, explained_variance
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reward import check_reward_model
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork, check_same_tokens, value_head_of
from lit_posttrain.models.source import ModelSource
from lit_posttrain.rollout.options import options

POLICY, SHARED = "policy", "shared"
CriticStart = ValueNetwork | str | Path


@dataclass(frozen=True)
class Critic:
    r"""A value model, as `PPO` trains it.

    Args:
        start: "policy" for a copy of the initial policy's trunk with a head of zeros, the folder of a reward model (the
            better start where it is also the reward), "shared" for a head of zeros on the policy's own trunk, which
            needs the least memory, or a built `ValueNetwork`.
        lr: learning rate of the critic; that of the optimiser is the policy's.
        coef: :math:`c_V`, weight of its loss.
        clip: :math:`\epsilon_V`, in units of value; None = none.
        gae_lambda: of its returns (VC-PPO, arXiv:2503.01491, has 1); None = that of the advantages.
        warmup_steps: optimiser steps at the beginning in which the policy stays as it is and the critic is fitted to
            returns with lambda 1.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if `start` is none of these.
    """

    start: CriticStart = POLICY
    lr: float = 9e-6
    coef: float = 1.0
    clip: float | None = 0.2
    gae_lambda: float | None = None
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.start, str | Path | ValueNetwork):
            shown = "null" if self.start is None else type(self.start).__name__
            raise TypeError(
                f'`critic` must start from "policy", "shared", the folder of a reward model or a `ValueNetwork`, got '
                f"{shown}."
            )
        check_not_negative(**{"critic.lr": self.lr, "critic.coef": self.coef})
        check_positive(**{"critic.clip": self.clip})
        check_shares(**{"critic.gae_lambda": self.gae_lambda})
        if self.warmup_steps < 0:
            raise ValueError(f"`critic.warmup_steps` must be >= 0, got {self.warmup_steps}: it counts optimiser steps.")

    @classmethod
    def of(cls, given: "Critic | CriticStart | Mapping[str, Any]") -> "Critic":
        """Make it of what an argument was given: options, a mapping of them, or where it starts."""
        if isinstance(given, cls | Mapping):
            return options(cls, given, argument="critic")
        return cls(given)  # type: ignore[arg-type]  # whatever else it is, it says so

    @property
    def folder(self) -> str | None:
        """The reward model that it starts from; None where it starts from something else."""
        start = self.start
        return None if isinstance(start, ValueNetwork) or start in (POLICY, SHARED) else str(start)

    def check(self, source: ModelSource) -> None:
        """Fail now, before weights are loaded, where the reward model that it starts from is missing or does not fit.

        Args:
            source: of the policy, whose tokenizer it has to share.
        """
        if self.folder is None:
            return
        try:
            check_reward_model(self.folder, option="critic")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"`critic` must be {POLICY}, {SHARED} or a reward model, got `{self.folder}`: {error}"
            ) from error
        check_same_tokens(self.folder, source.tokenizer)

    def build(self, policy: Policy, source: ModelSource) -> ValueNetwork | ValueHead:
        """Make the network, or the head on the policy's trunk.

        Args:
            policy: as it is in the beginning. Of a policy with an adapter the critic is trained whole.
            source: where the policy came from.

        Raises:
            ValueError: if the policy has no hidden states to share.
        """
        self.check(source)
        if isinstance(self.start, ValueNetwork):
            return self.start
        if self.folder is not None:
            network = ValueNetwork.from_reward_model(self.folder, dtype=policy.model.dtype)
            if policy.model.is_gradient_checkpointing:
                network.trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            return network
        if self.start == POLICY:
            return ValueNetwork.from_causal_lm(source.merged(policy.model))
        if not policy.has_known_head:
            raise ValueError(
                "a shared critic needs the policy's hidden states, and how its logits come from them is not known of "
                f"{type(policy.model).__name__}: start the `critic` from the policy."
            )
        return value_head_of(policy.model, like=policy.model.get_output_embeddings().weight)

    def loss(self, values: Tensor | None, rollout: Rollout) -> ValueLoss:
        """Compute the loss of each value, and where it was clipped: (B, C) each."""
        assert values is not None
        returns, old_values = self._of(rollout)
        return clipped_value_loss(values, returns, old_values, clip=self.clip)

    def explained_variance(self, rollout: Rollout, ranks: Ranks) -> Tensor:
        """Find how much of the returns of all ranks the critic had foreseen: 1 is all, ()."""
        returns, values = self._of(rollout)
        return explained_variance(values, returns, rollout.loss_mask, sum_over_ranks=ranks.sum).float()

    def _of(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        assert rollout.returns is not None
        assert rollout.values is not None
        return rollout.returns, rollout.values
