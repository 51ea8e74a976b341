"""From rows as they are in a file to demonstrations."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lit_posttrain.data.columns import ChatShape, Row, Templates, as_messages, completion_of, need
from lit_posttrain.data.examples import Demonstration
from lit_posttrain.data.rows import Rows

FORMATS = ("text", "prompt_completion", "messages")
WAYS = (
    "Name other columns with `data.prompt_column=`, `data.completion_column=`, `data.messages_column=` or "
    "`data.text_column=`, build the prompt with `data.prompt_template=`, or say which format it is with "
    f"`data.format=` ({', '.join(FORMATS)})."
)


@dataclass(frozen=True, kw_only=True)
class InstructFormat:
    """How a row becomes a demonstration; the arguments are those of `InstructDataModule`."""

    format: str | None = None
    prompt_column: str = "prompt"
    completion_column: str = "completion"
    messages_column: str = "messages"
    text_column: str = "text"
    prompt_template: str | Sequence[str] | None = None
    completion_template: str | None = None
    shape: ChatShape = field(default_factory=ChatShape)

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise ValueError(f"`format` must be one of {', '.join(FORMATS)} or null, got {self.format!r}.")
        if self.completion_template is not None:
            Templates(self.completion_template, "completion_template")
            if self.completion_column != "completion" or self.format in ("text", "messages"):
                raise ValueError(
                    "`completion_template` makes the completion of the format prompt_completion: give it without "
                    f"`completion_column`, got {self.completion_column!r} and the format {self.format!r}."
                )
        if self.prompt_template is None:
            return
        Templates(self.prompt_template)
        if self.prompt_column != "prompt" or self.format in ("text", "messages"):
            raise ValueError(
                "`prompt_template` makes the prompt of the format prompt_completion: give it without `prompt_column`, "
                f"got {self.prompt_column!r} and the format {self.format!r}."
            )

    def guess(self, rows: Rows) -> str:
        """The format that the columns speak for."""
        if self.format is not None:
            return self.format
        found = rows.columns()
        if self.prompt_template or self.completion_template or self.prompt_column != "prompt":
            return "prompt_completion"
        if self.messages_column in found:
            return "messages"
        both = self.prompt_column in found or self.completion_column in found
        return "text" if self.text_column in found and not both else "prompt_completion"

    def reader(self, rows: Rows) -> Callable[[Row], Demonstration]:
        """What reads one of these rows.

        Raises:
            ValueError: if a column is missing.
        """
        guessed = self.guess(rows)
        if guessed == "messages":
            need([self.messages_column], rows, guessed=guessed, ways=WAYS)
            return self._from_messages
        if guessed == "text":
            need([self.text_column], rows, guessed=guessed, ways=WAYS)
            return self._from_text
        prompt = [self.prompt_column] if self.prompt_template is None else Templates(self.prompt_template).columns()
        completion = [self.completion_column]
        if self.completion_template is not None:
            completion = Templates(self.completion_template).columns()
        need([*prompt, *completion], rows, guessed=guessed, ways=WAYS)
        return self._from_pair

    def _from_text(self, row: Row) -> Demonstration:
        text = row.get(self.text_column)
        if not isinstance(text, str):
            raise ValueError(f"`{self.text_column}` must be text, got {reprlib.repr(text)}.")
        return Demonstration("", text)

    def _from_messages(self, row: Row) -> Demonstration:
        messages = as_messages(row.get(self.messages_column), f"`{self.messages_column}`")
        return Demonstration([], self.shape.with_system(messages))

    def _from_pair(self, row: Row) -> Demonstration:
        value = (
            row.get(self.prompt_column) if self.prompt_template is None else Templates(self.prompt_template).fill(row)
        )
        prompt = self.shape.prompt(value)
        completion = row.get(self.completion_column)
        if self.completion_template is not None:
            completion = Templates(self.completion_template, "completion_template").fill(row)
        return Demonstration(prompt, completion_of(prompt, completion, self.completion_column))
