"""The gridworld as text: every public name of the task in one place.

A W×H grid with walls, a start and a goal; the model reads the grid and writes a path, the cells that
it enters. Shortest paths and values are known exactly, so policies and critics can be held against them.
"""

from lit_posttrain.tasks.grid import Grid
from lit_posttrain.tasks.gridworld_data import (
    DemonstrationGenerator,
    PromptGenerator,
    demonstration_rows,
    is_validation,
    prompt_rows,
    sample_grid,
)
from lit_posttrain.tasks.gridworld_paths import PathScore, score_path
from lit_posttrain.tasks.gridworld_preferences import (
    PreferenceGenerator,
    UnpairedGenerator,
    path_return,
    preference_rows,
)
from lit_posttrain.tasks.gridworld_scores import optimal, score_completions, success
from lit_posttrain.tasks.gridworld_text import MOVES, Cell, cell_name, path_text, vocabulary
from lit_posttrain.tasks.gridworld_walks import noisy_walk

__all__ = [
    "MOVES",
    "Cell",
    "DemonstrationGenerator",
    "Grid",
    "PathScore",
    "PreferenceGenerator",
    "PromptGenerator",
    "UnpairedGenerator",
    "cell_name",
    "demonstration_rows",
    "is_validation",
    "noisy_walk",
    "optimal",
    "path_return",
    "path_text",
    "preference_rows",
    "prompt_rows",
    "sample_grid",
    "score_completions",
    "score_path",
    "success",
    "vocabulary",
]
