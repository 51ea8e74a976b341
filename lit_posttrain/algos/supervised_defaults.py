"""Optimiser and schedule of what learns from given data, where a module is given none."""

from functools import partial

import torch
from lightning import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup

from lit_posttrain.algos.training_module import MakeOptimizer, MakeScheduler

WARMUP = 0.03  # of all steps


def supervised_adamw(lr: float) -> MakeOptimizer:
    """AdamW with betas 0.9 and 0.95 and no weight decay."""
    return partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def warmup_cosine(module: LightningModule) -> MakeScheduler:
    """Cosine to 0 over the steps of the module's Trainer, after a warm-up over 3 % of them."""

    def cosine(optimizer: Optimizer) -> LRScheduler:
        steps = int(module.trainer.estimated_stepping_batches)
        return get_cosine_schedule_with_warmup(optimizer, round(WARMUP * steps), steps)

    return cosine
