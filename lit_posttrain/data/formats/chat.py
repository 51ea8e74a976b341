"""Prompts and completions as text or as chat messages.

A prompt keeps the shape that the data has: a string, or a list of messages {"role": ..., "content": ...}. Only here is
it turned into the text and the tokens that a model continues, and the turns of a rendered conversation are found that
the model is to write.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Prompt = str | Messages

REWRITTEN_TURNS = ("last", "refuse")


def check_messages(messages: Any) -> None:
    """Check that `messages` is a conversation that a model is to continue.

    Args:
        messages: what should be a list of {"role": str, "content": str}.

    Raises:
        ValueError: if it is none, or the last turn is not one that asks for an answer.
    """
    check_turns(messages)
    if messages[-1]["role"] in ("assistant", "system"):
        raise ValueError(
            "the last message of a prompt must be one to answer (from the user or a tool), got one from the "
            f"{messages[-1]['role']}: leave the answer out of the prompt, it is what the model is to write."
        )


def check_turns(messages: Any) -> None:
    """Check that `messages` is a list of at least one {"role": str, "content": str}.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages must be a list of at least one message, got {reprlib.repr(messages)}.")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(
                f"message {number} must have a `role` and a `content`, both text, got {reprlib.repr(message)}."
            )


def render_messages(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, begin_answer: bool) -> str:
    r"""Write a conversation as text, by the tokenizer's chat template.

    A tokenizer without a template (GPT-2) gets plain text, the turns separated by an empty line:

        Answer with a number.

        User: What is 2 + 2?

        Assistant:

    There is no space after the last colon: most vocabularies join it to the first word of the answer.

    Args:
        messages: at least one.
        tokenizer: whose template is used.
        begin_answer: append the beginning of an assistant's turn.

    Raises:
        ValueError: if the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        turns = [_plain_turn(message) for message in messages]
        return "\n\n".join([*turns, "Assistant:"] if begin_answer else turns)
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=begin_answer, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"the tokenizer's chat template does not take the messages {reprlib.repr(messages)}: {error}"
        ) from error


def _plain_turn(message: Mapping[str, str]) -> str:
    if message["role"] == "system":
        return message["content"]
    return f"{message['role'].capitalize()}: {message['content']}"


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the model continues.

    A chat template writes its special tokens itself, so none are added to what it rendered, nor to text that already
    begins with the BOS: it would stand there twice. Other text gets what the tokenizer adds (the BOS of Llama) except
    an EOS at the end, after which there is nothing to continue. Nothing to say at all is said with the BOS, or the EOS
    where there is no BOS, since a model needs one token to start from.

    Args:
        prompt: text or messages.
        tokenizer: a Hugging Face tokenizer.

    Returns:
        At least one token id.

    Raises:
        ValueError: if the prompt is empty and the tokenizer has neither BOS nor EOS.
    """
    text = prompt if isinstance(prompt, str) else render_messages(prompt, tokenizer, begin_answer=True)
    by_template = not isinstance(prompt, str) and tokenizer.chat_template is not None
    if ids := encode_text(text, tokenizer, by_template=by_template):
        return ids
    for start in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if start is not None:
            return [start]
    raise ValueError(
        "an empty prompt cannot be encoded: the tokenizer has neither a BOS nor an EOS to start from; "
        "give a prompt, or set the tokenizer's `bos_token`."
    )


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase, *, by_template: bool) -> list[int]:
    """The tokens of a text that is to be continued: with the tokenizer's BOS once, and no EOS at the end.

    Args:
        text: any.
        tokenizer: a Hugging Face tokenizer.
        by_template: the text was rendered by a chat template, which writes all special tokens itself.
    """
    begins_with_bos = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    special = not (by_template or begins_with_bos)
    ids = list(tokenizer(text, add_special_tokens=special, return_attention_mask=False)["input_ids"])
    while not by_template and ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def completion_as(prompt: Prompt, text: str) -> Prompt:
    """A completion in the shape of its prompt: text for text, a list of one assistant message for messages.

    >>> completion_as("2 + 2 =", " 4")
    ' 4'
    >>> completion_as([{"role": "user", "content": "2 + 2?"}], "4")
    [{'role': 'assistant', 'content': '4'}]
    """
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


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
            "`rewritten_turns=last` supervises the last one alone."
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
