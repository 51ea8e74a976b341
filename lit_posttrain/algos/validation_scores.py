"""Means over the validation prompts of all batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_posttrain.functional import pass_at_k


class ValidationScores(nn.Module):
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
        super().__init__()
        self._score_names = list(score_names)
        self._num_samples = num_samples
        names = ["reward"] if with_rewards else []
        for score in score_names:
            names += [score, f"{score}_sampled"]
        if score_names:
            names.append("pass_at_k")
        self._means = {name: MeanMetric(nan_strategy="ignore") for name in names}
        self._metrics = nn.ModuleList(self._means.values())  # registered, so that they move to the device

    def update(self, *, rewards: Tensor | None, greedy_scores: Tensor | None, sampled_scores: Tensor | None) -> None:
        """Add the completions of N prompts.

        Args:
            rewards: of the samples, (N * G,), NaN where not scorable; None where there are no rewards.
            greedy_scores: (N, S), None where there are no scores.
            sampled_scores: (N * G, S), the samples of a prompt next to each other.
        """
        if rewards is not None:
            self._means["reward"].update(rewards)
        if greedy_scores is None or sampled_scores is None:
            return
        for index, name in enumerate(self._score_names):
            self._means[name].update(greedy_scores[:, index])
            self._means[f"{name}_sampled"].update(sampled_scores[:, index])
        correct = (sampled_scores[:, 0].view(-1, self._num_samples) > 0).sum(1)
        self._means["pass_at_k"].update(pass_at_k(self._num_samples, correct, k=self._num_samples))

    def pop(self) -> dict[str, Tensor]:
        """The means over all ranks by metric name; collection begins anew."""
        means = {f"val/{name}": metric.compute().to(torch.float32) for name, metric in self._means.items()}
        for metric in self._means.values():
            metric.reset()
        return means
