"""Post-training of language models as a collection of PyTorch Lightning modules."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_posttrain.algos.dpo import DPO
    from lit_posttrain.algos.grpo import GRPO
    from lit_posttrain.algos.ppo import PPO
    from lit_posttrain.algos.reinforce_pp import ReinforcePlusPlus
    from lit_posttrain.algos.reward_model import RewardModel
    from lit_posttrain.algos.rloo import RLOO
    from lit_posttrain.algos.sft import SFT
    from lit_posttrain.data.instruct import InstructDataModule
    from lit_posttrain.data.preferences import PreferenceDataModule
    from lit_posttrain.data.prompts import PromptDataModule
    from lit_posttrain.files.checkpoints import AtomicCheckpointIO
    from lit_posttrain.models.loading import Pretrained
    from lit_posttrain.models.lora import Lora
    from lit_posttrain.rewards.protocol import RewardFunctions
    from lit_posttrain.rollout.sampling import Sampling

__version__ = "0.1.0"

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "SFT",
    "AtomicCheckpointIO",
    "InstructDataModule",
    "Lora",
    "PreferenceDataModule",
    "Pretrained",
    "PromptDataModule",
    "ReinforcePlusPlus",
    "RewardFunctions",
    "RewardModel",
    "Sampling",
    "__version__",
]

_HOME = {
    "AtomicCheckpointIO": "lit_posttrain.files.checkpoints",
    "DPO": "lit_posttrain.algos.dpo",
    "GRPO": "lit_posttrain.algos.grpo",
    "InstructDataModule": "lit_posttrain.data.instruct",
    "PPO": "lit_posttrain.algos.ppo",
    "Lora": "lit_posttrain.models.lora",
    "PreferenceDataModule": "lit_posttrain.data.preferences",
    "Pretrained": "lit_posttrain.models.loading",
    "RLOO": "lit_posttrain.algos.rloo",
    "SFT": "lit_posttrain.algos.sft",
    "ReinforcePlusPlus": "lit_posttrain.algos.reinforce_pp",
    "PromptDataModule": "lit_posttrain.data.prompts",
    "RewardFunctions": "lit_posttrain.rewards.protocol",
    "RewardModel": "lit_posttrain.algos.reward_model",
    "Sampling": "lit_posttrain.rollout.sampling",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use: `import lit_posttrain` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
