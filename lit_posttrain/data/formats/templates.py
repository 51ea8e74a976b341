"""Values out of the columns of a row: texts, messages, templates; for prompts, instructions, preferences."""

from __future__ import annotations

import reprlib
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lit_posttrain.data.formats.chat import Messages, Prompt, check_messages, check_turns
from lit_posttrain.data.hints import did_you_mean, in_backticks
from lit_posttrain.data.sources.rows import Rows

Row: TypeAlias = Mapping[str, Any]


class ColumnFormatter(string.Formatter):
    """`str.format` in which a field is the name of a column and nothing else: no attributes, no indices."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """Look up the column."""
        value = kwargs[field_name]
        if not isinstance(value, str | int | float):
            raise ValueError(f"column `{field_name}` must be text or a number, got {reprlib.repr(value)}")
        return value, field_name


class Value:
    r"""A value of every row: what a column holds, or what a template makes of several columns.

    Args:
        name: of the value; the arguments of the DataModules are `<name>_column` and `<name>_template`.
        column: that holds it, in place of a template; None is the column called `name`.
        template: such as "Question: {question}\nAnswer:", or several, of which a row takes the first of which no column
            is empty; None takes the column.

    Raises:
        ValueError: if a template is none or names no column, or both a column and a template are given.

    >>> Value("prompt", template=["{question} ({hint})", "{question}"]).of({"question": "2 + 2 =", "hint": ""})
    '2 + 2 ='
    """

    def __init__(self, name: str, column: str | None = None, template: str | Sequence[str] | None = None) -> None:
        self.argument = f"{name}_template"
        self.column = name if column is None else column
        self.chosen = template is not None or self.column != name  # rather than left as it is by default
        self._templates = [template] if isinstance(template, str) else list(template or ())
        if template is not None and not self._templates:
            raise ValueError(f"`{self.argument}` must be a template or a list of at least one, got an empty list.")
        self._fields = [self._columns_of(each) for each in self._templates]
        if template is not None and self.column != name:
            raise ValueError(
                f"give `{name}_column` or `{self.argument}`, not both, got {column!r} and {template!r}: a template "
                "names its columns itself."
            )

    @property
    def has_template(self) -> bool:
        """Whether the value is made, rather than read."""
        return bool(self._templates)

    @property
    def columns(self) -> list[str]:
        """Every column that it needs."""
        return list(dict.fromkeys(name for names in self._fields for name in names)) or [self.column]

    def of(self, row: Row) -> Any:
        """The value of a row, None where its column is missing.

        Raises:
            ValueError: if a template needs a column that is missing, or one of every template is empty.
        """
        if not self._templates:
            return row.get(self.column)
        for template, columns in zip(self._templates, self._fields, strict=True):
            if len(self._templates) == 1 or all(row.get(name) not in (None, "") for name in columns):
                try:
                    return ColumnFormatter().vformat(template, (), row)
                except KeyError as error:
                    raise ValueError(
                        f"`{self.argument}` needs the column {error}, this row has {in_backticks(row)}."
                    ) from error
                except ValueError as error:
                    raise ValueError(f"`{self.argument}` cannot be filled: {error}.") from error
        raise ValueError(f"no `{self.argument}` can be filled: one of {in_backticks(self.columns)} is empty in each.")

    def _columns_of(self, template: str) -> list[str]:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise ValueError(
                f"`{self.argument}` must be a template such as 'Question: {{question}}', got {template!r}: {error}; "
                "write {{ and }} for braces in the text."
            ) from error
        if not fields or not all(fields):
            raise ValueError(
                f"`{self.argument}` must name a column in every pair of braces, got {template!r}; "
                "write {{ and }} for braces in the text."
            )
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
                    "a `system_prompt` needs a chat, and this prompt is text: set `chat=True` to make it the user's "
                    "message, or leave `system_prompt` unset."
                )
            return value
        return self.with_system(as_messages(value, "a prompt", check=check_messages))

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

    Args:
        prompt: text or messages.
        value: what should be a completion of it.
        name: of the column that holds it, for error messages.

    Raises:
        ValueError: if it is neither text nor messages, or messages behind a text.
    """
    if isinstance(value, str):
        return value if isinstance(prompt, str) else [{"role": "assistant", "content": value}]
    messages = as_messages(value, f"`{name}`")
    if isinstance(prompt, str):
        raise ValueError(f"`{name}` holds messages and the prompt is text: set `chat=True` to make it the user's.")
    if messages[0]["role"] != "assistant":
        raise ValueError(f"`{name}` must begin with the assistant's message, got one from the {messages[0]['role']}.")
    return messages


def as_messages(value: Any, what: str, *, check: Callable[[Any], None] = check_turns) -> Messages:
    """A list of messages without the keys that Parquet adds.

    Args:
        value: what should be one.
        what: it is, for error messages.
        check: that the messages have to pass.

    Raises:
        ValueError: if it is none, or does not pass.
    """
    if not isinstance(value, list):
        raise ValueError(
            f'{what} must be text or a list of messages {{"role": ..., "content": ...}}, got {reprlib.repr(value)}.'
        )
    check(value)
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def need(names: Iterable[str], rows: Rows, *, format: str, ways: str) -> None:
    """See that columns are there.

    Args:
        names: of the columns.
        rows: that should have them.
        format: that needs them, for the error message.
        ways: what to do about it.

    Raises:
        ValueError: with those found, those needed and the way out.
    """
    needed, found = list(names), rows.columns()
    for name in needed:
        if name not in found:
            raise ValueError(
                f"{rows.name}: there is no column `{name}`.{did_you_mean(name, found)} Found are "
                f"{in_backticks(found)}; the format {format} needs {in_backticks(needed)}. {ways}"
            )
