"""The verifiable reward of the gridworld."""

from collections.abc import Sequence

from lit_posttrain.tasks.gridworld_scores import score_completions
from lit_posttrain.tasks.messages import TextOrMessages


def path_reward(
    prompts: Sequence[TextOrMessages],
    completions: Sequence[TextOrMessages],
    truncated: Sequence[bool],
    **columns: object,
) -> list[float]:
    """Reward a path that ends at the goal by shortest / moves: 1 for a shortest one; 0 for anything else.

    Args:
        prompts: [B] texts or chat messages that hold a grid.
        completions: [B] texts or chat messages.
        truncated: [B], True where the completion was cut off.
        **columns: not used.

    Raises:
        ValueError: if a prompt holds no grid.

    >>> prompts = ["grid 2 2 walls start a1 goal b1 path"] * 3
    >>> path_reward(prompts, ["right b1", "left a1", "right b1 left a1 right b1"], [False, False, False])
    [1.0, 0.0, 0.3333333333333333]
    """
    scores = score_completions(prompts, completions, truncated)
    return [score.shortest / score.moves if score.success else 0.0 for score in scores]
