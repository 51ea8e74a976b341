"""Values out of the columns of a row: texts, messages, templates."""

from __future__ import annotations

import reprlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_posttrain.data.chat import Messages, Prompt, check_messages, check_turns
from lit_posttrain.data.hints import did_you_mean, in_backticks
from lit_posttrain.data.prompt_format import ColumnFormatter
from lit_posttrain.data.rows import Rows

Row = Mapping[str, Any]


class Templates:
    r"""One template or several; a row takes the first of which no column is empty.

    Args:
        templates: such as "Question: {question}\nAnswer:".
        name: of the argument, for error messages.

    Raises:
        ValueError: if one is no template, or names no column.
    """

    def __init__(self, templates: str | Sequence[str], name: str = "prompt_template") -> None:
        self.name = name
        self.templates = [templates] if isinstance(templates, str) else list(templates)
        self._columns = [_fields(template, name) for template in self.templates]
        if not self.templates:
            raise ValueError(f"`{name}` must be a template or a list of at least one, got an empty list.")

    def columns(self) -> list[str]:
        """Every column that any of them names."""
        return list(dict.fromkeys(name for columns in self._columns for name in columns))

    def fill(self, row: Row) -> str:
        """The text for a row.

        Raises:
            ValueError: if a column is missing, or one of every template is empty.
        """
        for template, columns in zip(self.templates, self._columns, strict=True):
            if len(self.templates) == 1 or all(row.get(name) not in (None, "") for name in columns):
                try:
                    return ColumnFormatter().vformat(template, (), row)
                except KeyError as error:
                    raise ValueError(
                        f"`{self.name}` needs the column {error}, this row has {in_backticks(row)}."
                    ) from error
                except ValueError as error:
                    raise ValueError(f"`{self.name}` cannot be filled: {error}.") from error
        raise ValueError(f"no `{self.name}` can be filled: one of {in_backticks(self.columns())} is empty in each.")


def _fields(template: str, name: str) -> list[str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be a template such as 'Question: {{question}}', got {template!r}: {error}; "
            "write {{ and }} for braces in the text."
        ) from error
    if not fields or not all(fields):
        raise ValueError(f"`{name}` must name a column in every pair of braces, got {template!r}.")
    return fields


@dataclass(frozen=True, kw_only=True)
class ChatShape:
    """Whether texts become chats.

    Attributes:
        chat: make a prompt that is text the user's message, and its completion the assistant's.
        system_prompt: put before the messages.
    """

    chat: bool = False
    system_prompt: str | None = None

    def prompt(self, value: Any) -> Prompt:
        """A prompt in the shape asked for.

        Raises:
            ValueError: if it is neither text nor messages to answer, or empty.
        """
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"the prompt must not be empty, got {value!r}.")
            if self.chat:
                return self.with_system([{"role": "user", "content": value}])
            if self.system_prompt is not None:
                raise ValueError(
                    "a `system_prompt` needs a chat, and this prompt is text: set `data.chat=true` to make it the "
                    "user's message, or leave `system_prompt` unset."
                )
            return value
        messages = as_messages(value, "a prompt")
        _unplaced(check_messages, messages)
        return self.with_system(messages)

    def with_system(self, messages: Messages) -> Messages:
        """The messages behind the system prompt.

        Raises:
            ValueError: if they have one already.
        """
        if self.system_prompt is None:
            return messages
        if messages[0]["role"] == "system":
            raise ValueError("these messages have a system message already; leave `system_prompt` unset.")
        return [{"role": "system", "content": self.system_prompt}, *messages]


def completion_of(prompt: Prompt, value: Any, name: str) -> Prompt:
    """A completion in the shape of its prompt.

    Raises:
        ValueError: if it is neither text nor messages, or messages behind a text.
    """
    if isinstance(value, str):
        return value if isinstance(prompt, str) else [{"role": "assistant", "content": value}]
    messages = as_messages(value, f"`{name}`")
    if isinstance(prompt, str):
        raise ValueError(
            f"`{name}` holds messages and the prompt is text: set `data.chat=true` to make it the user's message."
        )
    if messages[0]["role"] != "assistant":
        raise ValueError(f"`{name}` must begin with the assistant's message, got one from the {messages[0]['role']}.")
    return messages


def as_messages(value: Any, what: str) -> Messages:
    """A list of messages without the keys that Parquet adds.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, list):
        raise ValueError(
            f'{what} must be text or a list of messages {{"role": ..., "content": ...}}, got {reprlib.repr(value)}.'
        )
    _unplaced(check_turns, value)
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def need(names: Sequence[str | None], rows: Rows, *, guessed: str, ways: str) -> None:
    """See that columns are there.

    Raises:
        ValueError: with those found, those needed and the format that was guessed.
    """
    found = rows.columns()
    for name in names:
        if name is not None and name not in found:
            raise ValueError(
                f"{rows.source or 'the rows given'}: there is no column `{name}`.{did_you_mean(name, found)} "
                f"Found are {in_backticks(found)}; the format {guessed} needs "
                f"{in_backticks(n for n in names if n)}. {ways}"
            )


def _unplaced(check: Any, messages: Any) -> None:
    """Run a check of `chat`; where the row stands is said by whoever knows it."""
    try:
        check(messages, "")
    except ValueError as error:
        raise ValueError(str(error).removeprefix(": ")) from error
