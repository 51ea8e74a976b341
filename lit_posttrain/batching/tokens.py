"""Token batches: prompts padded on the left, completions on the right, masks made from lengths.

prompt_ids       O O I I I      O = padding
completion_ids             R R R E O O      E = the EOS, which counts
completion_mask            1 1 1 1 0 0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(kw_only=True, eq=False)
class TokenBatch:
    """Prompts and completions of B sequences.

    Args:
        prompt_ids: (B, P), left-padded.
        prompt_mask: (B, P), True on real tokens.
        completion_ids: (B, C), right-padded.
        completion_mask: (B, C), True on sampled tokens, the EOS included.
        pack_ids: (B,), rows with the same number go through the model in one sequence; None = each by itself.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    pack_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, prompt and completion: (B,)."""
        return self.prompt_mask.sum(1) + self.completion_mask.sum(1)

    def to(self, device: torch.device | str) -> Self:
        """Make a copy on `device`; dtypes stay."""
        moved: dict[str, Any] = {n: None if tensor is None else tensor.to(device) for n, tensor in vars(self).items()}
        return type(self)(**moved)

    def select(self, rows: Tensor) -> Self:
        """The given rows, without the columns that are padding in all of them."""
        chosen: dict[str, Any] = {name: None if tensor is None else tensor[rows] for name, tensor in vars(self).items()}
        prompt_length = max(1, int(chosen["prompt_mask"].sum(1).max()))
        completion_length = max(1, int(chosen["completion_mask"].sum(1).max()))
        for name, tensor in chosen.items():
            if tensor is not None and tensor.dim() == 2:
                chosen[name] = (
                    tensor[:, -prompt_length:] if name.startswith("prompt_") else tensor[:, :completion_length]
                )
        return type(self)(**chosen)

    @classmethod
    def join(cls, batches: Sequence[Self], *, pad_id: int) -> Self:
        """The sequences of several batches in one, in their order, padded to the longest of all.

        Args:
            batches: at least one, on one device.
            pad_id: written where a narrower batch has no column; masks and numbers get 0 there.
        """
        joined: dict[str, Tensor | None] = {}
        for name in vars(batches[0]):
            tensors = [getattr(batch, name) for batch in batches]
            if tensors[0] is None:
                joined[name] = None
                continue
            width = max(tensor.shape[1] for tensor in tensors)
            fill = pad_id if name.endswith("_ids") else 0
            missing = [width - tensor.shape[1] for tensor in tensors]
            sides = [(count, 0) if name.startswith("prompt_") else (0, count) for count in missing]
            joined[name] = torch.cat(
                [functional.pad(tensor, side, value=fill) for tensor, side in zip(tensors, sides, strict=True)]
            )
        return cls(**joined)  # type: ignore[arg-type]


@dataclass(kw_only=True, eq=False)
class TrainingBatch(TokenBatch):
    """Sequences of which some completion tokens are learnt from.

    Args:
        prompt_ids: (B, P), left-padded.
        prompt_mask: (B, P).
        completion_ids: (B, C), right-padded.
        completion_mask: (B, C).
        loss_mask: (B, C), True where the loss counts; a subset of `completion_mask`.
    """

    loss_mask: Tensor


@dataclass(kw_only=True, eq=False)
class Rollout(TrainingBatch):
    """Completions with all that the loss needs; what of it is one optimiser step is a plan (`plan_steps`).

    Args:
        prompt_ids: (B, P).
        prompt_mask: (B, P).
        completion_ids: (B, C).
        completion_mask: (B, C).
        loss_mask: (B, C), True where the loss counts; a subset of `completion_mask`.
        rewards: (B,), of whole completions, what was given token by token included; NaN = not scorable.
        token_rewards: (B, C), the part of the rewards that was given token by token, 0 elsewhere.
        truncated: (B,), True where a completion has no EOS.
        advantages: (B, C).
        old_logprobs: (B, C), log-probs under the policy that sampled, None where the update is exactly on-policy.
        ref_logprobs: (B, C), log-probs under the frozen reference, None without a KL term.
        values: (B, C), what the critic expected before each token when the rollout was made; None without a critic.
        returns: (B, C), what the critic should have expected; None without one.
    """

    rewards: Tensor
    token_rewards: Tensor
    truncated: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    @classmethod
    def masked_row(cls, pad_id: int, *, like: "Rollout | None" = None) -> Self:
        """Make a row of a single token that counts for nothing, so that a rank without sequences can still take part.

        Args:
            pad_id: written as its tokens.
            like: the rollout that it joins; it gets the log-probs and values that this has.
        """
        ids, real = torch.full((1, 1), pad_id), torch.ones(1, 1, dtype=torch.bool)
        zeros = torch.zeros(1, 1) if like is None else torch.zeros(1, 1, dtype=like.advantages.dtype)
        computed = ("old_logprobs", "ref_logprobs", "values", "returns")
        return cls(
            prompt_ids=ids,
            prompt_mask=real,
            completion_ids=ids,
            completion_mask=real,
            loss_mask=~real,
            rewards=zeros[0],
            token_rewards=zeros,
            truncated=~real[0],
            advantages=zeros,
            **{name: zeros for name in computed if getattr(like, name, None) is not None},
        )


class MicroBatch:
    """What one forward and backward pass sees of an optimiser step.

    A plain object with `.to(device)` and no dataclass: Lightning casts the floats inside of those under `bf16-true`,
    which would round the stored log-probs.

    Args:
        rollout: its rows; at least one, which may be fully masked.
        normalizer: the denominator of the whole optimiser step's loss, over all micro-batches and ranks: ().
        skip_step: the optimiser is not stepped at the end of this step; the same in all its micro-batches and ranks.
    """

    def __init__(self, rollout: Rollout, normalizer: Tensor, *, skip_step: bool = False) -> None:
        self.rollout = rollout
        self.normalizer = normalizer
        self.skip_step = skip_step

    def __len__(self) -> int:
        return len(self.rollout)

    def to(self, device: torch.device | str) -> "MicroBatch":
        """A copy on `device`; dtypes stay."""
        return MicroBatch(self.rollout.to(device), self.normalizer.to(device), skip_step=self.skip_step)
