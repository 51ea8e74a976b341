"""A policy judged by what it writes: completions of validation prompts, and of prompts to predict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.batching import Means, stable_hash
from lit_posttrain.functional import pass_at_k
from lit_posttrain.rewards.loading import load_function
from lit_posttrain.rewards.protocol import RewardFunctions
from lit_posttrain.rollout.engine import Completions, LocalEngine, PromptRow
from lit_posttrain.rollout.options import Sampling, Validation

VALIDATION_SEED = 0


class PromptEvaluator:
    """Completes prompts, greedily and by sampling, and scores the completions.

    Args:
        engine: completes prompts.
        rewards: what judges completions; None = no rewards.
        sampling: how completions are drawn.
        validation: the options of validation.
        batch_size: completions decoded together where `validation` does not say; None = all.

    Attributes:
        sampling: as given.
        metrics: the scores of validation, there once `find_metrics` has been called; None = there are none.
    """

    def __init__(
        self,
        engine: LocalEngine,
        rewards: RewardFunctions | None,
        *,
        sampling: Sampling,
        validation: Validation,
        batch_size: int | None = None,
    ) -> None:
        self._engine = engine
        self._rewards = rewards
        self.sampling = sampling
        self._validation = validation
        self._batch_size = validation.batch_size or batch_size
        self.metrics: RewardFunctions | None = None
        self._scores = ValidationScores([], num_samples=validation.num_samples, with_rewards=rewards is not None)

    @property
    def judges(self) -> bool:
        """Whether there is anything to judge completions by."""
        return self._rewards is not None or self.metrics is not None

    def find_metrics(self, datamodule: Any) -> None:
        """Take the scores that were given or, where none were, those that a DataModule brings."""
        given: Mapping[str, Any] | None = self._validation.metrics
        found = getattr(datamodule, "scores", {}) if given is None else given
        functions = {name: load_function(f) if isinstance(f, str) else f for name, f in found.items()}
        self.metrics = RewardFunctions(list(functions.values())) if functions else None
        self._scores = ValidationScores(
            list(functions), num_samples=self._validation.num_samples, with_rewards=self._rewards is not None
        )

    def evaluate(self, rows: list[PromptRow]) -> None:
        """Complete prompts by sampling and, where there are scores, greedily too."""
        if not rows or not self.judges:
            return
        sampled = self._complete(rows, self.sampling, num_samples=self._validation.num_samples)
        rewards = None if self._rewards is None else self._rewards.total(sampled.score(self._rewards))
        greedy_scores = sampled_scores = None
        if self.metrics is not None:
            greedy = self._complete(rows, replace(self.sampling, temperature=0.0), num_samples=1)
            greedy_scores, sampled_scores = greedy.score(self.metrics), sampled.score(self.metrics)
        self._scores.update(rewards=rewards, greedy_scores=greedy_scores, sampled_scores=sampled_scores)

    def pop(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Give the means over all ranks by metric name; collection begins anew."""
        return self._scores.pop(sum_over_ranks)

    def predict(self, rows: list[PromptRow]) -> list[dict[str, Any]]:
        """Sample one completion of each prompt: its row with `completion`, `truncated` and perhaps `reward`."""
        if not rows:
            return []
        written = self._complete(rows, self.sampling, num_samples=1)
        columns: dict[str, list[Any]] = {"completion": written.completions}
        if self._rewards is not None:
            columns["reward"] = self._rewards.total(written.score(self._rewards)).tolist()
        columns["truncated"] = written.truncated.tolist()
        return [
            {**row, **dict(zip(columns, values, strict=True))}
            for row, values in zip(rows, zip(*columns.values(), strict=True), strict=True)
        ]

    def _complete(self, rows: list[PromptRow], sampling: Sampling, *, num_samples: int) -> Completions:
        """Draw random numbers that depend on what the prompt says alone: the same in every run and at every step."""
        # what is no row is refused by the engine, in words
        prompts = [row["prompt"] if isinstance(row, Mapping) and "prompt" in row else None for row in rows]
        return self._engine.complete(
            rows,
            sampling=sampling,
            num_samples=num_samples,
            prompt_keys=torch.tensor([stable_hash(prompt) for prompt in prompts]),
            seed=VALIDATION_SEED,
            batch_size=self._batch_size,
        )


class ValidationScores:
    """What validation reports of greedy and of sampled completions.

    `val/reward` is the mean reward of sampled completions; of each score `<name>` there is `val/<name>` (greedy) and
    `val/<name>_sampled`. `val/pass_at_k` is the chance that of k samples one has the first score, k being the number of
    samples of each prompt.

    Args:
        score_names: the scores.
        num_samples: samples of each prompt.
        with_rewards: whether there are rewards.
    """

    def __init__(self, score_names: Sequence[str], *, num_samples: int, with_rewards: bool = True) -> None:
        self._score_names = list(score_names)
        self._num_samples = num_samples
        names = ["reward"] if with_rewards else []
        for score in score_names:
            names += [score, f"{score}_sampled"]
        if score_names:
            names.append("pass_at_k")
        self._means = Means(names)

    def update(self, *, rewards: Tensor | None, greedy_scores: Tensor | None, sampled_scores: Tensor | None) -> None:
        """Add the completions of N prompts.

        Args:
            rewards: of the samples, (N * G,), NaN where not scorable; None where there are no rewards.
            greedy_scores: (N, S), None where there are no scores.
            sampled_scores: (N * G, S), the samples of a prompt next to each other.
        """
        if rewards is not None:
            self._add("reward", rewards)
        if greedy_scores is None or sampled_scores is None:
            return
        for index, name in enumerate(self._score_names):
            self._add(name, greedy_scores[:, index])
            self._add(f"{name}_sampled", sampled_scores[:, index])
        correct = (sampled_scores[:, 0].view(-1, self._num_samples) > 0).sum(1)
        self._means.update("pass_at_k", pass_at_k(self._num_samples, correct, k=self._num_samples))

    def _add(self, name: str, scores: Tensor) -> None:
        self._means.update(name, scores[~scores.isnan()])

    def pop(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The means over all ranks by metric name; collection begins anew."""
        return {f"val/{name}": mean for name, mean in self._means.pop(sum_over_ranks).items()}
