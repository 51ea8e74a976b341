"""Means over the validation prompts of all batches and ranks."""

from collections.abc import Callable, Sequence

from torch import Tensor

from lit_posttrain.batching.ranks import Means
from lit_posttrain.functional import pass_at_k


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
