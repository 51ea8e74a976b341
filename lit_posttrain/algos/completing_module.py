"""A policy that completes prompts and is judged by it: validation and prediction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lit_posttrain.algos.policy_module import MakeOptimizer, MakeScheduler, PolicyModule, PolicySource
from lit_posttrain.batching import stable_hash
from lit_posttrain.data.prompts import PromptDataModule
from lit_posttrain.functional.random import sample_keys
from lit_posttrain.models.folders import context_length
from lit_posttrain.models.sharding import gather, release
from lit_posttrain.rewards.loading import load_function
from lit_posttrain.rewards.protocol import RewardFunction, RewardFunctions
from lit_posttrain.rollout.experience import Experience, PromptRow, check_prompt_lengths, check_rows, collect
from lit_posttrain.rollout.sampling import Sampling
from lit_posttrain.rollout.validation_scores import ValidationScores

VALIDATION_SEED = 0


class CompletingModule(PolicyModule):
    """Completes the prompts of a DataModule, greedily and by sampling, and scores the completions.

    Args:
        policy: see `PolicyModule`.
        rewards: one reward function, several, or `RewardFunctions` where they have weights; None = no rewards.
        tokenizer: see `PolicyModule`.
        scores: validation metrics by name, functions with the signature of a reward; None = those that the
            DataModule brings (its attribute `scores`).
        sampling: how completions are drawn.
        generation_batch_size: completions decoded together, a knob of memory and speed, in whole
            groups and at least one; None = all.
        val_samples: samples of each validation prompt, beside the greedy completion.
        optimizer: see `PolicyModule`.
        scheduler: see `PolicyModule`.
        logits_chunk_size: see `PolicyModule`.
    """

    def __init__(
        self,
        policy: PolicySource,
        rewards: RewardFunctions | RewardFunction | Sequence[RewardFunction] | None,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        scores: Mapping[str, Callable[..., Any]] | None,
        sampling: Sampling | Mapping[str, Any] | None,
        generation_batch_size: int | None,
        val_samples: int,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
        logits_chunk_size: int,
    ) -> None:
        super().__init__(
            policy, tokenizer=tokenizer, optimizer=optimizer, scheduler=scheduler, logits_chunk_size=logits_chunk_size
        )
        if val_samples < 1:
            raise ValueError(
                f"`val_samples` must be >= 1, got {val_samples}: it counts samples of a validation prompt."
            )
        if generation_batch_size is not None and generation_batch_size < 1:
            raise ValueError(f"`generation_batch_size` must be >= 1 or None, got {generation_batch_size}.")
        self.sampling = sampling if isinstance(sampling, Sampling) else Sampling(**(sampling or {}))
        self._rewards = rewards if rewards is None or isinstance(rewards, RewardFunctions) else RewardFunctions(rewards)
        self.generation_batch_size = generation_batch_size
        self.val_samples = val_samples
        self._given_scores = scores
        self._scores: RewardFunctions | None = None
        self._validation: ValidationScores | None = None

    @property
    def rewards(self) -> RewardFunctions:
        """What judges completions.

        Raises:
            RuntimeError: if there are no rewards.
        """
        if self._rewards is None:
            raise RuntimeError(f"{type(self).__name__} was given no rewards.")
        return self._rewards

    def setup(self, stage: str) -> None:
        """Find the scores of validation."""
        super().setup(stage)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        scores: Mapping[str, Any] = self._given_scores or {}
        if self._given_scores is None:
            scores = getattr(datamodule, "scores", {})
        functions = {name: load_function(f) if isinstance(f, str) else f for name, f in scores.items()}
        self._scores = RewardFunctions(list(functions.values())) if functions else None
        self._validation = ValidationScores(
            list(functions), num_samples=self.val_samples, with_rewards=self._rewards is not None
        )

    def check_lengths(self, datamodule: LightningDataModule, config: PreTrainedConfig) -> None:
        """As for rows to learn from, and for prompts with their completions."""
        super().check_lengths(datamodule, config)
        if isinstance(datamodule, PromptDataModule):
            context = context_length(config)
            check_prompt_lengths(datamodule, self.tokenizer, context=context, sampling=self.sampling)

    def collect(
        self, rows: Sequence[PromptRow], *, sampling: Sampling, num_samples: int, prompt_keys: Tensor, seed: int
    ) -> Experience:
        """Complete every prompt `num_samples` times; the random numbers are a function of key and seed.

        Args:
            rows: N prompts, at least one.
            sampling: how tokens are drawn.
            num_samples: completions of each prompt, G.
            prompt_keys: what tells the prompts apart, (N,) int64.
            seed: any integer.
        """
        return collect(
            self.language_model,
            self.tokenizer,
            rows,
            sampling=sampling,
            num_samples=num_samples,
            keys=sample_keys(prompt_keys, num_samples=num_samples, seed=seed),
            batch_size=self.generation_batch_size,
            forward_context=self.trainer.precision_plugin.forward_context,
        )

    def _complete(self, rows: list[PromptRow], *, sampling: Sampling, num_samples: int) -> Experience:
        """With random numbers that depend on what the prompt says alone: the same in every run and at every step."""
        check_rows(rows)
        keys = torch.tensor([stable_hash(row["prompt"]) for row in rows])
        return self.collect(rows, sampling=sampling, num_samples=num_samples, prompt_keys=keys, seed=VALIDATION_SEED)

    def validation_step(self, rows: list[PromptRow], batch_idx: int) -> None:
        """Complete prompts by sampling and, where there are scores, greedily too."""
        assert self._validation is not None
        if not rows:
            return
        if self._rewards is None and self._scores is None:
            return
        sampled = self._complete(rows, sampling=self.sampling, num_samples=self.val_samples)
        rewards = None if self._rewards is None else self.rewards.total(sampled.score(self.rewards))
        greedy_scores = sampled_scores = None
        if self._scores is not None:
            greedy = self._complete(rows, sampling=replace(self.sampling, temperature=0.0), num_samples=1)
            greedy_scores, sampled_scores = greedy.score(self._scores), sampled.score(self._scores)
        self._validation.update(rewards=rewards, greedy_scores=greedy_scores, sampled_scores=sampled_scores)

    def on_validation_epoch_start(self) -> None:
        """Have all weights where prompts will be completed, of which processes may have unequal numbers."""
        if self._rewards is not None or self._scores is not None:
            gather(self.main_network)

    def on_validation_epoch_end(self) -> None:
        """Have them sharded again."""
        release(self.main_network)
        super().on_validation_epoch_end()

    def on_predict_epoch_start(self) -> None:
        """As in validation."""
        gather(self.main_network)

    def on_predict_epoch_end(self) -> None:
        """As in validation."""
        release(self.main_network)

    def validation_metrics(self) -> dict[str, Tensor]:
        """The metrics of a validation that is over; collection begins anew."""
        assert self._validation is not None
        return self._validation.pop(self.sum_over_ranks)

    def predict_step(self, rows: list[PromptRow], batch_idx: int) -> list[dict[str, Any]]:
        """One sampled completion of each prompt: its row with `completion`, `truncated` and perhaps `reward`."""
        if not rows:
            return []
        experience = self._complete(rows, sampling=self.sampling, num_samples=1)
        columns: dict[str, list[Any]] = {"completion": experience.completions}
        if self._rewards is not None:
            columns["reward"] = self.rewards.total(experience.score(self.rewards)).tolist()
        columns["truncated"] = experience.truncated.tolist()
        return [
            {**row, **dict(zip(columns, values, strict=True))}
            for row, values in zip(rows, zip(*columns.values(), strict=True), strict=True)
        ]
