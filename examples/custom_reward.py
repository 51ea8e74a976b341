"""A reward function of your own, by the command line and in Python.

A reward gets the prompts, their completions and every column of the data by its name, and gives a number for each
completion, or None where it cannot tell.

    python train.py reward=custom reward.path=examples/custom_reward.py:right_length
    python examples/custom_reward.py
"""

from functools import partial

import torch
from lightning import Trainer

from lit_posttrain import GRPO, PromptDataModule, Sampling
from lit_posttrain.tasks.gridworld import PromptGenerator


def right_length(prompts, completions, truncated, shortest, **columns):
    """Reward by how near a path's length is to that of the shortest one; one that was cut off has no length yet.

    Args:
        prompts: a text for each completion.
        completions: what the model wrote, texts.
        truncated: whether each of them was cut off.
        shortest: a column of the data: moves of the shortest path.
        **columns: all other columns.
    """
    rewards = []
    for text, cut_off, moves in zip(completions, truncated, shortest, strict=True):
        rewards.append(None if cut_off else 1 / (1 + abs(len(text.split()) - moves)))
    return rewards


if __name__ == "__main__":
    torch.set_num_threads(1)  # `tiny` is too small to be shared between cores
    module = GRPO(
        "tiny",
        rewards=[right_length],
        group_size=8,
        sampling=Sampling(max_new_tokens=32),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
    )
    prompts = PromptDataModule(PromptGenerator(num_prompts=512, num_validation=24), batch_size=16)
    trainer = Trainer(accelerator="cpu", max_steps=12, log_every_n_steps=1, logger=False, enable_checkpointing=False)
    (before,) = trainer.validate(module, prompts)
    trainer.fit(module, prompts)
    (after,) = trainer.validate(module, prompts)
    print(f"val/reward: {before['val/reward']:.3f} before, {after['val/reward']:.3f} after")
