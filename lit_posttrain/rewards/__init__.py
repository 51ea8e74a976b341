"""Rewards: the protocol of reward functions, loading them from a path, and verifiable ones."""

from lit_posttrain.rewards.loading import load_rewards
from lit_posttrain.rewards.protocol import RewardFunctions

__all__ = ["RewardFunctions", "load_rewards"]
