"""Which part of a rendered conversation the model wrote, found by rendering its beginnings."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lit_posttrain.data.chat import Messages, render_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REWRITTEN_TURNS = ("last", "refuse")


class Piece(NamedTuple):
    """A stretch of text, all of which is supervised or none."""

    text: str
    supervised: bool


class Dialogue(NamedTuple):
    """A conversation as text.

    Attributes:
        pieces: the text in parts, from its beginning to the end of the last supervised one.
        rewritten: the template changes earlier turns when others follow, and only the last turn is supervised.
    """

    pieces: list[Piece]
    rewritten: bool


def render_dialogue(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    *,
    first: int = 0,
    rewritten_turns: str = "last",
    ends: Sequence[str] = (),
) -> Dialogue:
    """Render a conversation and find its assistant turns, the token that ends each of them included.

    The turn of message i is what the template appends to messages[:i] with the assistant's turn begun when the message
    is there: just what a model that answers messages[:i] has to write. Messages behind the last assistant turn are left
    out. White space behind a turn's end token belongs to the next turn.

    Some templates rewrite earlier turns when others follow (they strip the thinking of all but the last answer). Then
    the beginnings are none, and what an earlier turn was written after is not what stands before it.

    Args:
        messages: the conversation.
        tokenizer: whose template is used; one without a template gets plain text.
        first: number of the first message whose turn may be supervised.
        rewritten_turns: what to do where a template rewrites: supervise the "last" turn only, or "refuse".
        ends: texts of special tokens, one of which may end a turn.

    Raises:
        ValueError: if there is no assistant turn, the template refuses the messages, leaves one out, changes their
            order, or does not begin an answer the way it renders it.
    """
    turns = [index for index, message in enumerate(messages) if index >= first and message["role"] == "assistant"]
    if not turns or turns[0] == 0:
        raise ValueError(
            "a dialogue must have an assistant's message behind another one: there is no answer to learn, "
            f"got the roles {', '.join(message['role'] for message in messages)}."
        )
    last = turns[-1]
    whole = render_messages(messages[: last + 1], tokenizer, begin_answer=False)
    spans: list[tuple[int, int]] = []
    rewritten = False
    for turn in turns:
        before = render_messages(messages[:turn], tokenizer, begin_answer=True)
        after = whole if turn == last else render_messages(messages[: turn + 1], tokenizer, begin_answer=False)
        if after.startswith(before) and whole.startswith(after):
            spans.append((len(before), _end(after, len(before), ends)))
        elif turn == last:
            raise ValueError(
                "the chat template does not begin an answer the way it renders one, so that what the model has to "
                f"write cannot be told: it asks with {reprlib.repr(before[-60:])} and renders "
                f"{reprlib.repr(whole[-120:])}. Use another template, or data with `prompt` and `completion` as text."
            )
        else:
            rewritten = True
    if rewritten and rewritten_turns == "refuse":
        raise ValueError(
            "the chat template rewrites earlier turns when others follow, so they cannot be supervised together: "
            "`data.rewritten_turns=last` supervises the last one alone."
        )
    spans = spans[-1:] if rewritten else spans
    _check_contents(messages[: last + 1], whole, spans=spans, supervised=[last] if rewritten else turns)
    pieces, position = [], 0
    for start, end in spans:
        pieces += [Piece(whole[position:start], False), Piece(whole[start:end], True)]
        position = end
    return Dialogue(pieces, rewritten)


def _end(text: str, start: int, ends: Sequence[str]) -> int:
    """Where the turn that begins at `start` ends: behind its end token, or with the text where there is none."""
    turn = text[start:].rstrip()
    return start + len(turn) if turn.endswith(tuple(ends)) else len(text)


def _check_contents(messages: Messages, whole: str, *, spans: list[tuple[int, int]], supervised: list[int]) -> None:
    """See that the template wrote every message, in their order; white space aside, which templates trim.

    An earlier answer may be rewritten, and a system message may stand anywhere.
    """
    for index, (start, end) in zip(supervised, spans, strict=True):
        if _bare(messages[index]["content"]) not in _bare(whole[start:end]):
            raise ValueError(_left_out(messages, index))
    bare, position = _bare(whole), 0
    for index, message in enumerate(messages):
        content = _bare(message["content"])
        if index in supervised or content not in bare:
            if index not in supervised and message["role"] != "assistant":
                raise ValueError(_left_out(messages, index))
        elif message["role"] != "system":
            found = bare.find(content, position)
            if found < 0 and message["role"] != "assistant":
                raise ValueError(
                    f"the chat template changes the order of the messages: message {index} "
                    f"({reprlib.repr(message['content'])}) stands before an earlier one. Use another template."
                )
            position = max(position, found + len(content))


def _left_out(messages: Messages, index: int) -> str:
    return (
        f"the chat template leaves out message {index}, from the {messages[index]['role']}: "
        f"{reprlib.repr(messages[index]['content'])}. Use another template, or data without such messages."
    )


def _bare(text: str) -> str:
    return "".join(text.split())
