"""Policies, tokenizers and the frozen reference."""

from typing import TYPE_CHECKING, Any

from lit_posttrain.models.loading import Pretrained

if TYPE_CHECKING:
    from lit_posttrain.models.policy import Policy
    from lit_posttrain.models.reference import FrozenReference

__all__ = ["FrozenReference", "Policy", "Pretrained"]


def __getattr__(name: str) -> Any:
    """Names that need transformers are loaded on first use, so that configuration alone stays quick."""
    if name == "Policy":
        from lit_posttrain.models.policy import Policy

        return Policy
    if name == "FrozenReference":
        from lit_posttrain.models.reference import FrozenReference

        return FrozenReference
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
