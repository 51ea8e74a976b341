"""Runs of the real modules with a policy that is a table: a bandit (AT-40) and a tree of two tokens (AT-41)."""

from functools import partial

import torch
from lightning import Trainer
from transformers import get_linear_schedule_with_warmup

from lit_posttrain import PromptDataModule, Sampling
from tests.tabular import FIRST_ACTION, make_table, make_tokenizer

BETA = 0.5
REFERENCE = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
TREE = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)  # of first and second token, reference 1/2


def bandit_reward(completion_ids):
    return [REWARDS[ids[0] - FIRST_ACTION].item() for ids in completion_ids]


def tree_reward(completion_ids):
    return [TREE[ids[0] - FIRST_ACTION, ids[1] - FIRST_ACTION].item() for ids in completion_ids]


def train(algorithm, *, reference, reward, length, steps, folder, lr=0.1, batch_size=8, callbacks=(), **settings):
    module = algorithm(
        make_table(reference),
        reward,
        **{
            "tokenizer": make_tokenizer(len(reference)),
            "sampling": Sampling(max_new_tokens=length),
            "kl_coef": BETA,
            "optimizer": partial(torch.optim.Adam, lr=lr),
            "scheduler": partial(get_linear_schedule_with_warmup, num_warmup_steps=0, num_training_steps=steps),
            **settings,
        },
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=PromptDataModule([{"prompt": "go"}] * (8 * batch_size), batch_size=batch_size))
    return module
