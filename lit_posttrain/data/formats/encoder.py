"""What is learned from, as text and as tokens with a mask of what is supervised."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from lit_posttrain.batching import EncodedPair, EncodedRow, JudgedRow
from lit_posttrain.data.formats.chat import (
    REWRITTEN_TURNS,
    Messages,
    Piece,
    Prompt,
    encode_prompt,
    encode_text,
    render_dialogue,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LIMIT = 10**9  # transformers writes 1e30 where a tokenizer does not know its model's length


@dataclass(frozen=True)
class Encoder:
    r"""Makes tokens of rows.

    The prompt is exactly what a model is given when it is to write the completion (`encode_prompt`). The completion's
    tokens are those that the tokenizer appends to them when prompt and completion are one text. Where it would join
    the two across their border ("a " and "b" as "a", " b"), the completion is encoded by itself: the model, asked
    with the prompt, has to begin there. Only where that would not decode to the same text (a vocabulary that puts a
    space before every text) the joined tokens are taken, and the prompt ends before the first of them.

    The sequence ends with the EOS, which is supervised: it is appended where text or template have none. A text without
    a prompt starts from the BOS, or the EOS where there is no BOS.

    Args:
        tokenizer: a Hugging Face tokenizer with an EOS.
        max_length: tokens that a sequence may have; None takes what the tokenizer knows of its model.
        rewritten_turns: where a chat template rewrites earlier turns, supervise the "last" turn only, or "refuse".

    Raises:
        ValueError: if the tokenizer has no EOS or `rewritten_turns` is unknown.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    rewritten_turns: str = "last"

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no EOS token: nothing would teach a model to stop. "
                "Set it before saving the folder: `tokenizer.eos_token = ...; tokenizer.save_pretrained(folder)`."
            )
        if self.rewritten_turns not in REWRITTEN_TURNS:
            raise ValueError(
                f"`rewritten_turns` must be one of {', '.join(REWRITTEN_TURNS)}, got {self.rewritten_turns!r}."
            )

    @property
    def limit(self) -> int | None:
        """Tokens that a sequence may have, None for any number."""
        if self.max_length is not None:
            return self.max_length
        known = self.tokenizer.model_max_length
        return int(known) if known < NO_LIMIT else None

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(dict.fromkeys([*self.tokenizer.all_special_tokens, *added]))

    def encode(self, prompt: Prompt, completion: Prompt) -> tuple[EncodedRow, bool]:
        """Encode one sequence.

        Args:
            prompt: text or messages; empty where there is none.
            completion: text with a text, messages with messages; of these every assistant turn is supervised.

        Returns:
            The tokens, and whether the template rewrote earlier turns, so that only the last one is supervised.

        Raises:
            ValueError: if `render_dialogue` cannot render the messages.
        """
        if isinstance(completion, str):
            assert isinstance(prompt, str)  # the formats see to it
            start = encode_prompt(prompt, self.tokenizer)
            return self._row([Piece(prompt, False), Piece(completion, True)], start, by_template=False), False
        before: Messages = [] if isinstance(prompt, str) else prompt
        dialogue = render_dialogue(
            [*before, *completion],
            self.tokenizer,
            first=len(before),
            rewritten_turns=self.rewritten_turns,
            ends=self._ends,
        )
        by_template = self.tokenizer.chat_template is not None
        start = encode_text(dialogue.pieces[0].text, self.tokenizer, by_template=by_template)
        return self._row(dialogue.pieces, start, by_template=by_template), dialogue.rewritten

    def _row(self, pieces: Sequence[Piece], start: list[int], *, by_template: bool) -> EncodedRow:
        ids, mask = list(start), [False] * len(start)
        text = pieces[0].text
        for piece in pieces[1:]:
            text += piece.text
            kept, new = self._continue(ids, text, piece.text, by_template=by_template)
            ids = [*ids[:kept], *new]
            mask = [*mask[:kept], *([piece.supervised] * len(new))]
        if ids[-1] != self.tokenizer.eos_token_id or not mask[-1]:
            ids.append(self.tokenizer.eos_token_id)
            mask.append(True)
        border = max(1, mask.index(True))  # nothing predicts the very first token
        mask[0] = False
        # arrays, which take a tenth of the memory of lists
        return EncodedRow(array("i", ids[:border]), array("i", ids[border:]), array("b", mask[border:]))

    def _continue(self, ids: list[int], text: str, piece: str, *, by_template: bool) -> tuple[int, list[int]]:
        """How many of the tokens before a piece stay, and the tokens that follow them."""
        whole = encode_text(text, self.tokenizer, by_template=by_template)
        if whole[: len(ids)] == ids:
            return len(ids), whole[len(ids) :]
        alone = list(self.tokenizer(piece, add_special_tokens=False)["input_ids"])
        apart, unknown = [*ids, *alone], self.tokenizer.unk_token_id
        if self._text(apart) == self._text(whole) or (
            unknown is not None and whole.count(unknown) > apart.count(unknown)
        ):
            return len(ids), alone  # the same text, or two words run together to one that nobody knows
        common = next(
            (i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), min(len(ids), len(whole))
        )
        return common, whole[common:]

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


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
class Judgment:
    """A completion that is desirable or not."""

    prompt: Prompt
    completion: Prompt
    label: bool

    def encode(self, encoder: Encoder) -> tuple[JudgedRow, bool]:
        """As tokens, and whether the chat template left earlier turns unsupervised."""
        row, rewritten = encoder.encode(self.prompt, self.completion)
        return JudgedRow(row, self.label), rewritten


Example: TypeAlias = Demonstration | Comparison | Judgment


def has_content(completion: Prompt) -> bool:
    """Whether there is any text of the assistant's."""
    if isinstance(completion, str):
        return bool(completion.strip())
    return any(message["content"].strip() for message in completion if message["role"] == "assistant")
