"""What a user is told of an error: in the words of the library, and with the options that its arguments are here."""

import os
import re
import sys
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn

from hydra.errors import InstantiationException
from omegaconf import DictConfig

from lit_posttrain.app.options.overrides import dotted

# Errors that tell a user what to change; anything else is shown with its traceback.
USER_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, ImportError, RuntimeError, OSError)

# Set beside HYDRA_FULL_ERROR where that was not the user's wish.
SET_HERE = "LIT_POSTTRAIN_SET_HYDRA_FULL_ERROR"

# The groups whose options are arguments of what stands in a room of the package.
ROOMS = {"models": "model", "data": "data", "tasks": "data", "rewards": "reward", "callbacks": "callbacks"}
ROOMS |= dict.fromkeys(("algos", "modules", "rollout"), "algo")
PACKAGE = Path(__file__).parents[1]
OPTIONS = "On the command line: "
# What the library says in Python's words, and the choice of a group that it is here.
CHOICES = {
    "a `PromptDataModule`": "data=prompts data.path=prompts.jsonl",
    "a `PreferenceDataModule`": "data=preferences data.path=pairs.jsonl",
    "the export of its run": "model=local model.path=<run>/export",
    "`lora`": "model/lora=default",
    "use DDP": "trainer=ddp",
    "use FSDP2": "trainer=fsdp",
}


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
    """Return the kind and the words of an error; where Hydra was building an object, those of the object's own error.

    Args:
        error: what was raised.
        message: better words for it, where there are any.

    >>> told(KeyError("no column `answer`"))
    'KeyError: no column `answer`'
    """
    return f"{type(_shown(error)).__name__}: {message or words(error)}"


def words(error: BaseException) -> str:
    """Return what an error says, without its kind and with the options that were noted in it.

    >>> words(KeyError("no column `answer`"))
    'no column `answer`'
    """
    shown = _shown(error)
    # str() of a KeyError would put its message between quotes
    text = str(shown.args[0]) if isinstance(shown, KeyError) and shown.args else str(shown)
    return " ".join([text, *(note for note in vars(error).get("__notes__", []) if note.startswith(OPTIONS))])


def name_options(error: BaseException, cfg: DictConfig, *, prefix: str = "") -> None:
    """Note in an error which options the arguments are that its message names.

    Args:
        error: what was raised.
        cfg: the configuration that it was raised with.
        prefix: what stands before the options of a stage.
    """
    text = words(error)
    found = options_named(text, dotted(cfg), _groups(error))
    found += [choice for said, choice in CHOICES.items() if said in text]
    if found:
        error.add_note(f"{OPTIONS}{', '.join(f'`{prefix}{name}`' for name in found)}.")


def options_named(text: str, known: list[str], groups: list[str]) -> list[str]:
    """Return the options whose last words stand between backquotes in a text, each by its whole name.

    Args:
        text: a message.
        known: every dotted name of the configuration; what is one of these needs no other name.
        groups: where an argument is looked for, the likeliest first, before it is looked for everywhere.

    >>> options_named("`max_length=8` is short", ["data.max_length", "data.path.preferences.max_length"], ["model"])
    ['data.max_length']
    """
    found: list[str] = []
    for name in re.findall(r"`([A-Za-z_][\w.]*)(?:=[^`]*)?`", text):
        alike = [] if name in known else [key for key in known if key.endswith(f".{name}")]
        group = next((each for each in groups if any(key.startswith(f"{each}.") for key in alike)), "")
        alike = [key for key in alike if key.startswith(group)]
        highest = [key for key in alike if key.count(".") == min(each.count(".") for each in alike)]
        found += [key for key in highest if len(highest) == 1 and key not in found]
    return found


def _groups(error: BaseException) -> list[str]:
    """Return the groups that an error may be about: what Hydra was building, then the rooms it came through."""
    built = re.findall(r"full_key: (\w+)", str(error)) if isinstance(error, InstantiationException) else []
    files = [Path(frame.f_code.co_filename) for frame, _ in walk_tb(_shown(error).__traceback__)]
    rooms = [file.relative_to(PACKAGE).parts[0] for file in reversed(files) if file.is_relative_to(PACKAGE)]
    return [*built, *(ROOMS[room] for room in rooms if room in ROOMS)]


def _shown(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
