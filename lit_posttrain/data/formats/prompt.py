"""From rows as they are in a file to rows with a prompt, for online algorithms."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lit_posttrain.data.formats.chat import Prompt, encode_prompt
from lit_posttrain.data.formats.encoder import Encoder
from lit_posttrain.data.formats.templates import ChatShape, Row, Value, need
from lit_posttrain.data.sources.rows import Rows

RESERVED_COLUMNS = ("prompts", "completions", "completion_ids", "truncated")  # what a reward function gets besides
WAYS = (
    "Name the column that holds the prompt with `prompt_column`, build one from several with `prompt_template`, as "
    "'Question: {question}', or name the others to keep with `columns`."
)


@dataclass(frozen=True)
class PromptRow:
    """A prompt with what reward functions get beside it.

    Attributes:
        values: {"prompt": text or messages, other columns...}.
        length: tokens of the prompt, once they are counted.
    """

    values: dict[str, Any]
    length: int = 0

    def encode(self, encoder: Encoder) -> tuple[PromptRow, bool]:
        """With its tokens counted; no turn of it is supervised that a template could rewrite."""
        return replace(self, length=len(encode_prompt(self.values["prompt"], encoder.tokenizer))), False


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How a row becomes a prompt.

    Attributes:
        prompt: of a row; it is given out as `prompt`, in place of any column of that name.
        columns: new name -> column, for the columns to keep beside the prompt; None keeps all.
        shape: whether a text becomes a chat.
    """

    prompt: Value = field(default_factory=lambda: Value("prompt"))
    columns: Mapping[str, str] | None = None
    shape: ChatShape = field(default_factory=ChatShape)

    def __post_init__(self) -> None:
        for name in self.columns or ():
            if name == "prompt":
                raise ValueError("`columns` must not name a column `prompt`: set `prompt_column`.")
            if name in RESERVED_COLUMNS:
                raise ValueError(
                    f"`columns` must not name a column `{name}`: reward functions get their own under this name."
                )

    def reader(self, rows: Rows) -> Callable[[Row], PromptRow]:
        """What reads one of these rows; all get the same columns, None where a row lacks one.

        Raises:
            ValueError: if a column is missing or has a reserved name.
        """
        need([*self.prompt.columns, *(self.columns or {}).values()], rows, format="prompt", ways=WAYS)
        columns = self._columns_beside_prompt(rows)

        def read(row: Row) -> PromptRow:
            beside = {new: row.get(old) for new, old in columns.items()}
            return PromptRow({"prompt": self._prompt(row), **beside})

        return read

    def _columns_beside_prompt(self, rows: Rows) -> Mapping[str, str]:
        if self.columns is not None:
            return self.columns
        found = [name for name in rows.columns() if name not in ("prompt", self.prompt.column)]
        for name in RESERVED_COLUMNS:
            if name in found:
                raise ValueError(
                    f"{rows.name}: a column must not be called `{name}`, since reward functions get their own under "
                    "this name: list those to keep as `columns`, a mapping from new names to columns."
                )
        return {name: name for name in found}

    def _prompt(self, row: Row) -> Prompt:
        value = self.prompt.of(row)
        prompt = self.shape.prompt(value)
        if isinstance(value, list) and not any(message["content"].strip() for message in value):
            raise ValueError(f"the prompt must not be empty, got {reprlib.repr(value)}.")
        return prompt
