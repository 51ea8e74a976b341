"""What a rollout looked like: the record for callbacks, and its metrics over all ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_posttrain.functional import has_spread
from lit_posttrain.rollout.experience import Experience


@dataclass(frozen=True)
class RolloutRecord:
    """This rank's part of a rollout as the reward functions saw it.

    Attributes:
        index: the number of the rollout in the run.
        step: optimiser steps done when it was sampled.
        slots: the number of each of N prompts in the rollout, over all ranks, (N,).
        experience: prompts and completions, None where the rank had no prompt.
        reward_names: the F reward functions.
        scores: of each function, (B, F), NaN = None.
        rewards: their weighted sum, (B,).
        task_names: the S scores of the data, which say how good a completion is whatever it was rewarded for.
        task_scores: (B, S), NaN = None.
        penalties: what was added to the rewards before they were compared (a KL, an overlong penalty), (B,).
        advantages: (B,).
        group_size: completions of each prompt.
        groups_kept: groups that are learnt from, None where that is all of them.
        score_s: seconds that scoring and log-probs took.
    """

    index: int
    step: int
    slots: Tensor
    experience: Experience | None
    reward_names: list[str]
    scores: Tensor
    rewards: Tensor
    task_names: list[str]
    task_scores: Tensor
    penalties: Tensor
    advantages: Tensor
    group_size: int
    groups_kept: int | None
    score_s: float

    @property
    def num_tokens(self) -> int:
        """Completion tokens sampled."""
        return 0 if self.experience is None else int(self.experience.tokens.completion_mask.sum())


def rollout_metrics(
    record: RolloutRecord,
    *,
    sum_over_ranks: Callable[[Tensor], Tensor],
    max_over_ranks: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Means over the completions of all ranks, by the names of the glossary. fp32 scalars.

    A reward's mean and standard deviation are over scorable completions, NaN where there is none;
    `rollout/zero_std_frac` is the share of groups whose rewards are all equal, `rollout/unique_frac` that of distinct
    completions within their group. `rollout/kept_frac`, the share of groups that are learnt from, is there with dynamic
    sampling only.
    """
    names, sums = _sums(record)
    totals = dict(zip(names, sum_over_ranks(sums), strict=True))
    seconds = [record.experience.generate_s if record.experience else 0.0, record.score_s]
    lengths = [record.experience.tokens.completion_mask.sum(1).max().item()] if record.experience else [0.0]
    maxima = max_over_ranks(torch.tensor(seconds + lengths))

    def share(name: str, count: str) -> Tensor:
        return totals[name] / totals[count]  # NaN where there was nothing to count: not the same as a mean of 0

    def std(name: str, count: str) -> Tensor:
        return (share(f"{name}^2", count) - share(name, count) ** 2).clamp(min=0).sqrt()

    metrics = {
        **{f"rollout/{name}": share(f"task:{name}", f"judged:{name}") for name in record.task_names},
        "reward/mean": share("reward", "scored"),
        "reward/std": std("reward", "scored"),
        **{f"reward/{name}": share(f"score:{name}", f"scored:{name}") for name in record.reward_names},
        "rollout/length_mean": share("length", "completions"),
        "rollout/length_max": maxima[2],
        "rollout/truncated_frac": share("truncated", "completions"),
        "rollout/zero_std_frac": share("flat_groups", "groups"),
        "rollout/unique_frac": share("distinct", "completions"),
        "advantage/mean": share("advantage", "completions"),
        "advantage/std": std("advantage", "completions"),
        "time/generate_s": maxima[0],
        "time/score_s": maxima[1],
    }
    if record.groups_kept is not None:
        metrics["rollout/kept_frac"] = share("kept", "groups")
    return {name: value.float() for name, value in metrics.items()}


def _sums(record: RolloutRecord) -> tuple[list[str], Tensor]:
    scored = ~record.rewards.isnan()
    rewards = record.rewards.masked_fill(~scored, 0).double()
    advantages = record.advantages.cpu().double()
    sums = {
        "completions": float(len(rewards)),
        "groups": float(len(rewards) // record.group_size),
        "kept": float(record.groups_kept or 0),
        "scored": scored.sum().item(),
        "reward": rewards.sum().item(),
        "reward^2": (rewards**2).sum().item(),
        "advantage": advantages.sum().item(),
        "advantage^2": (advantages**2).sum().item(),
        "flat_groups": (~has_spread(record.rewards, group_size=record.group_size)).sum().item(),
        "length": float(record.num_tokens),
        "truncated": 0.0,
        "distinct": 0.0,
    }
    for names, scores, total, count in (
        (record.reward_names, record.scores, "score", "scored"),
        (record.task_names, record.task_scores, "task", "judged"),
    ):
        for index, name in enumerate(names):
            given = ~scores[:, index].isnan()
            sums[f"{count}:{name}"] = given.sum().item()
            sums[f"{total}:{name}"] = scores[:, index].masked_fill(~given, 0).sum().item()
    if record.experience is not None:
        texts = record.experience.texts
        sums["truncated"] = record.experience.truncated.sum().item()
        sums["distinct"] = sum(
            len(set(texts[start : start + record.group_size])) for start in range(0, len(texts), record.group_size)
        )
    return list(sums), torch.tensor(list(sums.values()), dtype=torch.float64)
