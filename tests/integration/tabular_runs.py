"""Runs of the real modules with a policy that is a table: a bandit and a tree of two tokens."""

from functools import partial

import torch
from transformers import get_linear_schedule_with_warmup

from lit_posttrain import BuiltModel, PromptDataModule, Sampling
from tests.groups import grouped
from tests.integration.ranks import make_trainer
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
        BuiltModel(make_table(reference), tokenizer=make_tokenizer(len(reference))),
        reward,
        **{
            "sampling": Sampling(max_new_tokens=length),
            "kl_coef": BETA,
            "optimizer": partial(torch.optim.Adam, lr=lr),
            "scheduler": partial(get_linear_schedule_with_warmup, num_warmup_steps=0, num_training_steps=steps),
            **grouped(settings),
        },
    )
    trainer = make_trainer(folder, *callbacks, max_steps=steps, limit_val_batches=0)
    trainer.fit(module, datamodule=PromptDataModule([{"prompt": "go"}] * (8 * batch_size), batch_size=batch_size))
    return module
