"""The base of the algorithms that learn from their own completions: rollouts as the training data of Lightning."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from lit_posttrain.batching import MicroBatch, PlannedRollout, Rollout, in_batches
from lit_posttrain.data.loaders import PromptLoader
from lit_posttrain.functional import Aggregation, KLEstimator, PolicyLoss, aggregate, kl_estimate
from lit_posttrain.models.networks.policy import TokenStatistics, evaluation_mode
from lit_posttrain.models.sharding import unsharded
from lit_posttrain.models.source import Model, ModelSource
from lit_posttrain.models.tokenizers import unknown_share
from lit_posttrain.modules.attachment import without_repeats
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler, PostTrainingModule
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.collector import RolloutCollector
from lit_posttrain.rollout.engine import LocalEngine, PromptRow
from lit_posttrain.rollout.evaluator import PromptEvaluator
from lit_posttrain.rollout.loader import RolloutLoader
from lit_posttrain.rollout.metrics import RolloutRecord, SignalWatch, rollout_metrics
from lit_posttrain.rollout.options import Rollouts, Sampling, Validation, as_mapping, check_count, options

Rewards = RewardFunctions | RewardFunction | Sequence[RewardFunction]


@dataclass(frozen=True)
class TokenLossInputs:
    """What the loss of a token is made of, (B, C) each.

    Attributes:
        logprobs: under the policy, with a gradient, nats.
        old_logprobs: under the policy that sampled; equal values without a gradient where the step is exactly
            on-policy.
        ref_logprobs: under the reference; None where none is kept.
        entropy: of the policy at each token, nats; with a gradient if `entropy_coef` > 0.
        advantages: how much better the token was than expected, 0 where nobody knows.
        mask: True where the loss counts.
        values: what the critic expects before each token, with a gradient; None without a critic.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    entropy: Tensor
    advantages: Tensor
    mask: Tensor
    values: Tensor | None = None


class OnlineModule(PostTrainingModule):
    """Learns from rollouts: an algorithm is a subclass with `advantages` and `token_loss`.

    While fitting, whatever training dataloader there is gets wrapped in a `RolloutLoader`, which asks `make_rollout`
    for a rollout of every prompt batch; `loss` is a function of a part of it.

    Args:
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one. What is not built is loaded in `configure_model`, after all arguments have been checked.
        rewards: one reward function `reward(prompts, completions, **columns) -> list[float | None]`, several, or
            `RewardFunctions` where they have weights.
        group_size: completions of each prompt in a rollout, G.
        sampling: how completions are drawn, in rollouts and in sampled validation.
        rollouts: how a rollout is made and used.
        validation: how the policy is judged in validation.
        optimizer: makes the optimiser from the parameters; None = the algorithm's default.
        scheduler: makes the schedule from the optimiser; None = the algorithm's default.

    Attributes:
        aggregation: how token losses become one number (`functional.aggregate`).
        mask_truncated: leave completions out of the loss that were cut off at the longest length.
        max_resample_batches: further prompt batches that may be sampled in place of groups whose rewards are all equal;
            0 = keep all groups.
        entropy_coef: whether `token_loss` needs a gradient of the entropy: > 0 if so.
        kl_coef: whether there is a KL term, so that the initial policy is kept: > 0 if so.
        kl_value: the estimator of `policy/kl_ref`.
        num_epochs: passes over a rollout where the options of rollouts do not say.
        last_rollout: the record of the current rollout, for callbacks.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if options are given as something else than an object of theirs or a mapping.
    """

    progress_bar: tuple[str, ...] = (
        "reward/mean",
        "rollout/length_mean",
        "policy/kl_ref",
    )  # the loss is no measure of progress
    aggregation: Aggregation = "token"
    mask_truncated: bool = False
    max_resample_batches: int = 0
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl_value: KLEstimator = "k3"
    num_epochs: int = 1
    evaluator: PromptEvaluator

    def __init__(
        self,
        policy: Model,
        rewards: Rewards,
        *,
        group_size: int,
        sampling: Sampling | Mapping[str, Any] | None = None,
        rollouts: Rollouts | Mapping[str, Any] | None = None,
        validation: Validation | Mapping[str, Any] | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(ModelSource(policy, argument="policy"), optimizer=optimizer, scheduler=scheduler)
        check_count("group_size", group_size)
        self.group_size = group_size
        self.sampling = options(Sampling, sampling, argument="sampling")
        self.rollouts = options(Rollouts, rollouts, argument="rollouts")
        judged = options(Validation, validation, argument="validation")
        if self.sampling.greedy:
            raise ValueError(
                "`sampling.temperature` must be > 0 to train: greedy completions of one prompt are all equal."
            )
        chosen = {"sampling": self.sampling, "rollouts": self.rollouts, "validation": judged}
        self.save_hyperparameters(ignore=[*self.unsaved, *chosen])
        self.save_hyperparameters({name: as_mapping(each) for name, each in chosen.items()})
        if self.rollouts.num_epochs is None:
            self.rollouts = replace(self.rollouts, num_epochs=self.num_epochs)
        self.rewards = rewards if isinstance(rewards, RewardFunctions) else RewardFunctions(rewards)
        engine = LocalEngine(self)
        self.evaluator = PromptEvaluator(
            engine, self.rewards, sampling=self.sampling, validation=judged, batch_size=self.rollouts.batch_size
        )
        self.collector = RolloutCollector(self, self.rewards, engine=engine, ranks=self.ranks, rollouts=self.rollouts)
        self.signal_watch = SignalWatch()
        self.states["signal_watch"] = self.signal_watch
        self.last_rollout: RolloutRecord | None = None
        self._unlogged: dict[str, Tensor] = {}
        self._skip_step = False

    # What an algorithm is: the first two, and where it needs them the others.

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """Make advantages of the rewards of all ranks, (B,) to (B,).

        The completions of a prompt are next to each other; NaN = not scorable, or nothing there, and 0 is a good answer
        for it.
        """

    @abstractmethod
    def token_loss(self, inputs: TokenLossInputs) -> PolicyLoss:
        """Compute the loss of each token and where it was clipped, (B, C) each."""

    def reward_shaping(self, rollout: Rollout) -> Tensor:
        """Give what is added to the reward of each sequence of this rank before it is compared, (B,); 0 by default."""
        return torch.zeros_like(rollout.rewards)

    def token_advantages(self, advantages: Tensor, rollout: Rollout) -> Tensor:
        """Make advantages of each token from those of this rank's sequences, (B,) to (B, C); equal by default."""
        return advantages[:, None].expand(rollout.loss_mask.shape)

    def learning_mask(self, rollout: Rollout) -> Tensor:
        """Tell which tokens have a gradient, (B, C): those with an advantage. A step without any is skipped."""
        return rollout.loss_mask & (rollout.advantages != 0)

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether anything compares with the log-probs under the policy that sampled."""
        return (self.rollouts.num_epochs or 1) * self.rollouts.num_minibatches > 1

    def rollout_metrics(self, rollout: Rollout) -> dict[str, Tensor]:
        """Report of a rollout what others do not, the same on all ranks; nothing by default."""
        return {}

    # Rollouts.

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that are made of one rollout."""
        return (self.rollouts.num_epochs or 1) * self.rollouts.num_minibatches

    @property
    def keeps_reference(self) -> bool:
        """Whether there is a KL term, so that the initial policy is kept."""
        return self.kl_coef > 0

    def setup(self, stage: str) -> None:
        """Refuse what would cut rollouts into unequal numbers of micro-batches."""
        super().setup(stage)
        if any(isinstance(c, GradientAccumulationScheduler) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "GradientAccumulationScheduler does not work with rollouts: how they are cut into micro-batches is "
                "fixed at the start. Use `accumulate_grad_batches`."
            )

    def make_training_loader(self, loader: Any) -> RolloutLoader:
        """Make rollouts of the prompts that a loader gives, of which every one comes once in a pass."""
        if isinstance(loader, PromptLoader):  # made without the Trainer, it has not heard of other processes
            loader = loader.shared_out(rank=self.global_rank, world_size=self.trainer.world_size)
        return RolloutLoader(without_repeats(loader), self, self.trainer)

    def make_rollout(
        self, rows: list[PromptRow], index: int, more_rows: Callable[[], list[PromptRow]]
    ) -> PlannedRollout:
        """Complete this rank's prompts, score them and plan the optimiser steps.

        Args:
            rows: this rank's prompts, perhaps none.
            index: the number of the rollout in the run.
            more_rows: gives this rank's part of a further prompt batch.
        """
        planned, record = self.collector.collect(
            rows,
            index=index,
            step=self.trainer.global_step,
            micro_batches=self.trainer.accumulate_grad_batches,
            more_rows=more_rows,
            metrics=self.evaluator.metrics,
        )
        self.last_rollout = record
        self._unlogged = {**rollout_metrics(record, self.ranks), **self.rollout_metrics(planned.rollout)}
        self.log_now(self._unlogged)
        if self.global_rank == 0:
            unknown = 0.0
            if (written := record.scored.completions) is not None:
                unknown = unknown_share(written.tokens.prompt_ids, written.tokens.prompt_mask, self.source.tokenizer)
            self.signal_watch.saw_rollout(self._unlogged, unknown_frac=unknown)
        return planned

    def add_logprobs(self, rollout: Rollout) -> None:
        """Fill in what loss and rewards compare with, and no more: a single on-policy step is its own old policy."""
        if self.needs_old_logprobs:
            rollout.old_logprobs = self.infer(
                rollout, lambda batch: self.token_statistics(batch).logprobs, *self.trained_networks()
            )
        if (reference := self.reference) is not None:
            temperature = self.sampling.temperature
            rollout.ref_logprobs = self.infer(
                rollout, lambda batch: reference.logprobs(batch, temperature=temperature), reference.policy
            )

    def infer(self, rollout: Rollout, values_of: Callable[[Rollout], Tensor], *networks: nn.Module) -> Tensor:
        """Compute a value for every completion token without gradients, as many rows at once as in a micro-batch.

        Args:
            rollout: B sequences.
            values_of: from a part of the rollout to (b, c <= C).
            networks: what it runs; they are whole meanwhile, so that each process has its own number of batches.

        Returns:
            (B, C).
        """
        parts = self.rollouts.num_minibatches * self.trainer.accumulate_grad_batches
        with unsharded(*networks), evaluation_mode(*networks), self.forward_context():
            return in_batches(rollout, values_of, batch_size=max(1, -(-len(rollout) // parts)))

    # The loss.

    def token_statistics(self, batch: Rollout) -> TokenStatistics:
        """Compute log-probs and entropies of a batch's completions under the policy, (B, C)."""
        assert self.policy is not None
        return self.policy(batch, temperature=self.sampling.temperature, entropy_gradient=self.entropy_coef > 0)

    def loss_inputs(self, rollout: Rollout) -> TokenLossInputs:
        """Run the policy, and put together what the loss of a token is made of."""
        statistics = self.token_statistics(rollout)
        on_policy = rollout.old_logprobs is None
        return TokenLossInputs(
            logprobs=statistics.logprobs,
            old_logprobs=statistics.logprobs.detach() if on_policy else rollout.old_logprobs,  # type: ignore[arg-type]
            ref_logprobs=rollout.ref_logprobs,
            entropy=statistics.entropy,
            advantages=rollout.advantages,
            mask=rollout.loss_mask,
            values=statistics.values,
        )

    def loss(self, batch: MicroBatch) -> Tensor:
        """Compute this micro-batch's share of the optimiser step's loss: ()."""
        return self.policy_loss(self.loss_inputs(batch.rollout), batch)

    def policy_loss(self, inputs: TokenLossInputs, batch: MicroBatch) -> Tensor:
        """Reduce the losses of tokens to this micro-batch's share, (), and add up what is reported of them."""
        given = self.token_loss(inputs)
        if not (isinstance(given, tuple) and [each.shape for each in given] == [inputs.mask.shape] * 2):
            raise TypeError(
                f"`{type(self).__name__}.token_loss` must give a `PolicyLoss` of two tensors of shape (B, C), here "
                f"{tuple(inputs.mask.shape)}: the loss of each token and where it was clipped."
            )
        token_loss, clipped = given
        mask, old_logprobs, logprobs = inputs.mask, inputs.old_logprobs, inputs.logprobs
        self.statistics.add("tokens", mask)
        self.statistics.add("sequences", mask.any(1))
        self.statistics.add("clipped", clipped, mask)
        self.statistics.add("entropy", inputs.entropy, mask)
        self.statistics.add("approx_kl", kl_estimate(old_logprobs, logprobs, estimator="k3"), mask)
        self.statistics.maximum("ratio", (logprobs - old_logprobs).detach().exp(), mask)
        if inputs.ref_logprobs is not None:
            self.statistics.add("kl_ref", kl_estimate(logprobs, inputs.ref_logprobs, estimator=self.kl_value), mask)
        longest = self.sampling.max_new_tokens
        return aggregate(token_loss, mask, self.aggregation, normalizer=batch.normalizer, max_length=longest)

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take means over the tokens of an optimiser step."""
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

    # Steps.

    def on_train_batch_start(self, batch: MicroBatch, batch_idx: int) -> None:
        """Show a new rollout's metrics to callbacks and progress bar; the loggers have them already."""
        self._skip_step = batch.skip_step
        for name, value in self._unlogged.items():
            self.log(name, value, logger=False, prog_bar=name in self.progress_bar, batch_size=1)
        self._unlogged = {}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, unless there was nothing to learn: AdamW would move the weights on a zero gradient too."""
        if not self._skip_step:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif optimizer_closure is not None:
            optimizer_closure()
            self.check_step()
            self.signal_watch.skipped_step()

    def on_train_end(self) -> None:
        """Say what was wrong with the rollouts, if anything was."""
        super().on_train_end()
        if self.global_rank == 0:
            self.signal_watch.say_at_the_end(self.trainer.global_step)
