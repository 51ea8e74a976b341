"""Policies, reward networks, tokenizers and the frozen reference."""

import importlib
from typing import TYPE_CHECKING, Any

from lit_posttrain.models.loading import Pretrained

if TYPE_CHECKING:
    from lit_posttrain.models.networks.policy import Policy
    from lit_posttrain.models.networks.reference import FrozenReference
    from lit_posttrain.models.networks.reward import RewardNetwork

__all__ = ["FrozenReference", "Policy", "Pretrained", "RewardNetwork"]


_HOME = {"Policy": "policy", "FrozenReference": "reference", "RewardNetwork": "reward"}


def __getattr__(name: str) -> Any:
    """Names that need transformers are loaded on first use, so that configuration alone stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.networks.{_HOME[name]}"), name)
