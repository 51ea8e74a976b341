"""From a prompt batch to a planned rollout: prompts -> completions -> rewards -> advantages."""

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.completing_module import CompletingModule
from lit_posttrain.algos.experience import Experience, PromptRow, check_rows, evaluation_mode
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
from lit_posttrain.algos.rollout_metrics import RolloutRecord, rollout_metrics
from lit_posttrain.batching import PlannedRollout, Rollout, in_batches, plan_steps
from lit_posttrain.models.policy import TokenStatistics
from lit_posttrain.models.reference import FrozenReference
from lit_posttrain.models.tokenizers import pad_token_id
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.counter_rng import stable_hash
from lit_posttrain.rollout.sampling import Sampling


class RolloutModule(CompletingModule):
    """Makes rollouts: completions of a prompt batch with advantages, log-probs and the plan of their optimiser steps.

    Args:
        policy: see `PolicyModule`.
        rewards: see `CompletingModule`.
        tokenizer: see `PolicyModule`.
        scores: see `CompletingModule`.
        group_size: completions of each prompt in a rollout, G.
        num_minibatches: optimiser steps in one pass over a rollout.
        num_epochs: passes over a rollout.
        needs_reference: whether the loss has a KL term, so that a frozen copy of the policy is kept.
        sampling: how completions are drawn, in rollouts and in sampled validation.
        generation_batch_size: see `CompletingModule`.
        val_samples: see `CompletingModule`.
        seed: of all that is drawn in rollouts.
        optimizer: see `PolicyModule`.
        scheduler: see `PolicyModule`.
        logits_chunk_size: see `PolicyModule`.
    """

    def __init__(
        self,
        policy: PolicySource,
        rewards: RewardFunctions | RewardFunction | Sequence[RewardFunction],
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        scores: Mapping[str, Callable[..., Any]] | None,
        group_size: int,
        num_minibatches: int,
        num_epochs: int,
        needs_reference: bool,
        sampling: Sampling | Mapping[str, Any] | None,
        generation_batch_size: int | None,
        val_samples: int,
        seed: int,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
        logits_chunk_size: int,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            tokenizer=tokenizer,
            scores=scores,
            sampling=sampling,
            generation_batch_size=generation_batch_size,
            val_samples=val_samples,
            optimizer=optimizer,
            scheduler=scheduler,
            logits_chunk_size=logits_chunk_size,
        )
        for name, count in (("num_minibatches", num_minibatches), ("num_epochs", num_epochs)):
            if count < 1:
                raise ValueError(f"`{name}` must be >= 1, got {count}.")
        if self.sampling.greedy:
            raise ValueError(
                "`sampling.temperature` must be > 0 to train: greedy completions of one prompt are all equal."
            )
        self.group_size = group_size
        self.num_minibatches = num_minibatches
        self.num_epochs = num_epochs
        self.seed = seed
        self.reference: FrozenReference | None = None
        self.last_rollout: RolloutRecord | None = None
        self._needs_reference = needs_reference
        self._unlogged: dict[str, Tensor] = {}

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made of one rollout."""
        return self.num_epochs * self.num_minibatches

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of the rewards of all ranks, (B,) to (B,); NaN = not scorable, groups contiguous."""

    @abstractmethod
    def loss_mask(self, experience: Experience) -> Tensor:
        """Which completion tokens are learnt from, (B, C)."""

    @abstractmethod
    def loss_normalizer(self, loss_mask: Tensor) -> Tensor:
        """What these rows add to the denominator of the step's loss, (B, C) to ()."""

    @abstractmethod
    def learning_tokens(self, loss_mask: Tensor, advantages: Tensor) -> Tensor:
        """How many of these tokens have a gradient, (B, C) twice to (); a step without any is skipped."""

    def configure_model(self) -> None:
        """Load the policy, and copy it where a reference is needed: before any checkpoint is restored."""
        super().configure_model()
        if self._needs_reference and self.reference is None and self.policy is not None:
            self.reference = FrozenReference(self.policy)

    def on_fit_start(self) -> None:
        """Move the reference to where the policy is."""
        super().on_fit_start()
        if self.reference is not None:
            self.reference.to(self.device)

    def make_rollout(self, rows: list[PromptRow], index: int) -> PlannedRollout:
        """Complete this rank's prompts, score them and plan the optimiser steps.

        Args:
            rows: this rank's prompts, perhaps none.
            index: the number of the rollout in the run.
        """
        slots = torch.arange(len(rows)) * self.trainer.world_size + self.global_rank  # prompt numbers over all ranks
        experience = None
        check_rows(rows)
        if rows:
            keys = slots + (index << 32)
            experience = self.collect(
                rows, sampling=self.sampling, num_samples=self.group_size, prompt_keys=keys, seed=self.seed
            )
        started = time.perf_counter()
        scores = experience.score(self.rewards) if experience else torch.zeros(0, len(self.rewards.names))
        rewards = self.rewards.total(scores)
        advantages = self._advantages_over_ranks(rewards)
        planned = self._plan(self._as_rollout(experience, advantages), slots, index)
        self._add_old_and_reference_logprobs(planned)
        self.last_rollout = RolloutRecord(
            index=index,
            step=self.trainer.global_step,
            experience=experience,
            reward_names=self.rewards.names,
            scores=scores,
            rewards=rewards,
            advantages=advantages,
            group_size=self.group_size,
            score_s=time.perf_counter() - started,
        )
        self._unlogged = rollout_metrics(
            self.last_rollout, sum_over_ranks=self.sum_over_ranks, max_over_ranks=self.max_over_ranks
        )
        self.log_now(self._unlogged)
        return planned

    def _advantages_over_ranks(self, rewards: Tensor) -> Tensor:
        """Advantages of this rank's rewards, (B,), from the rewards of all ranks."""
        if self.trainer.world_size == 1:
            return self.advantages(rewards)
        most = int(self.max_over_ranks(torch.tensor(len(rewards))))
        padded = rewards.new_full((most,), torch.nan)  # NaN counts for nothing
        padded[: len(rewards)] = rewards
        everywhere: Any = self.all_gather(padded.to(self.device))
        groups = everywhere.cpu().view(self.trainer.world_size, -1, self.group_size)
        # in the order of the prompts, so that sums over all of them are those of one process to the last bit
        advantages = self.advantages(groups.transpose(0, 1).flatten()).view(-1, *groups.shape[::2])
        return advantages[:, self.global_rank].flatten()[: len(rewards)]

    def _as_rollout(self, experience: Experience | None, advantages: Tensor) -> Rollout:
        if experience is None:
            return Rollout.masked_row(pad_token_id(self.tokenizer)).to(self.device)
        tokens, loss_mask = experience.tokens, self.loss_mask(experience)
        return Rollout(
            prompt_ids=tokens.prompt_ids,
            prompt_mask=tokens.prompt_mask,
            completion_ids=tokens.completion_ids,
            completion_mask=tokens.completion_mask,
            loss_mask=loss_mask,
            advantages=advantages.to(loss_mask.device)[:, None].expand(loss_mask.shape),
            old_logprobs=None,
            ref_logprobs=None,
        )

    def _plan(self, rollout: Rollout, slots: Tensor, index: int) -> PlannedRollout:
        sequence_ids = (slots[:, None] * self.group_size + torch.arange(self.group_size)).flatten()
        highest = sequence_ids.max() if len(sequence_ids) else torch.tensor(-1)
        steps = plan_steps(
            rollout.lengths.cpu(),
            sequence_ids,
            num_sequences=int(self.max_over_ranks(highest)) + 1,
            num_epochs=self.num_epochs,
            num_minibatches=self.num_minibatches,
            num_micro_batches=self.trainer.accumulate_grad_batches,
            seed=stable_hash("steps", self.seed, index),
        )
        counts = torch.zeros(len(steps), 2)
        for number, micro_batches in enumerate(steps):
            rows = torch.cat(micro_batches)
            if len(rows) > 0:
                rows = rows.to(rollout.loss_mask.device)
                mask = rollout.loss_mask[rows]
                counts[number, 0] = self.loss_normalizer(mask)
                counts[number, 1] = self.learning_tokens(mask, rollout.advantages[rows])
        counts = self.sum_over_ranks(counts).cpu()
        return PlannedRollout(rollout, steps, counts[:, 0], counts[:, 1] == 0, pad_id=pad_token_id(self.tokenizer))

    def _add_old_and_reference_logprobs(self, planned: PlannedRollout) -> None:
        """Fill in what the loss compares with, and no more: a single on-policy step is its own old policy."""
        rollout, policy, reference = planned.rollout, self.policy, self.reference
        assert policy is not None
        batch_size = max(max(1, len(rows)) for step in planned.steps for rows in step)
        with evaluation_mode(policy), self.trainer.precision_plugin.forward_context():
            if self.steps_per_rollout > 1:
                rollout.old_logprobs = in_batches(
                    rollout, lambda batch: self.token_statistics(batch).logprobs, batch_size=batch_size
                )
            if reference is not None:
                rollout.ref_logprobs = in_batches(
                    rollout,
                    lambda batch: reference.logprobs(**batch.model_inputs(), temperature=self.sampling.temperature),
                    batch_size=batch_size,
                )

    def token_statistics(self, batch: Rollout, *, entropy_gradient: bool = False) -> TokenStatistics:
        """Log-probs and entropies of a batch's completions under the policy, (B, C)."""
        assert self.policy is not None
        return self.policy(
            **batch.model_inputs(), temperature=self.sampling.temperature, entropy_gradient=entropy_gradient
        )
