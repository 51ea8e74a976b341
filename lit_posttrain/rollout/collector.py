"""From a prompt batch to a planned rollout: prompts -> completions -> rewards -> advantages."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_posttrain.batching import PlannedRollout, Ranks, Rollout, plan_steps, stable_hash
from lit_posttrain.functional import Aggregation, normalizer
from lit_posttrain.models.sharding import unsharded
from lit_posttrain.models.source import ModelSource
from lit_posttrain.models.tokenizers import pad_token_id
from lit_posttrain.models.weights import NonFiniteError
from lit_posttrain.rewards.protocol import RewardFunctions, Scores
from lit_posttrain.rollout.engine import LocalEngine, PromptRow
from lit_posttrain.rollout.metrics import RolloutRecord, ScoredCompletions
from lit_posttrain.rollout.options import Rollouts, Sampling

# A prompt's random numbers are keyed by rollout, prompt batch in the rollout (8 bits) and place in that batch (24).
PLACE_BITS = 24
MAX_RESAMPLE_BATCHES = 1 << 8


class RolloutAlgorithm(Protocol):
    """What a collector asks of an algorithm.

    Attributes:
        group_size: completions of each prompt, G.
        sampling: how they are drawn.
        aggregation: how token losses become one number.
        mask_truncated: whether completions without an EOS are left out of the loss.
        max_resample_batches: further prompt batches that may be sampled in place of groups without spread; 0 = keep
            all groups.
        main_network: the policy.
        source: the model that it came from, and its tokenizer.
        device: where it is.
    """

    group_size: int
    sampling: Sampling
    aggregation: Aggregation
    mask_truncated: bool
    max_resample_batches: int
    source: ModelSource

    @property
    def main_network(self) -> nn.Module: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def add_logprobs(self, rollout: Rollout) -> None:
        """Fill in what loss and rewards compare with."""

    def reward_shaping(self, rollout: Rollout) -> Tensor:
        """Give what is added to the reward of each sequence before it is compared, (B,)."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """Make advantages of the rewards of all ranks, (B,) to (B,); NaN = not scorable, groups contiguous."""

    def token_advantages(self, advantages: Tensor, rollout: Rollout) -> Tensor:
        """Make advantages of each token from those of this rank's sequences, (B,) to (B, C)."""

    def learning_mask(self, rollout: Rollout) -> Tensor:
        """Tell which tokens have a gradient, (B, C) bool."""


@dataclass(frozen=True)
class RolloutCollector:
    """Completes the prompts of a batch, scores the completions, and plans the optimiser steps that are made of them.

    Args:
        algorithm: what is learnt.
        rewards: what judges completions.
        engine: completes prompts.
        ranks: the processes that make the rollout together.
        rollouts: the options of rollouts, their number of epochs known.
    """

    algorithm: RolloutAlgorithm
    rewards: RewardFunctions
    engine: LocalEngine
    ranks: Ranks
    rollouts: Rollouts

    def collect(
        self,
        rows: list[PromptRow],
        *,
        index: int,
        step: int,
        micro_batches: int,
        more_rows: Callable[[], list[PromptRow]],
        metrics: RewardFunctions | None,
    ) -> tuple[PlannedRollout, RolloutRecord]:
        """Make a rollout, and the record of it.

        Args:
            rows: this rank's prompts, perhaps none.
            index: the number of the rollout in the run.
            step: optimiser steps done.
            micro_batches: of an optimiser step, on each rank.
            more_rows: gives this rank's part of a further prompt batch.
            metrics: the scores of validation: with a learned reward they show what it leaves out.

        Raises:
            NonFiniteError: if what the rewards are compared by is not finite.
        """
        algorithm = self.algorithm
        with unsharded(algorithm.main_network):  # for processes without prompts, too
            scored = self._sample(rows, index, batch=0)
            groups, numbers = torch.arange(len(rows)), scored.prompt_index
            if algorithm.max_resample_batches > 0:
                scored, groups, numbers = self._resample(scored, index, more_rows)
        started = time.perf_counter()
        learnt = scored.rows_of(groups)
        rollout = self._as_rollout(scored, learnt)
        algorithm.add_logprobs(rollout)
        count = len(learnt)  # a rank without sequences has a masked row
        shaping = self._checked("reward_shaping", algorithm.reward_shaping(rollout), rollout.rewards)[:count]
        rewards = rollout.rewards[:count] + shaping
        of_sequences = rewards.new_zeros(len(rollout))
        alone = self.ranks.place == (0, 1)
        compared = algorithm.advantages(rewards) if alone else self._compare(rewards, numbers)
        of_sequences[:count] = self._checked("advantages", compared, rewards)
        advantages = algorithm.token_advantages(of_sequences, rollout)
        self._checked("token_advantages", advantages, rollout.loss_mask)
        rollout.advantages = advantages.masked_fill(rollout.rewards.isnan()[:, None], 0)  # nobody knows how good it was
        try:
            planned = self._plan(rollout, scored.rows_of(numbers), index, micro_batches)
        except NonFiniteError as error:
            raise NonFiniteError(f"rollout {index}, at step {step}: {error}") from None

        scored = replace(scored, score_s=scored.score_s + time.perf_counter() - started)
        kept = len(groups) if algorithm.max_resample_batches > 0 else None
        return planned, self._record(rollout, scored, learnt, shaping, metrics, index=index, step=step, kept=kept)

    def _record(
        self,
        rollout: Rollout,
        scored: ScoredCompletions,
        learnt: Tensor,
        shaping: Tensor,
        metrics: RewardFunctions | None,
        *,
        index: int,
        step: int,
        kept: int | None,
    ) -> RolloutRecord:
        """Say of all completions what became of those that are learnt from."""
        mean_advantages, given_shaping = torch.zeros(2, len(scored.rewards))
        mask = rollout.completion_mask.cpu()
        means = (rollout.advantages.cpu().double() * mask).sum(1) / mask.sum(1)
        mean_advantages[learnt] = means[: len(learnt)].float()
        given_shaping[learnt] = shaping.cpu().float()
        metric_scores = torch.zeros(0, 0 if metrics is None else len(metrics.names))
        if metrics is not None and scored.completions is not None:
            metric_scores = scored.completions.score(metrics)
        return RolloutRecord(
            index=index,
            step=step,
            scored=scored,
            reward_names=self.rewards.names,
            metric_names=[] if metrics is None else metrics.names,
            metric_scores=metric_scores,
            shaping=given_shaping,
            advantages=mean_advantages,
            groups_kept=kept,
        )

    def _resample(
        self, scored: ScoredCompletions, index: int, more_rows: Callable[[], list[PromptRow]]
    ) -> tuple[ScoredCompletions, Tensor, Tensor]:
        """Complete further prompts until enough groups have spread: dynamic sampling.

        Returns:
            All that was sampled, the groups of it that are learnt from, (n,), and their numbers over all ranks, (n,).
        """
        parts = [scored]
        wanted = int(self.ranks.sum(torch.tensor(len(scored.prompt_index))))
        for batch in range(1, self.algorithm.max_resample_batches + 1):
            found = sum(int(part.spread.sum()) for part in parts)
            if int(self.ranks.sum(torch.tensor(found))) >= wanted:
                break
            parts.append(self._sample(more_rows(), index, batch=batch))
        scored = ScoredCompletions.join(parts, pad_id=pad_token_id(self.algorithm.source.tokenizer))
        return scored, *first_with_spread(scored, count=wanted, gather=self.ranks.gather)

    def _sample(self, rows: list[PromptRow], index: int, *, batch: int) -> ScoredCompletions:
        """Complete and score the prompts of a batch, the `batch`-th of the rollout."""
        algorithm, (own, ranks) = self.algorithm, self.ranks.place
        places = torch.arange(len(rows)) * ranks + own  # in the batch over all ranks
        prompt_index = places + (batch << PLACE_BITS)
        completions = None
        if rows:
            completions = self.engine.complete(
                rows,
                sampling=algorithm.sampling,
                num_samples=algorithm.group_size,
                prompt_keys=prompt_index + (index << 32),
                seed=self.rollouts.seed,
                batch_size=self.rollouts.batch_size,
            )
        started = time.perf_counter()
        scores = Scores(torch.zeros(0, len(self.rewards.names)), [])
        if completions is not None:
            scores = completions.scores(self.rewards)
        return ScoredCompletions(
            prompt_index=prompt_index,
            completions=completions,
            scores=scores.values,
            rewards=self.rewards.total(scores.values),
            token_rewards=scores.token_rewards,
            group_size=algorithm.group_size,
            score_s=time.perf_counter() - started,
        )

    def _as_rollout(self, scored: ScoredCompletions, learnt: Tensor) -> Rollout:
        """Put the given completions together, their advantages still 0; a masked row where there are none."""
        algorithm = self.algorithm
        if scored.completions is None or len(learnt) == 0:
            return Rollout.masked_row(pad_token_id(algorithm.source.tokenizer)).to(algorithm.device)
        tokens, truncated = scored.completions.tokens, scored.completions.truncated
        mask = tokens.completion_mask
        token_rewards = torch.zeros(mask.shape)
        for row, numbers in enumerate(scored.token_rewards):
            token_rewards[row, : len(numbers)] = torch.tensor(numbers)
        rollout = Rollout(
            **vars(tokens),
            loss_mask=mask & ~truncated[:, None] if algorithm.mask_truncated else mask,
            rewards=scored.rewards.to(mask.device),
            token_rewards=token_rewards.to(mask.device),
            truncated=truncated,
            advantages=torch.zeros(mask.shape, device=mask.device),
        )
        return rollout.select(learnt.to(mask.device))

    def _compare(self, rewards: Tensor, numbers: Tensor) -> Tensor:
        """Compare this rank's rewards, (B,), with those of all ranks; `numbers` of its groups, (N,)."""
        algorithm = self.algorithm
        ranks = self.ranks.gather((numbers, rewards.cpu()))
        num_groups = 1 + max((int(groups.max()) for groups, _ in ranks if len(groups)), default=-1)
        # in the order of the prompts, so that sums over all of them are those of one process to the last bit; where a
        # rank has fewer prompts than others there are gaps, and NaN counts for nothing
        everywhere = torch.full((num_groups, algorithm.group_size), torch.nan, dtype=rewards.dtype)
        for groups, given in ranks:
            everywhere[groups] = given.view(-1, algorithm.group_size)
        of_all = everywhere.flatten().to(rewards.device)
        advantages = self._checked("advantages", algorithm.advantages(of_all), of_all).view(-1, algorithm.group_size)
        return advantages[numbers.to(advantages.device)].flatten()

    def _checked(self, hook: str, given: Any, like: Tensor) -> Tensor:
        """Refuse what a hook gives where it is no tensor of the shape that it must have: it would be spread silently.

        Raises:
            TypeError: naming the class, the hook and both shapes.
        """
        if not isinstance(given, Tensor) or given.shape != like.shape:
            rule = "(B,), a number for each completion" if like.dim() == 1 else "(B, C), a number for each token"
            shown = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise TypeError(
                f"`{type(self.algorithm).__name__}.{hook}` must give a tensor of shape {rule}, here "
                f"{tuple(like.shape)}; it gave {shown}."
            )
        return given

    def _plan(self, rollout: Rollout, sequence_ids: Tensor, index: int, micro_batches: int) -> PlannedRollout:
        algorithm, options = self.algorithm, self.rollouts
        highest = sequence_ids.max() if len(sequence_ids) else torch.tensor(-1)
        steps = plan_steps(
            rollout.lengths.cpu(),
            sequence_ids,
            num_sequences=int(self.ranks.max(highest)) + 1,
            num_epochs=options.num_epochs or 1,
            num_minibatches=options.num_minibatches,
            num_micro_batches=micro_batches,
            seed=stable_hash("steps", options.seed, index),
        )
        mask, learning = rollout.loss_mask, algorithm.learning_mask(rollout)
        counts = torch.zeros(len(steps), 3)
        for number, parts in enumerate(steps):
            rows = torch.cat(parts).to(mask.device)
            if len(rows) > 0:
                counts[number, 0] = normalizer(
                    mask[rows], algorithm.aggregation, max_length=algorithm.sampling.max_new_tokens
                )
                counts[number, 1] = learning[rows].sum()
                counts[number, 2] = (mask[rows] & ~rollout.advantages[rows].isfinite()).sum()
        counts = self.ranks.sum(counts).cpu()
        if counts[:, 2].any():
            raise NonFiniteError(_not_finite(rollout, type(algorithm).__name__))
        pad_id = pad_token_id(algorithm.source.tokenizer)
        return PlannedRollout(rollout, steps, counts[:, 0], counts[:, 1] == 0, pad_id=pad_id)


def first_with_spread(
    scored: ScoredCompletions, *, count: int, gather: Callable[[list[int]], list[list[int]]]
) -> tuple[Tensor, Tensor]:
    """Choose groups with spread over all ranks, in the order of their prompts: the same on any number of ranks.

    Args:
        scored: this rank's.
        count: groups to choose, over all ranks; fewer where there are not so many.
        gather: a list of each rank.

    Returns:
        The chosen groups of this rank, (n,), and their numbers among those of all ranks, (n,).
    """
    own: list[Any] = scored.prompt_index[scored.spread].tolist()
    chosen = sorted(slot for slots in gather(own) for slot in slots)[:count]
    number = {slot: index for index, slot in enumerate(chosen)}
    groups = [group for group, slot in enumerate(scored.prompt_index.tolist()) if slot in number]
    return torch.tensor(groups, dtype=torch.long), torch.tensor(
        [number[int(scored.prompt_index[group])] for group in groups], dtype=torch.long
    )


def _not_finite(rollout: Rollout, algorithm: str) -> str:
    """Say what made the advantages of a rollout infinite or NaN."""
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
    largest = rollout.rewards.nan_to_num().abs().max().item()
    if largest**2 < torch.finfo(torch.float32).max / len(rollout):
        return (
            f"the advantages of {algorithm} are not finite, though the rewards are, none above {largest:.3g}: "
            "`advantages` or `token_advantages` divides by zero, as by the spread of rewards that are all equal."
        )
    return (
        "the advantages are not finite, though what they are made of is: the sums or squares of the rewards leave the "
        "range of 32-bit numbers. Scale the rewards down."
    )
