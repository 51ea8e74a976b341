"""Policies, reward networks, tokenizers and the frozen reference."""

from typing import TYPE_CHECKING, Any

from lit_posttrain.models.loading import Pretrained

if TYPE_CHECKING:
    from lit_posttrain.models.networks.policy import Policy
    from lit_posttrain.models.networks.reference import FrozenReference
    from lit_posttrain.models.networks.reward import RewardNetwork

__all__ = ["FrozenReference", "Policy", "Pretrained", "RewardNetwork"]


def __getattr__(name: str) -> Any:
    """Names that need transformers are loaded on first use, so that configuration alone stays quick."""
    if name == "Policy":
        from lit_posttrain.models.networks.policy import Policy

        return Policy
    if name == "FrozenReference":
        from lit_posttrain.models.networks.reference import FrozenReference

        return FrozenReference
    if name == "RewardNetwork":
        from lit_posttrain.models.networks.reward import RewardNetwork

        return RewardNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
