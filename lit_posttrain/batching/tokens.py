"""Token batches: prompts padded on the left, completions on the right, masks made from lengths.

prompt_ids       O O I I I      O = padding
completion_ids             R R R E O O      E = the EOS, which counts
completion_mask            1 1 1 1 0 0
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional


def pad_left(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor, padded on the left, and its mask, both (B, P)."""
    ids, mask = pad_right([row[::-1] for row in rows], pad_id=pad_id)
    return ids.flip(1), mask.flip(1)


def pad_right(rows: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor, padded on the right, and its mask, both (B, C)."""
    lengths = torch.tensor([len(row) for row in rows])
    width = max(1, int(lengths.max()))
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows])
    return ids, lengths_to_mask(lengths, width)


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """True at the first `lengths[i]` positions of row i: (B,) to (B, width)."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


class TokenBatch:
    """Prompts and completions of B sequences.

    A plain object with `.to(device)` and not a dict or a dataclass: Lightning casts the floats inside of those
    under `bf16-true`, which would round the stored log-probs.

    Args:
        prompt_ids: (B, P), left-padded.
        prompt_mask: (B, P), True on real tokens.
        completion_ids: (B, C), right-padded.
        completion_mask: (B, C), True on sampled tokens, the EOS included.
    """

    def __init__(
        self, *, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor
    ) -> None:
        self.prompt_ids = prompt_ids
        self.prompt_mask = prompt_mask
        self.completion_ids = completion_ids
        self.completion_mask = completion_mask

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sequence, prompt and completion: (B,)."""
        return self.prompt_mask.sum(1) + self.completion_mask.sum(1)

    def fields(self) -> dict[str, Tensor | None]:
        """All tensors by the name of their constructor argument."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`; dtypes stay."""
        moved = {name: None if tensor is None else tensor.to(device) for name, tensor in self.fields().items()}
        return type(self)(**moved)  # type: ignore[arg-type]

    def select(self, rows: Tensor) -> Self:
        """The given rows, without the columns that are padding in all of them."""
        chosen = {name: None if tensor is None else tensor[rows] for name, tensor in self.fields().items()}
        prompt_length = max(1, int(chosen["prompt_mask"].sum(1).max()))  # type: ignore[union-attr]
        completion_length = max(1, int(chosen["completion_mask"].sum(1).max()))  # type: ignore[union-attr]
        for name, tensor in chosen.items():
            if tensor is not None and tensor.dim() == 2:
                chosen[name] = (
                    tensor[:, -prompt_length:] if name.startswith("prompt_") else tensor[:, :completion_length]
                )
        return type(self)(**chosen)  # type: ignore[arg-type]

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


class Rollout(TokenBatch):
    """Completions with all that the loss needs; what of it is one optimiser step is a plan (`plan_steps`).

    Args:
        prompt_ids: (B, P).
        prompt_mask: (B, P).
        completion_ids: (B, C).
        completion_mask: (B, C).
        loss_mask: (B, C), True where the loss counts; a subset of `completion_mask`.
        advantages: (B, C).
        old_logprobs: (B, C), log-probs under the policy that sampled, None where the update is exactly on-policy.
        ref_logprobs: (B, C), log-probs under the frozen reference, None without a KL term.
        values: (B, C), what the critic expected before each token when the rollout was made; None without a critic.
        returns: (B, C), what the critic should have expected; None without one.
    """

    def __init__(
        self,
        *,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        completion_ids: Tensor,
        completion_mask: Tensor,
        loss_mask: Tensor,
        advantages: Tensor,
        old_logprobs: Tensor | None,
        ref_logprobs: Tensor | None,
        values: Tensor | None = None,
        returns: Tensor | None = None,
    ) -> None:
        super().__init__(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids,
            completion_mask=completion_mask,
        )
        self.loss_mask = loss_mask
        self.advantages = advantages
        self.old_logprobs = old_logprobs
        self.ref_logprobs = ref_logprobs
        self.values = values
        self.returns = returns

    @classmethod
    def masked_row(cls, pad_id: int, *, like: "Rollout | None" = None) -> Self:
        """One row of a single token that counts for nothing, so that a rank without sequences can still take part.

        Args:
            pad_id: written as its tokens.
            like: the rollout that it joins; it gets the log-probs and values that this has.
        """
        ids, real = torch.full((1, 1), pad_id), torch.ones(1, 1, dtype=torch.bool)
        zeros = torch.zeros(1, 1) if like is None else torch.zeros(1, 1, dtype=like.advantages.dtype)

        def if_any(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else zeros

        return cls(
            prompt_ids=ids,
            prompt_mask=real,
            completion_ids=ids,
            completion_mask=real,
            loss_mask=~real,
            advantages=zeros,
            old_logprobs=None if like is None else if_any(like.old_logprobs),
            ref_logprobs=None if like is None else if_any(like.ref_logprobs),
            values=None if like is None else if_any(like.values),
            returns=None if like is None else if_any(like.returns),
        )

    def model_inputs(self) -> dict[str, Tensor]:
        """What `Policy.forward` takes."""
        return {
            "prompt_ids": self.prompt_ids,
            "prompt_mask": self.prompt_mask,
            "completion_ids": self.completion_ids,
            "completion_mask": self.completion_mask,
            "loss_mask": self.loss_mask,
        }


class MicroBatch:
    """What one forward and backward pass sees of an optimiser step.

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
