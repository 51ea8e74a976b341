"""The text of prompts and completions, which are plain text or lists of chat messages."""

from collections.abc import Mapping, Sequence

Message = Mapping[str, object]
TextOrMessages = str | Sequence[Message]


def last_user_text(prompt: TextOrMessages) -> str:
    """Return a prompt's text: itself, or the content of its last user message.

    Raises:
        ValueError: if the messages hold no user message, or its content is no text.
    """
    return prompt if isinstance(prompt, str) else _last_content(prompt, role="user")


def assistant_text(completion: TextOrMessages) -> str:
    """Return a completion's text: itself, or the content of its last assistant message.

    Raises:
        ValueError: if the messages hold no assistant message, or its content is no text.

    >>> assistant_text([{"role": "assistant", "content": "b1"}])
    'b1'
    """
    return completion if isinstance(completion, str) else _last_content(completion, role="assistant")


def _last_content(messages: Sequence[Message], *, role: str) -> str:
    contents = [message.get("content") for message in messages if message.get("role") == role]
    if not contents:
        roles = [message.get("role") for message in messages]
        raise ValueError(f"The messages must hold one with the role `{role}`, got the roles {roles}.")
    if not isinstance(contents[-1], str):
        raise ValueError(f"The content of the last `{role}` message must be text, got {type(contents[-1]).__name__}.")
    return contents[-1]
