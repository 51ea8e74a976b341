"""Verifiable rewards of the gridworld: of a whole path, and of each of its moves."""

from collections.abc import Sequence

from lit_posttrain.tasks.gridworld_scores import score_completions
from lit_posttrain.tasks.messages import TextOrMessages, assistant_text

# Of a reward of at most 1, the part for arriving at all. With little of it the policy unlearns walls: in most grids the
# straight path is the shortest, and boldness wins more there than it loses where a wall stands in the way.
ARRIVAL = 0.7

# Moves that cost as much as arriving is worth: above the longest shortest path of grids with few walls, so that it
# always pays to go.
MOVES_PER_GOAL = 20


def path_reward(
    prompts: Sequence[TextOrMessages],
    completions: Sequence[TextOrMessages],
    truncated: Sequence[bool],
    **columns: object,
) -> list[float]:
    """Reward a path that ends at the goal by 0.7 + 0.3 shortest / moves: 1 for a shortest one; 0 for anything else.

    Args:
        prompts: (B,) texts or chat messages that hold a grid.
        completions: (B,) texts or chat messages.
        truncated: (B,), True where the completion was cut off.
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


def step_rewards(
    prompts: Sequence[TextOrMessages],
    completions: Sequence[TextOrMessages],
    truncated: Sequence[bool],
    completion_ids: Sequence[Sequence[int]],
    **columns: object,
) -> list[list[float]]:
    """Reward each token of a path: -1/20 for a move, 1 for stopping at the goal; the classic grid, scaled.

    The value of a legal path's beginning under the best policy is then 1 - (moves to the goal) / 20. The first wrong
    move costs what a move costs; nothing is earned behind it. A path that was cut off has not stopped.

    A move is a word. Where the words are not the tokens (a tokenizer that splits them, or special tokens in between)
    the sum of all this stands at the last token.

    Args:
        prompts: (B,) texts or chat messages that hold a grid.
        completions: (B,) texts or chat messages.
        truncated: (B,), True where the completion was cut off, and has no EOS.
        completion_ids: (B,), the tokens of each completion, its EOS included.
        **columns: not used.

    Raises:
        ValueError: if a prompt holds no grid.

    >>> prompts = ["grid 2 2 walls start a1 goal b1 path"] * 3
    >>> step_rewards(prompts, ["b1", "a2 a1 b1", "b2 a2"], [False, True, False], [[5, 1], [7, 6, 5], [8, 7, 1]])
    [[-0.05, 1.0], [-0.05, -0.05, -0.05], [-0.05, 0.0, 0.0]]
    """
    scores = score_completions(prompts, completions, truncated)
    rewards = []
    for score, completion, cut, ids in zip(scores, completions, truncated, completion_ids, strict=True):
        num_words = len(assistant_text(completion).split())
        paid = score.moves if score.moves == num_words else score.moves + 1  # the wrong one, too
        by_word = [-1 / MOVES_PER_GOAL] * paid + [0.0] * (num_words - paid)
        goal = float(score.success)
        if len(ids) == num_words + (not cut):
            rewards.append(by_word if cut else [*by_word, goal])
        else:
            rewards.append([0.0] * (len(ids) - 1) + [sum(by_word) + goal])
    return rewards
