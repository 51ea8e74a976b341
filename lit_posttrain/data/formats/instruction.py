"""From rows as they are in a file to demonstrations."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field

from lit_posttrain.data.formats.encoder import Demonstration
from lit_posttrain.data.formats.templates import ChatShape, Row, Value, as_messages, completion_of, need
from lit_posttrain.data.sources.rows import Rows

FORMATS = ("text", "prompt_completion", "messages")
WAYS = (
    "Name other columns with `prompt_column`, `completion_column`, `messages_column` or `text_column`, build the "
    f"prompt with `prompt_template`, or say which format it is with `format` ({', '.join(FORMATS)})."
)


@dataclass(frozen=True, kw_only=True)
class InstructFormat:
    """How a row becomes a demonstration.

    Attributes:
        format: "text", "prompt_completion" or "messages"; None tells it by the columns.
        prompt: of a row.
        completion: of a row.
        messages: the column that holds a whole chat.
        text: the column that holds plain text.
        shape: whether texts become chats.
    """

    format: str | None = None
    prompt: Value = field(default_factory=lambda: Value("prompt"))
    completion: Value = field(default_factory=lambda: Value("completion"))
    messages: str = "messages"
    text: str = "text"
    shape: ChatShape = field(default_factory=ChatShape)

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise ValueError(f"`format` must be one of {', '.join(FORMATS)} or null, got {self.format!r}.")
        for value in (self.prompt, self.completion):
            if value.has_template and self.format in ("text", "messages"):
                raise ValueError(f"`{value.argument}` is for the format prompt_completion, got {self.format!r}.")

    def guess(self, rows: Rows) -> str:
        """The format that the columns speak for."""
        if self.format is not None:
            return self.format
        if self.prompt.chosen or self.completion.has_template:
            return "prompt_completion"
        found = rows.columns()
        if self.messages in found:
            return "messages"
        both = self.prompt.column in found or self.completion.column in found
        return "text" if self.text in found and not both else "prompt_completion"

    def reader(self, rows: Rows) -> Callable[[Row], Demonstration]:
        """What reads one of these rows.

        Raises:
            ValueError: if a column is missing.
        """
        format = self.guess(rows)
        columns, read = {
            "text": ([self.text], self._from_text),
            "messages": ([self.messages], self._from_messages),
            "prompt_completion": ([*self.prompt.columns, *self.completion.columns], self._from_pair),
        }[format]
        need(columns, rows, format=format, ways=WAYS)
        return read

    def _from_text(self, row: Row) -> Demonstration:
        text = row.get(self.text)
        if not isinstance(text, str):
            raise ValueError(f"`{self.text}` must be text, got {reprlib.repr(text)}.")
        return Demonstration("", text)

    def _from_messages(self, row: Row) -> Demonstration:
        messages = as_messages(row.get(self.messages), f"`{self.messages}`")
        return Demonstration([], self.shape.with_system(messages))

    def _from_pair(self, row: Row) -> Demonstration:
        prompt = self.shape.prompt(self.prompt.of(row))
        return Demonstration(prompt, completion_of(prompt, self.completion.of(row), self.completion.column))
