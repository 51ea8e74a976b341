"""Prompts and completions as text or as chat messages.

A prompt keeps the shape that the data has: a string, or a list of messages {"role": ..., "content": ...}. Only here is
it turned into the text and the tokens that a model continues.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Prompt = str | Messages


def check_messages(messages: Any, where: str) -> None:
    """Check that `messages` is a conversation that a model is to continue.

    Args:
        messages: what should be a list of {"role": str, "content": str}.
        where: where it was found, for the error message.

    Raises:
        ValueError: if it is none, or the last turn is not one that asks for an answer.
    """
    check_turns(messages, where)
    if messages[-1]["role"] in ("assistant", "system"):
        raise ValueError(
            f"{where}: the last message of a prompt must be one to answer (from the user or a tool), got one from the "
            f"{messages[-1]['role']}: leave the answer out of the prompt, it is what the model is to write."
        )


def check_turns(messages: Any, where: str) -> None:
    """Check that `messages` is a list of at least one {"role": str, "content": str}.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: messages must be a list of at least one message, got {reprlib.repr(messages)}.")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(
                f"{where}: message {number} must have a `role` and a `content`, both text, got {reprlib.repr(message)}."
            )


def render_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    r"""The text that the model continues.

    Text stays as it is. Messages go through the tokenizer's chat template, with the beginning of the assistant's turn
    appended; a tokenizer without a template (GPT-2) gets plain text, the turns separated by an empty line:

        Answer with a number.

        User: What is 2 + 2?

        Assistant:

    There is no space after the last colon: most vocabularies join it to the first word of the answer.

    Raises:
        ValueError: if the template refuses the messages, as some do with a system message.
    """
    return prompt if isinstance(prompt, str) else render_messages(prompt, tokenizer, begin_answer=True)


def render_messages(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, begin_answer: bool) -> str:
    """The text of a conversation, as `render_prompt` writes it.

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
    text = render_prompt(prompt, tokenizer)
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
