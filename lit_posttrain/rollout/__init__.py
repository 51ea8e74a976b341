"""From prompts to rollouts: engines, the collector, the loader, and what is told of them."""

from lit_posttrain.rollout.options import Rollouts, Sampling, Validation

__all__ = ["Rollouts", "Sampling", "Validation"]
