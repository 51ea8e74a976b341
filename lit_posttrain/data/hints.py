"""The nearest name to one that was not found, for error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence that offers the option most like `name`, or nothing if none is like it.

    >>> did_you_mean("promt", ["answer", "prompt"])
    ' Did you mean `prompt`?'
    >>> did_you_mean("prompt", ["answer"])
    ''
    """
    nearest = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean `{nearest[0]}`?" if nearest else ""


def in_backticks(names: Iterable[str]) -> str:
    """The names as they stand in an error message.

    >>> in_backticks(["question", "answer"])
    '`question`, `answer`'
    """
    return ", ".join(f"`{name}`" for name in names)
