"""How long a sequence a model can read."""

from transformers import PreTrainedConfig


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model of this configuration has positions for, None where it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
