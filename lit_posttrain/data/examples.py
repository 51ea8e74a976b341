"""What supervised algorithms learn from, before it is tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lit_posttrain.batching import EncodedPair, EncodedRow, JudgedRow
from lit_posttrain.data.chat import Prompt
from lit_posttrain.data.encoder import Encoder

Encoded: TypeAlias = EncodedRow | EncodedPair | JudgedRow


@dataclass(frozen=True)
class Demonstration:
    """A completion to imitate.

    Attributes:
        prompt: text or messages, empty for plain text and for whole dialogues.
        completion: in the same shape.
    """

    prompt: Prompt
    completion: Prompt

    def encode(self, encoder: Encoder) -> tuple[EncodedRow, bool]:
        """As tokens, and whether the chat template left earlier turns unsupervised."""
        if not has_content(self.completion):
            raise ValueError("there is no supervised token: the completion is empty, so there is nothing to learn.")
        return encoder.encode(self.prompt, self.completion)


@dataclass(frozen=True)
class Comparison:
    """Two completions of one prompt, the first preferred by `margin`."""

    prompt: Prompt
    chosen: Prompt
    rejected: Prompt
    margin: float = 0.0

    def encode(self, encoder: Encoder) -> tuple[EncodedPair, bool]:
        """As tokens, and whether the chat template left earlier turns unsupervised."""
        chosen, first = encoder.encode(self.prompt, self.chosen)
        rejected, second = encoder.encode(self.prompt, self.rejected)
        if (chosen.prompt_ids, chosen.completion_ids) == (rejected.prompt_ids, rejected.completion_ids):
            raise ValueError("the chosen and the rejected completion are the same tokens: there is no preference.")
        return EncodedPair(chosen, rejected, self.margin), first or second


@dataclass(frozen=True)
class Judgement:
    """A completion that is desirable or not."""

    prompt: Prompt
    completion: Prompt
    label: bool

    def encode(self, encoder: Encoder) -> tuple[JudgedRow, bool]:
        """As tokens, and whether the chat template left earlier turns unsupervised."""
        row, rewritten = encoder.encode(self.prompt, self.completion)
        return JudgedRow(row, self.label), rewritten


Example: TypeAlias = Demonstration | Comparison | Judgement


def has_content(completion: Prompt) -> bool:
    """Whether there is any text of the assistant's."""
    if isinstance(completion, str):
        return bool(completion.strip())
    return any(message["content"].strip() for message in completion if message["role"] == "assistant")
