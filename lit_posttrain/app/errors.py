"""What a user is told of an error."""

import os
import sys
from typing import NoReturn

from hydra.errors import InstantiationException

# Errors that tell a user what to change; anything else is shown with its traceback.
USER_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, ImportError, RuntimeError, OSError)

# Set beside HYDRA_FULL_ERROR where that was not the user's wish.
SET_HERE = "LIT_POSTTRAIN_SET_HYDRA_FULL_ERROR"


def leave(error: BaseException, message: str | None = None, *, more: str = "") -> NoReturn:
    """Say what is wrong, and end with status 1.

    Args:
        error: what was raised.
        message: better words for it, where there are any.
        more: what is said behind it.
    """
    rank = os.environ.get("LOCAL_RANK", "0")
    who = "" if rank == "0" else f" in process {rank}"
    print(f"\nerror{who}: {told(error, message)}{more}", file=sys.stderr)  # noqa: T201
    sys.exit(1)


def told(error: BaseException, message: str | None = None) -> str:
    """Its kind and its words; of an error while Hydra builds an object, those of the object.

    Args:
        error: what was raised.
        message: better words for it, where there are any.

    >>> told(KeyError("no column `answer`"))
    'KeyError: no column `answer`'
    """
    return f"{type(_shown(error)).__name__}: {message or words(error)}"


def words(error: BaseException) -> str:
    """What an error says, without its kind.

    >>> words(KeyError("no column `answer`"))
    'no column `answer`'
    """
    shown = _shown(error)
    # str() of a KeyError would put its message between quotes
    return str(shown.args[0]) if isinstance(shown, KeyError) and shown.args else str(shown)


def _shown(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
