"""The metrics of a rollout over all ranks, and whether rollouts have anything to learn from."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.batching import Ranks
from lit_posttrain.rollout.engine import Completions
from lit_posttrain.rollout.records import RolloutRecord

log = logging.getLogger(__name__)

MOSTLY_UNKNOWN = 0.5  # of the prompts' tokens


def rollout_metrics(record: RolloutRecord, ranks: Ranks) -> dict[str, Tensor]:
    """Take means over the completions of all ranks, by the names of the glossary. fp32 scalars.

    A reward's mean and standard deviation are over scorable completions, NaN where there is none;
    `rollout/zero_std_frac` is the share of groups whose rewards are all equal, `rollout/unique_frac` that of distinct
    completions within their group. `rollout/kept_frac`, the share of groups that are learnt from, is there with dynamic
    sampling only.
    """
    written = record.scored.completions
    names, sums = _sums(record)
    totals = dict(zip(names, ranks.sum(sums), strict=True))
    seconds = [written.generate_s if written else 0.0, record.scored.score_s]
    lengths = [written.tokens.completion_mask.sum(1).max().item()] if written else [0.0]
    maxima = ranks.max(torch.tensor(seconds + lengths))

    def share(name: str, count: str) -> Tensor:
        return totals[name] / totals[count]  # NaN where there was nothing to count: not the same as a mean of 0

    def std(name: str, count: str) -> Tensor:
        return (share(f"{name}^2", count) - share(name, count) ** 2).clamp(min=0).sqrt()

    metrics = {
        **{f"rollout/{name}": share(f"task:{name}", f"judged:{name}") for name in record.metric_names},
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
    group_size, written = record.scored.group_size, record.scored.completions
    scored = ~record.scored.rewards.isnan()
    rewards = record.scored.rewards.masked_fill(~scored, 0).double()
    advantages = record.advantages.cpu().double()
    sums = {
        "completions": float(len(rewards)),
        "groups": float(len(rewards) // group_size),
        "kept": float(record.groups_kept or 0),
        "scored": scored.sum().item(),
        "reward": rewards.sum().item(),
        "reward^2": (rewards**2).sum().item(),
        "advantage": advantages.sum().item(),
        "advantage^2": (advantages**2).sum().item(),
        "flat_groups": (~record.scored.spread).sum().item(),
        "length": float(record.num_tokens),
        "truncated": 0.0,
        "distinct": 0.0,
    }
    for names, scores, total, count in (
        (record.reward_names, record.scored.scores, "score", "scored"),
        (record.metric_names, record.metric_scores, "task", "judged"),
    ):
        for index, name in enumerate(names):
            given = ~scores[:, index].isnan()
            sums[f"{count}:{name}"] = given.sum().item()
            sums[f"{total}:{name}"] = scores[:, index].masked_fill(~given, 0).sum().item()
    if written is not None:
        texts = written.texts
        sums["truncated"] = written.truncated.sum().item()
        sums["distinct"] = sum(
            len(set(texts[start : start + group_size])) for start in range(0, len(texts), group_size)
        )
    return list(sums), torch.tensor(list(sums.values()), dtype=torch.float64)


class SignalWatch:
    """Counts rollouts without a signal, and optimiser steps in which nothing was learnt.

    A warning comes with the first of them, and then when their number has doubled.
    """

    def __init__(self) -> None:
        self._rollouts = 0
        self._flat = 0  # rollouts whose rewards say nothing
        self._unknown = 0  # rollouts whose prompts are mostly unknown words
        self._idle_steps = 0
        self._reason = ""

    def saw_rollout(self, metrics: Mapping[str, Tensor], *, unknown_frac: float) -> None:
        """Look at a rollout.

        Args:
            metrics: of it, over all ranks.
            unknown_frac: share of unknown words among the tokens of the prompts.
        """
        self._rollouts += 1
        reason = _why_flat(metrics)
        if reason:
            self._flat, self._reason = self._flat + 1, reason
            if _is_power_of_two(self._flat):
                log.warning("%s (in %s of %s rollouts so far)", reason, self._flat, self._rollouts)
        if unknown_frac > MOSTLY_UNKNOWN:
            self._unknown += 1
            if self._unknown == 1:
                log.warning(
                    "%.0f %% of the prompts' tokens are words that the tokenizer does not know", 100 * unknown_frac
                )

    def skipped_step(self) -> None:
        """Count a step in which nothing was learnt."""
        self._idle_steps += 1

    def say_at_the_end(self, steps: int) -> None:
        """Sum up what was wrong, if anything was.

        Args:
            steps: optimiser steps of the run.
        """
        if self._idle_steps:
            reason = self._reason or "no token had an advantage"
            log.warning("nothing was learnt in %s of %s steps: %s", self._idle_steps, steps, reason)
        elif self._flat:
            log.warning("%s in %s of %s rollouts", self._reason, self._flat, self._rollouts)
        if self._unknown:
            log.warning("most tokens of the prompts were unknown in %s of %s rollouts", self._unknown, self._rollouts)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        vars(self).update(state)


def _why_flat(metrics: Mapping[str, Tensor]) -> str:
    if metrics["reward/mean"].isnan():
        return "no completion could be scored: the reward functions returned None for all of them"
    if metrics["rollout/zero_std_frac"] == 1 and metrics["reward/std"] > 0:
        return "all completions of a prompt had the same reward"
    return "all completions had the same reward" if metrics["reward/std"] == 0 else ""


def _is_power_of_two(number: int) -> bool:
    return math.log2(number).is_integer()


def unknown_frac(completions: Completions | None, tokenizer: PreTrainedTokenizerBase) -> float:
    """Find the share of unknown words among the tokens of prompts, 0 where the tokenizer has no such token."""
    unknown = tokenizer.unk_token_id
    if completions is None or unknown in (None, tokenizer.eos_token_id, tokenizer.bos_token_id):
        return 0.0  # GPT-2's is its EOS
    tokens = completions.tokens
    return (tokens.prompt_ids == unknown)[tokens.prompt_mask].float().mean().item()
