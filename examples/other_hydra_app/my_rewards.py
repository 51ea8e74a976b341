"""A reward of the application's own."""


def brevity(prompts, completions, **columns):
    """Reward short completions."""
    return [-len(text.split()) / 10 for text in completions]
