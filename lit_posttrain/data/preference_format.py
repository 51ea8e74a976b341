"""From rows as they are in a file to comparisons and judgements."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq
from typing import Any

from lit_posttrain.data.chat import Messages, Prompt
from lit_posttrain.data.columns import ChatShape, Row, Templates, as_messages, completion_of, need
from lit_posttrain.data.examples import Comparison, Judgement
from lit_posttrain.data.hh_text import is_hh_text, parse_hh_text
from lit_posttrain.data.rows import Rows

FORMATS = ("explicit", "implicit", "unpaired")
WAYS = (
    "Name other columns with `data.prompt_column=`, `data.chosen_column=`, `data.rejected_column=`, "
    "`data.completion_column=` or `data.label_column=`, build the prompt with `data.prompt_template=`, or say which "
    f"format it is with `data.format=` ({', '.join(FORMATS)})."
)
LABELS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True, kw_only=True)
class PreferenceFormat:
    """How a row becomes a comparison or a judgement; the arguments are those of `PreferenceDataModule`."""

    format: str | None = None
    prompt_column: str = "prompt"
    chosen_column: str = "chosen"
    rejected_column: str = "rejected"
    margin_column: str | None = None
    completion_column: str = "completion"
    label_column: str = "label"
    prompt_template: str | Sequence[str] | None = None
    shape: ChatShape = field(default_factory=ChatShape)

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise ValueError(f"`format` must be one of {', '.join(FORMATS)} or null, got {self.format!r}.")
        if self.prompt_template is None:
            return
        Templates(self.prompt_template)
        if self.prompt_column != "prompt" or self.format == "implicit":
            raise ValueError(
                "`prompt_template` makes the prompt: give it without `prompt_column` and not with the format implicit, "
                f"got {self.prompt_column!r} and {self.format!r}."
            )

    def guess(self, rows: Rows) -> str:
        """The format that the columns speak for."""
        found = rows.columns()
        if self.format is not None:
            return self.format
        if self.label_column in found and self.chosen_column not in found:
            return "unpaired"
        has_prompt = self.prompt_template is not None or self.prompt_column != "prompt" or "prompt" in found
        return "explicit" if has_prompt else "implicit"

    def reader(self, rows: Rows) -> Callable[[Row], Comparison | Judgement]:
        """What reads one of these rows.

        Raises:
            ValueError: if a column is missing.
        """
        guessed = self.guess(rows)
        prompt = [self.prompt_column] if self.prompt_template is None else Templates(self.prompt_template).columns()
        if guessed == "unpaired":
            need([*prompt, self.completion_column, self.label_column], rows, guessed=guessed, ways=WAYS)
            return self._judgement
        pair = [self.chosen_column, self.rejected_column, self.margin_column]
        need([*(prompt if guessed == "explicit" else []), *pair], rows, guessed=guessed, ways=WAYS)
        return self._explicit if guessed == "explicit" else self._implicit

    def _prompt(self, row: Row) -> Prompt:
        filled = None if self.prompt_template is None else Templates(self.prompt_template).fill(row)
        return self.shape.prompt(row.get(self.prompt_column) if filled is None else filled)

    def _explicit(self, row: Row) -> Comparison:
        chosen, rejected = row.get(self.chosen_column), row.get(self.rejected_column)
        if _are_whole_dialogues(chosen, rejected):  # as in UltraFeedback: the prompt is there once more
            return self._implicit(row)
        prompt = self._prompt(row)
        return self._compare(
            prompt,
            completion_of(prompt, chosen, self.chosen_column),
            completion_of(prompt, rejected, self.rejected_column),
            row,
        )

    def _implicit(self, row: Row) -> Comparison:
        values = [row.get(self.chosen_column), row.get(self.rejected_column)]
        texts = [value for value in values if isinstance(value, str)]
        if len(texts) == 1:
            raise ValueError("the chosen and the rejected dialogue must both be text or both be messages.")
        if texts and not all(is_hh_text(text) for text in texts):
            return self._texts(texts[0], texts[1], row)
        dialogues = [
            parse_hh_text(value) if isinstance(value, str) else as_messages(value, f"`{name}`")
            for value, name in zip(values, (self.chosen_column, self.rejected_column), strict=True)
        ]
        return self._dialogues(dialogues[0], dialogues[1], row)

    def _dialogues(self, chosen: Messages, rejected: Messages, row: Row) -> Comparison:
        if chosen == rejected:
            raise ValueError(f"the chosen and the rejected dialogue are the same: {reprlib.repr(chosen)}.")
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
        prompt = self.shape.with_system(chosen[:same])
        return self._compare(prompt, chosen[same:], rejected[same:], row)

    def _texts(self, chosen: str, rejected: str, row: Row) -> Comparison:
        """Split plain texts at the last white space that they share; the completions begin with it."""
        if chosen == rejected:
            raise ValueError(f"the chosen and the rejected text are the same: {reprlib.repr(chosen)}.")
        shared = chosen[: sum(takewhile(bool, map(eq, chosen, rejected)))]
        border = max((i for i, letter in enumerate(shared) if letter.isspace()), default=0)
        if not shared[:border].strip():
            raise ValueError(
                "the chosen and the rejected text have no common beginning to take for the prompt: give a column "
                f"`{self.prompt_column}`, or dialogues."
            )
        prompt = self.shape.prompt(chosen[:border])
        first, second = (completion_of(prompt, text[border:], "completion") for text in (chosen, rejected))
        return self._compare(prompt, first, second, row)

    def _compare(self, prompt: Prompt, chosen: Prompt, rejected: Prompt, row: Row) -> Comparison:
        if chosen == rejected:
            raise ValueError(
                f"the chosen and the rejected completion are the same, {reprlib.repr(chosen)}: there is no preference."
            )
        return Comparison(prompt, chosen, rejected, self._margin(row))

    def _margin(self, row: Row) -> float:
        value: Any = row.get("margin" if self.margin_column is None else self.margin_column)
        if value is None and self.margin_column is None:
            return 0.0
        try:
            margin = float(value)
        except (TypeError, ValueError):
            margin = math.nan
        if not math.isfinite(margin):
            raise ValueError(f"the margin must be a finite number, got {value!r}.")
        return margin

    def _judgement(self, row: Row) -> Judgement:
        prompt = self._prompt(row)
        value = row.get(self.label_column)
        label = LABELS.get(str(value).lower())
        if label is None:
            raise ValueError(f"`{self.label_column}` must be true or false, got {value!r}.")
        return Judgement(prompt, completion_of(prompt, row.get(self.completion_column), self.completion_column), label)


def _are_whole_dialogues(chosen: Any, rejected: Any) -> bool:
    return all(
        isinstance(value, list) and value and isinstance(value[0], dict) and value[0].get("role") != "assistant"
        for value in (chosen, rejected)
    )
