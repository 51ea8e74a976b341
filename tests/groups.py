"""Options of a group among the arguments of a test: `rollouts__num_epochs=2` for `rollouts={"num_epochs": 2}`."""

from typing import Any


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Put options into the mappings of their groups, so that settings that are merged need not know of one another.

    >>> grouped({"group_size": 2, "critic__lr": 0.1, "critic__coef": 2.0})
    {'group_size': 2, 'critic': {'lr': 0.1, 'coef': 2.0}}
    """
    arguments: dict[str, Any] = {}
    for name, value in settings.items():
        group, _, option = name.partition("__")
        if option:
            arguments.setdefault(group, {})[option] = value
        else:
            arguments[name] = value
    return arguments
