"""From rows as they are in a file to rows with a prompt."""

from __future__ import annotations

import reprlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_posttrain.data.chat import Messages, Prompt, check_messages
from lit_posttrain.data.hints import did_you_mean, in_backticks
from lit_posttrain.data.rows import Rows

RESERVED_COLUMNS = ("prompts", "completions", "completion_ids", "truncated")  # what a reward function gets besides


class ColumnFormatter(string.Formatter):
    """`str.format` in which a field is the name of a column and nothing else: no attributes, no indices."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        """Look up the column."""
        value = kwargs[field_name]
        if not isinstance(value, str | int | float):
            raise ValueError(f"column `{field_name}` must be text or a number, got {reprlib.repr(value)}")
        return value, field_name


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a row becomes a prompt; the arguments are those of `PromptDataModule`."""

    prompt_column: str = "prompt"
    columns: Mapping[str, str] | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        for name in self.columns or ():
            if name == "prompt" or name in RESERVED_COLUMNS:
                raise ValueError(
                    f"`columns` must not name a column `{name}`: "
                    + (
                        "set `prompt_column`."
                        if name == "prompt"
                        else "reward functions get their own under this name."
                    )
                )
        if self.prompt_template is None:
            return
        if self.prompt_column != "prompt":
            raise ValueError(
                f"give `prompt_column` or `prompt_template`, not both, got {self.prompt_column!r} and "
                f"{self.prompt_template!r}: the template names its columns itself."
            )
        if not all(self._template_fields()):
            raise ValueError(
                f"`prompt_template` must name a column in every pair of braces, got {self.prompt_template!r}; "
                "write {{ and }} for braces in the text."
            )

    def apply(self, rows: Rows) -> Rows:
        """New rows {"prompt": text or messages, other columns...}, all with the same columns.

        Args:
            rows: as they were read; they are left as they are. A column that only some of them have is None in the
                others.

        Raises:
            ValueError: if a column is missing or has a reserved name, or a prompt is no prompt (with its place).
        """
        if len(rows) == 0:
            return replace(rows, rows=[])
        found = rows.columns()
        for name in [self.prompt_column] if self.prompt_template is None else self._template_fields():
            if name not in found:
                raise ValueError(
                    f"{self._no_column(name, rows)} Name the column that holds the prompt with `data.prompt_column=`, "
                    'or build one from several with `data.prompt_template="Question: {question}"`.'
                )
        columns = self._columns_beside_prompt(rows)
        prompts = []
        for index, row in enumerate(rows):
            where = rows.where(index)
            value = row.get(self.prompt_column) if self.prompt_template is None else self._fill_template(row, where)
            prompts.append({"prompt": self._prompt(value, where)} | {new: row.get(old) for new, old in columns.items()})
        return replace(rows, rows=prompts)

    def _no_column(self, name: str, rows: Rows) -> str:
        found = rows.columns()
        place = rows.source or "the rows given"
        return f"{place}: there is no column `{name}`, only {in_backticks(found)}.{did_you_mean(name, found)}"

    def _columns_beside_prompt(self, rows: Rows) -> Mapping[str, str]:
        found = rows.columns()
        if self.columns is not None:
            for old in self.columns.values():
                if old not in found:
                    raise ValueError(f"{self._no_column(old, rows)} Check `data.columns=`.")
            return self.columns
        for name in RESERVED_COLUMNS:
            if name in found and name != self.prompt_column:
                raise ValueError(
                    f"{rows.source or 'the rows given'}: a column must not be called `{name}`, since reward functions "
                    "get their own under this name: list the columns to keep as `data.columns={new_name: column}`."
                )
        return {name: name for name in found if name not in ("prompt", self.prompt_column)}

    def _template_fields(self) -> list[str]:
        """The columns that the template names; an empty text for empty braces, and for a template without any."""
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self.prompt_template or "")]
        except ValueError as error:
            raise ValueError(
                f"`prompt_template` must be a template such as 'Question: {{question}}', got {self.prompt_template!r}: "
                f"{error}; write {{{{ and }}}} for braces in the text."
            ) from error
        return [field for field in fields if field is not None] or [""]

    def _fill_template(self, row: Mapping[str, Any], where: str) -> str:
        try:
            return ColumnFormatter().vformat(self.prompt_template or "", (), row)
        except KeyError as error:
            raise ValueError(
                f"{where}: `prompt_template` needs the column {error}, this row has {in_backticks(row)}."
            ) from error
        except ValueError as error:
            raise ValueError(f"{where}: `prompt_template` cannot be filled: {error}.") from error

    def _prompt(self, value: Any, where: str) -> Prompt:
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"{where}: the prompt must not be empty, got {value!r}.")
            return self._prompt_from_text(value, where)
        if not isinstance(value, list):
            raise ValueError(
                f'{where}: a prompt must be text or a list of messages {{"role": ..., "content": ...}}, '
                f"got {reprlib.repr(value)}."
            )
        check_messages(value, where)
        if not any(message["content"].strip() for message in value):
            raise ValueError(f"{where}: the prompt must not be empty, got {reprlib.repr(value)}.")
        # Parquet gives every message the keys of all messages: those that it lacked are None.
        messages = [{key: part for key, part in message.items() if part is not None} for message in value]
        if self.system_prompt is None:
            return messages
        if messages[0]["role"] == "system":
            raise ValueError(f"{where}: these messages have a system message already; leave `system_prompt` unset.")
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def _prompt_from_text(self, text: str, where: str) -> Prompt:
        if self.chat:
            system: Messages = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
            return [*system, {"role": "user", "content": text}]
        if self.system_prompt is not None:
            raise ValueError(
                f"{where}: a `system_prompt` needs a chat, and this prompt is text: set `data.chat=true` to make "
                "it the user's message, or leave `system_prompt` unset."
            )
        return text
