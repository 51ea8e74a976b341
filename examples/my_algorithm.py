"""An algorithm of your own: REINFORCE whose advantage is the rank of a completion among those of its prompt.

It is told step by step in docs/own_algorithm.md.

    python train.py --config-dir examples/conf algo=my_algorithm recipe=tiny_grpo
    python examples/my_algorithm.py
"""

from functools import partial

import torch
from lightning import Trainer

from lit_posttrain import OnlineModule, PolicyLoss, PromptDataModule, Sampling
from lit_posttrain.rewards.gridworld import path_reward
from lit_posttrain.tasks.gridworld import PromptGenerator


class RankReinforce(OnlineModule):
    """Learns from wins and losses against the other completions of a prompt, however large the rewards are."""

    def advantages(self, rewards):
        """Give the share of wins minus that of losses, (B,), from -1 to 1; NaN wins and loses nothing."""
        groups = rewards.view(-1, self.group_size)
        ahead = (groups[:, :, None] > groups[:, None, :]).sum(2) - (groups[:, :, None] < groups[:, None, :]).sum(2)
        return (ahead / (self.group_size - 1)).flatten()

    def token_loss(self, inputs):
        """Give -A r of each token, (B, C), with r the ratio to the policy that sampled; nothing is clipped."""
        ratio = (inputs.logprobs - inputs.old_logprobs).exp()
        return PolicyLoss(-inputs.advantages * ratio, torch.zeros_like(inputs.mask))


if __name__ == "__main__":
    torch.set_num_threads(1)  # `tiny` is too small to be shared between cores
    adamw = partial(torch.optim.AdamW, lr=1e-3)
    module = RankReinforce("tiny", path_reward, group_size=8, sampling=Sampling(max_new_tokens=32), optimizer=adamw)
    prompts = PromptDataModule(PromptGenerator(num_prompts=512, num_validation=24), batch_size=16)
    trainer = Trainer(accelerator="cpu", max_steps=12, log_every_n_steps=1, logger=False, enable_checkpointing=False)
    (before,) = trainer.validate(module, prompts)
    trainer.fit(module, prompts)
    (after,) = trainer.validate(module, prompts)
    print(f"val/reward: {before['val/reward']:.3f} before, {after['val/reward']:.3f} after")
