"""Dialogues as Anthropic's HH-RLHF writes them: one text, with turns after "Human:" and "Assistant:"."""

import re

from lit_posttrain.data.chat import Messages

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


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
