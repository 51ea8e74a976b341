"""How long a sequence a model can read."""

from transformers import PreTrainedModel


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that the model has positions for, None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
