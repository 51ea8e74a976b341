"""Scores of gridworld completions, with the signature of reward functions."""

import re
from collections.abc import Sequence

from lit_posttrain.tasks.grid import Grid
from lit_posttrain.tasks.gridworld_paths import PathScore, score_path
from lit_posttrain.tasks.messages import TextOrMessages, assistant_text, last_user_text

# The word `grid` followed by a number, so that prose about the grid after the task is not taken for one.
_TASK_BEGINS = re.compile(r"\bgrid\s+(?=\d)")
_TASK_ENDS = re.compile(r"\bpath\b")


def success(
    prompts: Sequence[TextOrMessages],
    completions: Sequence[TextOrMessages],
    truncated: Sequence[bool],
    **columns: object,
) -> list[float]:
    """Score 1 where the completion is a legal path that ends at the goal and stops there, else 0."""
    return [float(score.success) for score in score_completions(prompts, completions, truncated)]


def optimal(
    prompts: Sequence[TextOrMessages],
    completions: Sequence[TextOrMessages],
    truncated: Sequence[bool],
    **columns: object,
) -> list[float]:
    """Score 1 where the completion is a shortest path to the goal and stops there, else 0.

    >>> optimal(["grid 2 2 walls start a1 goal b1 path"] * 2, ["b1", "a2 b2 b1"], [False, False])
    [1.0, 0.0]
    """
    return [float(score.optimal) for score in score_completions(prompts, completions, truncated)]


def score_completions(
    prompts: Sequence[TextOrMessages], completions: Sequence[TextOrMessages], truncated: Sequence[bool]
) -> list[PathScore]:
    """Score every completion against the grid in its prompt.

    Args:
        prompts: texts or chat messages; the last grid in the text, or in the last user message, is the task.
        completions: texts or chat messages.
        truncated: True where the completion was cut off.

    Raises:
        ValueError: if the three differ in length, or a prompt holds no grid; says which.
    """
    if not len(prompts) == len(completions) == len(truncated):
        raise ValueError(
            "`prompts`, `completions` and `truncated` must have equal lengths, "
            f"got {len(prompts)}, {len(completions)} and {len(truncated)}."
        )
    return [
        score_path(_read_grid(prompt, row=row), assistant_text(completion), truncated=bool(cut))
        for row, (prompt, completion, cut) in enumerate(zip(prompts, completions, truncated, strict=True))
    ]


def _read_grid(prompt: TextOrMessages, *, row: int) -> Grid:
    text = last_user_text(prompt)
    begins = [match.start() for match in _TASK_BEGINS.finditer(text)]
    task = text[begins[-1] :] if begins else text
    end = _TASK_ENDS.search(task)
    try:
        return Grid.from_prompt(task[: end.end()] if end else task)
    except ValueError as error:
        raise ValueError(f"Prompt {row} must hold a grid to score its completion against: {error}") from error
