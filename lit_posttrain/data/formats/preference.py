"""From rows as they are in a file to comparisons and judgements."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from operator import eq
from typing import Any

from lit_posttrain.data.formats.chat import Messages, Prompt
from lit_posttrain.data.formats.encoder import Comparison, Judgment
from lit_posttrain.data.formats.templates import ChatShape, Row, Value, as_messages, completion_of, need
from lit_posttrain.data.sources.rows import Rows

FORMATS = ("explicit", "implicit", "unpaired")
WAYS = (
    "Name other columns with `prompt_column`, `chosen_column`, `rejected_column`, `completion_column` or "
    "`label_column`, build the prompt with `prompt_template`, or say which format it is with `format` "
    f"({', '.join(FORMATS)})."
)
# Dialogues as HH-RLHF writes them: one text, with turns after "Human:" and "Assistant:".
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

LABELS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class PreferenceFormat:
    """How a row becomes a comparison or a judgement.

    Attributes:
        format: "explicit", "implicit" or "unpaired"; None tells it by the columns.
        prompt: of a row, unless it is the beginning that two dialogues share.
        chosen: the column that holds the better completion or dialogue.
        rejected: the column that holds the worse one.
        margin: the column that holds by how much the chosen one is better; None takes `margin` where it is there, else
            0.
        completion: the column that holds the completion of an unpaired row.
        label: the column that holds whether it is desirable.
        shape: whether texts become chats.
    """

    format: str | None = None
    prompt: Value = field(default_factory=lambda: Value("prompt"))
    chosen: str = "chosen"
    rejected: str = "rejected"
    margin: str | None = None
    completion: str = "completion"
    label: str = "label"
    shape: ChatShape = field(default_factory=ChatShape)

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise ValueError(f"`format` must be one of {', '.join(FORMATS)} or null, got {self.format!r}.")
        if self.prompt.has_template and self.format == "implicit":
            raise ValueError("`prompt_template` makes the prompt: give it not with the format implicit, which has one.")

    def guess(self, rows: Rows) -> str:
        """The format that the columns speak for."""
        if self.format is not None:
            return self.format
        found = rows.columns()
        if self.label in found and self.chosen not in found:
            return "unpaired"
        return "explicit" if self.prompt.chosen or "prompt" in found else "implicit"

    def reader(self, rows: Rows) -> Callable[[Row], Comparison | Judgment]:
        """What reads one of these rows.

        Raises:
            ValueError: if a column is missing.
        """
        format = self.guess(rows)
        margin = [] if self.margin is None else [self.margin]
        pair = [self.chosen, self.rejected, *margin]
        columns, read = {
            "explicit": ([*self.prompt.columns, *pair], self._explicit),
            "implicit": (pair, self._implicit),
            "unpaired": ([*self.prompt.columns, self.completion, self.label], self._judgment),
        }[format]
        need(columns, rows, format=format, ways=WAYS)
        return read  # type: ignore[return-value]

    def _prompt(self, row: Row) -> Prompt:
        return self.shape.prompt(self.prompt.of(row))

    def _explicit(self, row: Row) -> Comparison:
        pair = row.get(self.chosen), row.get(self.rejected)
        if all(_is_whole_dialogue(value) for value in pair):  # as in UltraFeedback: the prompt is there once more
            return self._implicit(row)
        prompt = self._prompt(row)
        chosen, rejected = map(partial(completion_of, prompt), pair, (self.chosen, self.rejected))
        return self._compare(prompt, chosen, rejected, row)

    def _implicit(self, row: Row) -> Comparison:
        pair = row.get(self.chosen), row.get(self.rejected)
        if pair[0] == pair[1]:
            raise ValueError(f"the chosen and the rejected dialogue are the same: {reprlib.repr(pair[0])}.")
        texts = [value for value in pair if isinstance(value, str)]
        if len(texts) == 1:
            raise ValueError("the chosen and the rejected dialogue must both be text or both be messages.")
        if texts and not all(is_hh_text(text) for text in texts):
            return self._texts(texts[0], texts[1], row)
        if texts:
            return self._dialogues(parse_hh_text(texts[0]), parse_hh_text(texts[1]), row)
        chosen, rejected = map(as_messages, pair, (f"`{self.chosen}`", f"`{self.rejected}`"))
        return self._dialogues(chosen, rejected, row)

    def _dialogues(self, chosen: Messages, rejected: Messages, row: Row) -> Comparison:
        same = sum(takewhile(bool, map(eq, chosen, rejected)))
        if same == 0 or same in (len(chosen), len(rejected)):
            raise ValueError(
                "the chosen and the rejected dialogue must begin alike and then answer differently, got "
                f"{len(chosen)} and {len(rejected)} messages of which {same} are the same."
            )
        if not chosen[same]["role"] == rejected[same]["role"] == "assistant":
            raise ValueError(
                f"the chosen and the rejected dialogue must part at an assistant's message, they do at message {same}, "
                f"from the {chosen[same]['role']} and the {rejected[same]['role']}."
            )
        return self._compare(self.shape.with_system(chosen[:same]), chosen[same:], rejected[same:], row)

    def _texts(self, chosen: str, rejected: str, row: Row) -> Comparison:
        """Split plain texts at the last white space that they share; the completions begin with it."""
        shared = chosen[: sum(takewhile(bool, map(eq, chosen, rejected)))]
        border = max((i for i, letter in enumerate(shared) if letter.isspace()), default=0)
        if not shared[:border].strip():
            raise ValueError(
                "the chosen and the rejected text have no common beginning to take for the prompt: give a column "
                f"`{self.prompt.column}`, or dialogues."
            )
        prompt = self.shape.prompt(shared[:border])
        first, second = (completion_of(prompt, text[border:], "completion") for text in (chosen, rejected))
        return self._compare(prompt, first, second, row)

    def _compare(self, prompt: Prompt, chosen: Prompt, rejected: Prompt, row: Row) -> Comparison:
        if chosen == rejected:
            raise ValueError(
                f"the chosen and the rejected completion are the same, {reprlib.repr(chosen)}: there is no preference."
            )
        return Comparison(prompt, chosen, rejected, self._margin(row))

    def _margin(self, row: Row) -> float:
        value: Any = row.get("margin" if self.margin is None else self.margin)
        if value is None and self.margin is None:
            return 0.0
        try:
            margin = float(value)
        except (TypeError, ValueError):
            margin = math.nan
        if not math.isfinite(margin):
            raise ValueError(f"the margin must be a finite number, got {value!r}.")
        return margin

    def _judgment(self, row: Row) -> Judgment:
        prompt = self._prompt(row)
        value = row.get(self.label)
        label = LABELS.get(str(value).lower())
        if label is None:
            raise ValueError(f"`{self.label}` must be true or false, got {value!r}.")
        return Judgment(prompt, completion_of(prompt, row.get(self.completion), self.completion), label)


def _is_whole_dialogue(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and first.get("role") != "assistant"


def is_hh_text(text: str) -> bool:
    r"""Whether a text begins with a human's turn and holds an assistant's.

    >>> is_hh_text("\n\nHuman: hi\n\nAssistant: hello"), is_hh_text("Human: hi")
    (True, False)
    """
    first = _TURN.match(text)
    return first is not None and first.group(1) == "Human" and "\n\nAssistant:" in text


def parse_hh_text(text: str) -> Messages:
    r"""The turns as messages, without the white space around them.

    >>> parse_hh_text("\n\nHuman: hi\n\nAssistant: hello")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    """
    _, *parts = _TURN.split(text)
    return [{"role": _ROLES[role], "content": said.strip()} for role, said in zip(parts[::2], parts[1::2], strict=True)]
