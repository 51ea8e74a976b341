"""Verifiable rewards for GSM8K (arXiv:2110.14168): the answer is the number after `####`."""

import re
from collections.abc import Sequence
from fractions import Fraction

from lit_posttrain.tasks.messages import TextOrMessages, assistant_text

MARK = "####"

# A number in the line after the mark: -5, $1,000.00, 50%, 3/4. What follows it must be a space or the end, so "1,00",
# "1e3" and "12abc" are none; the length is bounded because text of a model is not.
_NUMBER = re.compile(
    r"[^\S\n]*(?P<prefix>-?\$?|\$-)[^\S\n]?"
    r"(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}|[0-9]{1,60})(?:\.[0-9]{1,60})?|\.[0-9]{1,60})"
    r"(?:/(?P<divisor>[0-9]{1,60}))?"
    r"%?\.?(?=\s|$)"
)


def exact_match(
    prompts: Sequence[TextOrMessages], completions: Sequence[TextOrMessages], answer: Sequence[str], **columns: object
) -> list[float]:
    """Reward 1 where the number after the last `####` of the completion equals that of the reference, else 0.

    The two are compared as exact numbers: "1,000", "1000.0" and "$1000" are equal. A currency sign before, and a full
    stop, a per cent sign or words after the number are passed over.

    Args:
        prompts: (B,), not used.
        completions: (B,) texts or chat messages.
        answer: (B,) reference answers that end in `#### number`.
        **columns: not used.

    Raises:
        ValueError: if a reference has no number after `####`.

    >>> exact_match(["2 * 500?"] * 3, ["#### $1000", "#### 999", "1000"], ["2 * 500 = 1000 #### 1,000"] * 3)
    [1.0, 0.0, 0.0]
    """
    references = [_read_reference(text, row=row) for row, text in enumerate(answer)]
    return [
        float(read_answer(assistant_text(completion)) == reference)
        for completion, reference in zip(completions, references, strict=True)
    ]


def has_answer_format(
    prompts: Sequence[TextOrMessages], completions: Sequence[TextOrMessages], **columns: object
) -> list[float]:
    """Reward 1 where the completion holds `####` and a number, right or wrong, else 0.

    >>> has_answer_format(["2 + 2?"] * 2, ["#### 5", "four"])
    [1.0, 0.0]
    """
    return [float(read_answer(assistant_text(completion)) is not None) for completion in completions]


def read_answer(text: str) -> Fraction | None:
    r"""Return the number after the last `####`, None if there is none.

    >>> read_answer("5 * 3 = 15\n#### 15 apples"), read_answer("15")
    (Fraction(15, 1), None)
    """
    _, mark, rest = text.rpartition(MARK)
    match = _NUMBER.match(rest) if mark else None
    if match is None:
        return None
    divisor = int(match["divisor"] or 1)
    if divisor == 0:
        return None
    number = Fraction(match["number"].replace(",", "")) / divisor
    return -number if "-" in match["prefix"] else number


def _read_reference(text: str, *, row: int) -> Fraction:
    number = read_answer(text)
    if number is None:
        raise ValueError(
            f"`answer` must end in `{MARK}` and a number, got {text[-200:]!r} for row {row}: "
            "without it no completion can be compared."
        )
    return number
