"""The verifiable reward of the gridworld."""

from collections.abc import Sequence

from lit_posttrain.tasks.gridworld_scores import score_completions
from lit_posttrain.tasks.messages import TextOrMessages

# Of a reward of at most 1, the part for arriving at all. With little of it the policy unlearns walls: in most grids the
# straight path is the shortest, and boldness wins more there than it loses where a wall stands in the way.
ARRIVAL = 0.7


def path_reward(
    prompts: Sequence[TextOrMessages],
    completions: Sequence[TextOrMessages],
    truncated: Sequence[bool],
    **columns: object,
) -> list[float]:
    """Reward a path that ends at the goal by 0.7 + 0.3 shortest / moves: 1 for a shortest one; 0 for anything else.

    Args:
        prompts: [B] texts or chat messages that hold a grid.
        completions: [B] texts or chat messages.
        truncated: [B], True where the completion was cut off.
        **columns: not used.

    Raises:
        ValueError: if a prompt holds no grid.

    >>> prompts = ["grid 2 2 walls start a1 goal b1 path"] * 3
    >>> rewards = path_reward(prompts, ["b1", "a1", "b1 a1 b1"], [False, False, False])
    >>> [round(reward, 6) for reward in rewards]
    [1.0, 0.0, 0.8]
    """
    scores = score_completions(prompts, completions, truncated)
    return [ARRIVAL + (1 - ARRIVAL) * score.shortest / score.moves if score.success else 0.0 for score in scores]
