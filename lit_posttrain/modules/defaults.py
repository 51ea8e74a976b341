"""Optimisers and schedules where a module is given none."""

import math
from functools import partial

import torch
from lightning import LightningModule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler


def offline_adamw(lr: float) -> MakeOptimizer:
    """Make AdamW with betas 0.9 and 0.95 and no weight decay, as for all that learns from given data."""
    return partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def cosine_to_zero(module: LightningModule, *, warmup: float = 0.03) -> MakeScheduler:
    """Make a cosine to 0 over the steps of the module's Trainer, after a warm-up over a share of them."""

    def cosine(optimizer: Optimizer) -> LRScheduler:
        steps = _steps(module)
        return get_cosine_schedule_with_warmup(optimizer, round(warmup * steps), steps)

    return cosine


def linear_to_zero(module: LightningModule, *, warmup: float = 0.0) -> MakeScheduler:
    """Make a line to 0 over the steps of the module's Trainer, after a warm-up over a share of them."""

    def linear(optimizer: Optimizer) -> LRScheduler:
        steps = _steps(module)
        return get_linear_schedule_with_warmup(optimizer, round(warmup * steps), steps)

    return linear


def _steps(module: LightningModule) -> int:
    steps = module.trainer.estimated_stepping_batches
    if steps == math.inf:
        raise ValueError("the learning rate falls to 0 at the end of the run: give the Trainer `max_steps`.")
    return int(steps)
