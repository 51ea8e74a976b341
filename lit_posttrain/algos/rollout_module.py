"""From a prompt batch to a planned rollout: prompts -> completions -> rewards -> advantages."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.completing_module import CompletingModule
from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicySource
from lit_posttrain.batching import PlannedRollout, Rollout, in_batches, plan_steps, stable_hash
from lit_posttrain.models.networks.policy import TokenStatistics
from lit_posttrain.models.networks.reference import Reference
from lit_posttrain.models.sharding import whole
from lit_posttrain.models.tokenizers import pad_token_id
from lit_posttrain.models.weights import NonFiniteError
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions, Scores
from lit_posttrain.rollout.experience import Experience, PromptRow, check_rows, evaluation_mode
from lit_posttrain.rollout.metrics import RolloutRecord, rollout_metrics
from lit_posttrain.rollout.samples import Judged, Samples, first_with_spread
from lit_posttrain.rollout.sampling import Sampling
from lit_posttrain.rollout.signal_watch import SignalWatch

# A prompt's random numbers are keyed by rollout, prompt batch in the rollout (8 bits) and place in that batch (24).
PLACE_BITS = 24
MAX_REFILLS = 1 << 8


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
        needs_reference: whether there is a KL term, so that the initial policy is kept.
        max_refills: further prompt batches that may be sampled in place of groups without spread; 0 = keep all groups.
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
        max_refills: int,
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
        if not 0 <= max_refills < MAX_REFILLS:
            raise ValueError(
                f"`max_refills` must be from 0 to {MAX_REFILLS - 1}, got {max_refills}: further prompt batches."
            )
        if self.sampling.greedy:
            raise ValueError(
                "`sampling.temperature` must be > 0 to train: greedy completions of one prompt are all equal."
            )
        self.group_size = group_size
        self.num_minibatches = num_minibatches
        self.num_epochs = num_epochs
        self.max_refills = max_refills
        self.seed = seed
        self.reference: Reference | None = None
        self.last_rollout: RolloutRecord | None = None
        self._needs_reference = needs_reference
        self.signal_watch = SignalWatch()
        self._unlogged: dict[str, Tensor] = {}

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made of one rollout."""
        return self.num_epochs * self.num_minibatches

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether anything compares with the log-probs under the policy that sampled."""
        return self.steps_per_rollout > 1

    def penalties(self, rollout: Rollout, judged: Judged) -> Tensor:
        """What is added to the reward of each sequence of this rank before it is compared, (B,); 0 by default."""
        return torch.zeros(len(rollout), device=rollout.advantages.device)

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Advantages of the rewards of all ranks, (B,) to (B,); NaN = not scorable, groups contiguous."""

    def token_advantages(self, advantages: Tensor, rollout: Rollout, judged: Judged) -> Tensor:
        """Those of each token from those of this rank's sequences, (B,) to (B, C); the same at all by default."""
        return advantages[:, None].expand(rollout.loss_mask.shape)

    def further_rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """What an algorithm reports of a rollout beside what all do, the same on all ranks."""
        return {}

    @abstractmethod
    def loss_mask(self, experience: Experience) -> Tensor:
        """Which completion tokens are learnt from, (B, C)."""

    @abstractmethod
    def loss_normalizer(self, loss_mask: Tensor) -> Tensor:
        """What these rows add to the denominator of the step's loss, (B, C) to ()."""

    @abstractmethod
    def learning_tokens(self, loss_mask: Tensor, advantages: Tensor) -> Tensor:
        """How many of these tokens have a gradient, (B, C) twice to (); a step without any is skipped."""

    def build_networks(self) -> None:
        """Load the policy, and keep it where a reference is needed: before any checkpoint is restored."""
        super().build_networks()
        if self._needs_reference and self.reference is None:
            self.reference = self.make_reference()

    def shard_networks(self, mesh: DeviceMesh) -> None:
        """Those of the reference, too."""
        super().shard_networks(mesh)
        if self.reference is not None:
            self.reference.shard(mesh, self.convert)

    def on_fit_start(self) -> None:
        """Move the reference to where the policy is."""
        super().on_fit_start()
        if self.reference is not None:
            self.reference.to(self.device, self.convert)

    def make_rollout(
        self, rows: list[PromptRow], index: int, more_rows: Callable[[], list[PromptRow]]
    ) -> PlannedRollout:
        """Complete this rank's prompts, score them and plan the optimiser steps.

        Args:
            rows: this rank's prompts, perhaps none.
            index: the number of the rollout in the run.
            more_rows: gives this rank's part of a further prompt batch.
        """
        with whole(self.main_network):  # for processes without prompts, too
            samples, groups, numbers = self._sample_groups(rows, index, more_rows)
        started = time.perf_counter()
        learnt = samples.rows_of(groups)
        rollout = self._as_rollout(samples.experience, learnt)
        self._add_old_and_reference_logprobs(rollout)
        judged = samples.judged(learnt, like=rollout)
        penalties = self.penalties(rollout, judged)[: len(learnt)]  # a rank without sequences has a masked row
        rewards = judged.rewards[: len(learnt)] + penalties
        sequence_advantages = rewards.new_zeros(len(rollout))
        sequence_advantages[: len(rewards)] = self._advantages_over_ranks(rewards, numbers)
        advantages = self.token_advantages(sequence_advantages, rollout, judged)
        rollout.advantages = advantages.masked_fill(judged.rewards.isnan()[:, None], 0)  # nobody knows how good it was
        planned = self._plan(
            rollout, (numbers[:, None] * self.group_size + torch.arange(self.group_size)).flatten(), index
        )

        mean_advantages, given_penalties = torch.zeros(2, len(samples.rewards))
        mask = rollout.completion_mask.cpu()
        means = (rollout.advantages.cpu().double() * mask).sum(1) / mask.sum(1)
        mean_advantages[learnt] = means[: len(learnt)].float()
        given_penalties[learnt] = penalties.cpu().float()
        self.last_rollout = RolloutRecord(
            index=index,
            step=self.trainer.global_step,
            slots=samples.slots,
            experience=samples.experience,
            reward_names=self.rewards.names,
            scores=samples.scores,
            rewards=samples.rewards,
            task_names=[] if self._scores is None else self._scores.names,
            task_scores=self._task_scores(samples.experience),
            penalties=given_penalties,
            advantages=mean_advantages,
            group_size=self.group_size,
            groups_kept=len(groups) if self.max_refills > 0 else None,
            score_s=samples.score_s + time.perf_counter() - started,
        )
        self._unlogged = {
            **rollout_metrics(
                self.last_rollout, sum_over_ranks=self.sum_over_ranks, max_over_ranks=self.max_over_ranks
            ),
            **self.further_rollout_metrics(rollout),
        }
        self.log_now(self._unlogged)
        if self.global_rank == 0:
            self.signal_watch.saw_rollout(self._unlogged, unknown_frac=self._unknown_frac(samples.experience))
        return planned

    def _unknown_frac(self, experience: Experience | None) -> float:
        """The share of unknown words among the tokens of the prompts, 0 where the tokenizer has no such token."""
        unknown = self.tokenizer.unk_token_id
        if experience is None or unknown in (None, self.tokenizer.eos_token_id, self.tokenizer.bos_token_id):
            return 0.0  # GPT-2's is its EOS
        tokens = experience.tokens
        return (tokens.prompt_ids == unknown)[tokens.prompt_mask].float().mean().item()

    def _sample_groups(
        self, rows: list[PromptRow], index: int, more_rows: Callable[[], list[PromptRow]]
    ) -> tuple[Samples, Tensor, Tensor]:
        """Completions of the prompts and, with dynamic sampling, of further ones until enough groups have spread.

        Returns:
            All that was sampled, the groups of it that are learnt from, (n,), and their numbers over all ranks, (n,).
        """
        parts = [self._sample(rows, index, batch=0)]
        if self.max_refills == 0:
            return parts[0], torch.arange(len(rows)), parts[0].slots
        wanted = int(self.sum_over_ranks(torch.tensor(len(rows))))
        for batch in range(1, self.max_refills + 1):
            found = sum(int(part.spread.sum()) for part in parts)
            if int(self.sum_over_ranks(torch.tensor(found))) >= wanted:
                break
            parts.append(self._sample(more_rows(), index, batch=batch))
        samples = Samples.join(parts, pad_id=pad_token_id(self.tokenizer))
        return samples, *first_with_spread(samples, count=wanted, gather=self.gather_over_ranks)

    def _sample(self, rows: list[PromptRow], index: int, *, batch: int) -> Samples:
        """Complete and score the prompts of a batch, the `batch`-th of the rollout."""
        check_rows(rows)
        places = torch.arange(len(rows)) * self.trainer.world_size + self.global_rank  # in the batch over all ranks
        slots = places + (batch << PLACE_BITS)
        experience = None
        if rows:
            keys = slots + (index << 32)
            experience = self.collect(
                rows, sampling=self.sampling, num_samples=self.group_size, prompt_keys=keys, seed=self.seed
            )
        started = time.perf_counter()
        scores = Scores(torch.zeros(0, len(self.rewards.names)), [])
        if experience is not None:
            scores = experience.judge(self.rewards)
        return Samples(
            slots=slots,
            experience=experience,
            scores=scores.values,
            rewards=self.rewards.total(scores.values),
            token_rewards=scores.token_rewards,
            group_size=self.group_size,
            score_s=time.perf_counter() - started,
        )

    def _task_scores(self, experience: Experience | None) -> Tensor:
        """The scores of the data, (B, S): with a learned reward they show what it leaves out."""
        if self._scores is None or experience is None:
            return torch.zeros(0, 0 if self._scores is None else len(self._scores.names))
        return experience.score(self._scores)

    def _advantages_over_ranks(self, rewards: Tensor, numbers: Tensor) -> Tensor:
        """Advantages of this rank's rewards, (B,), from those of all ranks; `numbers` of its groups, (N,)."""
        if self.trainer.world_size == 1:
            return self.advantages(rewards)
        ranks = self.gather_over_ranks((numbers, rewards.cpu()))
        num_groups = 1 + max((int(groups.max()) for groups, _ in ranks if len(groups)), default=-1)
        # in the order of the prompts, so that sums over all of them are those of one process to the last bit; where a
        # rank has fewer prompts than others there are gaps, and NaN counts for nothing
        everywhere = torch.full((num_groups, self.group_size), torch.nan, dtype=rewards.dtype)
        for groups, given in ranks:
            everywhere[groups] = given.view(-1, self.group_size)
        advantages = self.advantages(everywhere.flatten().to(self.device)).view(-1, self.group_size)
        return advantages[numbers.to(self.device)].flatten()

    def _as_rollout(self, experience: Experience | None, learnt: Tensor) -> Rollout:
        """The given completions, their advantages still 0; a masked row where there are none."""
        if experience is None or len(learnt) == 0:
            return Rollout.masked_row(pad_token_id(self.tokenizer)).to(self.device)
        tokens, loss_mask = experience.tokens, self.loss_mask(experience)
        return Rollout(
            prompt_ids=tokens.prompt_ids,
            prompt_mask=tokens.prompt_mask,
            completion_ids=tokens.completion_ids,
            completion_mask=tokens.completion_mask,
            loss_mask=loss_mask,
            advantages=torch.zeros(loss_mask.shape, device=loss_mask.device),
            old_logprobs=None,
            ref_logprobs=None,
        ).select(learnt.to(loss_mask.device))

    def _plan(self, rollout: Rollout, sequence_ids: Tensor, index: int) -> PlannedRollout:
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
        counts = torch.zeros(len(steps), 3)
        for number, micro_batches in enumerate(steps):
            rows = torch.cat(micro_batches)
            if len(rows) > 0:
                rows = rows.to(rollout.loss_mask.device)
                mask = rollout.loss_mask[rows]
                counts[number, 0] = self.loss_normalizer(mask)
                counts[number, 1] = self.learning_tokens(mask, rollout.advantages[rows])
                counts[number, 2] = (mask & ~rollout.advantages[rows].isfinite()).sum()
        counts = self.sum_over_ranks(counts).cpu()
        if counts[:, 2].any():
            raise NonFiniteError(f"rollout {index}, at step {self.trainer.global_step}: {_not_finite(rollout)}")
        return PlannedRollout(rollout, steps, counts[:, 0], counts[:, 1] == 0, pad_id=pad_token_id(self.tokenizer))

    def _add_old_and_reference_logprobs(self, rollout: Rollout) -> None:
        """Fill in what loss and rewards compare with, and no more: a single on-policy step is its own old policy."""
        reference, batch_size = self.reference, self.rows_at_once(rollout)
        if self.needs_old_logprobs:
            with self.inference(*self.trained_networks()):
                rollout.old_logprobs = in_batches(
                    rollout, lambda batch: self.token_statistics(batch).logprobs, batch_size=batch_size
                )
        if reference is not None:
            with self.inference(reference.policy):
                rollout.ref_logprobs = in_batches(
                    rollout,
                    lambda batch: reference.logprobs(**batch.model_inputs(), temperature=self.sampling.temperature),
                    batch_size=batch_size,
                )

    @contextmanager
    def inference(self, *networks: nn.Module) -> Iterator[None]:
        """Inside, networks compute in batches that are this process's own: without gradients, with all weights."""
        with whole(*networks), evaluation_mode(*networks), self.trainer.precision_plugin.forward_context():
            yield

    def rows_at_once(self, rollout: Rollout) -> int:
        """Sequences of a rollout that go through a model together without gradients: as many as in a micro-batch."""
        return max(1, -(-len(rollout) // (self.num_minibatches * self.trainer.accumulate_grad_batches)))

    def whiten_over_ranks(self, values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
        """Variance 1, and mean 0 if asked for, over what counts on all ranks: as `functional.whiten` of one rank.

        Args:
            values: (B, C).
            mask: (B, C).
            shift_mean: move the mean to 0.
        """
        highest = self.max_over_ranks(values.masked_fill(~mask, -torch.inf).max())
        values = (values - highest).masked_fill(~mask, 0)  # equal values are exact zeros then, and so is their mean
        count, total = self.sum_over_ranks(torch.stack([mask.sum().to(values.dtype), values.sum()]))
        centred = (values - total / count.clamp(min=1)).masked_fill(~mask, 0)
        variance = self.sum_over_ranks(centred.square().sum()) / count.clamp(min=1)
        whitened = centred / (variance + 1e-8).sqrt()
        return whitened if shift_mean else (whitened + highest + total / count.clamp(min=1)).masked_fill(~mask, 0)

    def token_statistics(self, batch: Rollout, *, entropy_gradient: bool = False) -> TokenStatistics:
        """Log-probs and entropies of a batch's completions under the policy, (B, C)."""
        assert self.policy is not None
        return self.policy(
            **batch.model_inputs(), temperature=self.sampling.temperature, entropy_gradient=entropy_gradient
        )


def _not_finite(rollout: Rollout) -> str:
    """What made the advantages of a rollout infinite or NaN, in words."""
    computed = {
        "log-probs of the policy": rollout.old_logprobs,
        "log-probs of the reference": rollout.ref_logprobs,
        "values of the critic": rollout.values,
    }
    for name, values in computed.items():
        if values is not None and not values[rollout.loss_mask].isfinite().all():
            return (
                f"the {name} are not finite, though the weights are: they have grown too large. Go on from an earlier "
                "checkpoint with a lower learning rate."
            )
    return (
        "the advantages are not finite, though what they are made of is: the sums or squares of the rewards leave the "
        "range of 32-bit numbers. Scale the rewards down."
    )
