"""Post-training of language models as a collection of PyTorch Lightning modules."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_posttrain.algos.critic import Critic
    from lit_posttrain.algos.dpo import DPO
    from lit_posttrain.algos.grpo import GRPO
    from lit_posttrain.algos.ppo import PPO
    from lit_posttrain.algos.reinforce_pp import ReinforcePlusPlus
    from lit_posttrain.algos.reward_model import RewardModel
    from lit_posttrain.algos.rloo import RLOO
    from lit_posttrain.algos.sft import SFT
    from lit_posttrain.batching.tokens import MicroBatch, Rollout
    from lit_posttrain.data.instruct import InstructDataModule
    from lit_posttrain.data.preferences import PreferenceDataModule
    from lit_posttrain.data.prompts import PromptDataModule
    from lit_posttrain.files.checkpoints import AtomicCheckpointIO
    from lit_posttrain.functional.policy_losses import PolicyLoss
    from lit_posttrain.models.loading import BuiltModel, Pretrained
    from lit_posttrain.models.lora import Lora
    from lit_posttrain.modules.offline import OfflineModule
    from lit_posttrain.modules.online import OnlineModule, TokenLossInputs
    from lit_posttrain.modules.post_training import PostTrainingModule
    from lit_posttrain.rewards.protocol import RewardFunctions
    from lit_posttrain.rollout.options import Rollouts, Sampling, Validation

__version__ = "0.1.0"

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "RLOO",
    "SFT",
    "AtomicCheckpointIO",
    "BuiltModel",
    "Critic",
    "InstructDataModule",
    "Lora",
    "MicroBatch",
    "OfflineModule",
    "OnlineModule",
    "PolicyLoss",
    "PostTrainingModule",
    "PreferenceDataModule",
    "Pretrained",
    "PromptDataModule",
    "ReinforcePlusPlus",
    "RewardFunctions",
    "RewardModel",
    "Rollout",
    "Rollouts",
    "Sampling",
    "TokenLossInputs",
    "Validation",
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
    "BuiltModel": "lit_posttrain.models.loading",
    "Critic": "lit_posttrain.algos.critic",
    "MicroBatch": "lit_posttrain.batching.tokens",
    "Rollout": "lit_posttrain.batching.tokens",
    "PolicyLoss": "lit_posttrain.functional.policy_losses",
    "OfflineModule": "lit_posttrain.modules.offline",
    "OnlineModule": "lit_posttrain.modules.online",
    "TokenLossInputs": "lit_posttrain.modules.online",
    "PostTrainingModule": "lit_posttrain.modules.post_training",
    "Rollouts": "lit_posttrain.rollout.options",
    "Validation": "lit_posttrain.rollout.options",
    "Sampling": "lit_posttrain.rollout.options",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded on first use: `import lit_posttrain` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
