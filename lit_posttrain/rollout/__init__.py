"""From prompts to rollouts: the sampler and the loader."""

from lit_posttrain.rollout.sampling import Sampling

__all__ = ["Sampling"]
