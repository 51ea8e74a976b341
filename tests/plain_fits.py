"""The seven algorithms in somebody's own script: a plain Trainer, stock callbacks, loaders and no DataModule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain import (
    DPO,
    GRPO,
    PPO,
    RLOO,
    SFT,
    BuiltModel,
    Critic,
    InstructDataModule,
    PreferenceDataModule,
    ReinforcePlusPlus,
    RewardModel,
    Rollouts,
    Sampling,
    Validation,
)
from lit_posttrain.models.weights import tensors_sha256

WORDS = [f"w{i}" for i in range(38)]
PROMPTS = [{"prompt": " ".join(WORDS[(i * 7 + j) % 38] for j in range(1 + i % 5))} for i in range(10)]
DEMONSTRATIONS = [{**row, "completion": " ".join(WORDS[i % 7 : i % 7 + 3])} for i, row in enumerate(PROMPTS)]
PAIRS = [
    {**row, "chosen": " ".join(WORDS[i : i + 2]), "rejected": " ".join(WORDS[20 - i : 23 - i])}
    for i, row in enumerate(PROMPTS)
]


def even_words(prompts, completions, **columns):
    """Unequal rewards of unequal completions."""
    return [sum(int(word[1:]) % 2 == 0 for word in text.split()) - 0.1 * len(text) for text in completions]


def shortness(prompts, completions, **columns):
    """For any text."""
    return [-float(len(text)) for text in completions]


class Stream(IterableDataset):
    """Prompts without a length."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self):
        while True:
            yield from self.rows


@dataclass
class PlainFit:
    """A fit of one algorithm, with three optimiser steps or rollouts in an epoch.

    Args:
        algorithm: its name.
        model: makes the language model.
        tokenizer: its tokenizer.
        settings: of the Trainer, beside the usual ones.
        callbacks: makes further callbacks.
        rows: in place of the usual rows or prompts.
        batch_size: rows or prompts of a step.
        loader: "stock" for a `DataLoader` that shuffles, "ours" for that of a DataModule without a Trainer, "stream".
        allow_changed_data: the module's attribute.
    """

    algorithm: str
    model: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    rows: list[dict[str, Any]] | None = None
    batch_size: int = 4
    loader: str = "ours"
    allow_changed_data: bool = False

    def __call__(self, folder: Path, checkpoint: Path | None = None) -> tuple[LightningModule, Trainer]:
        """Fit in a folder, from a checkpoint where there is one."""
        module = self.module()
        module.exact_resume.allow_changed_data = self.allow_changed_data
        trainer = Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "max_steps": 10,
                "max_epochs": -1,
                "val_check_interval": 3 * self.settings.get("accumulate_grad_batches", 1),
                "check_val_every_n_epoch": None,
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": folder,
                **self.settings,
            },
            callbacks=[
                ModelCheckpoint(
                    folder, filename="last", every_n_train_steps=2, save_top_k=1, enable_version_counter=False
                ),
                *self.callbacks(),
                ModelCheckpoint(folder, filename="best", monitor=self.metric, mode="max", enable_version_counter=False),
            ],
        )
        train, validation = self.loaders()
        torch.manual_seed(5)
        trainer.fit(module, train, validation, ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    @property
    def online(self) -> bool:
        return self.algorithm in ("grpo", "ppo", "rloo", "reinforce_pp")

    @property
    def metric(self) -> str:
        return "val/reward" if self.online else "val/loss"

    def module(self) -> Any:
        model = BuiltModel(self.model(), tokenizer=self.tokenizer)
        shared = {
            "optimizer": partial(torch.optim.AdamW, lr=1e-2),
            "scheduler": partial(LinearLR, start_factor=0.1, total_iters=20),
        }
        if self.algorithm == "reward_model":
            return RewardModel(model, **shared)
        shared["sampling"] = Sampling(max_new_tokens=6)
        offline = {"sft": SFT, "dpo": DPO}
        if self.algorithm in offline:
            return offline[self.algorithm](model, **shared)
        online = {
            "grpo": partial(GRPO, group_size=2, rollouts=Rollouts(num_minibatches=2), kl_coef=0.05, scale="none"),
            "ppo": partial(PPO, rollouts=Rollouts(num_epochs=2), kl_target=0.5, kl_horizon=50, critic=Critic(lr=0.01)),
            "rloo": partial(RLOO, group_size=2),
            "reinforce_pp": partial(ReinforcePlusPlus, group_size=2, rollouts=Rollouts(num_minibatches=2)),
        }
        return online[self.algorithm](model, even_words, validation=Validation(num_samples=1), **shared)

    def loaders(self) -> tuple[Iterable[Any], Iterable[Any]]:
        if self.online:
            rows = self.rows or PROMPTS
            data = Stream(rows) if self.loader == "stream" else rows
            train = DataLoader(data, self.batch_size, shuffle=self.loader != "stream", collate_fn=list)
            return train, DataLoader(PROMPTS[:3], 2, collate_fn=list)
        made, rows = (InstructDataModule, DEMONSTRATIONS) if self.algorithm == "sft" else (PreferenceDataModule, PAIRS)
        data = made(self.rows or rows, val_path=rows[:3], tokenizer=self.tokenizer, batch_size=self.batch_size)
        data.setup("fit")
        train = data.train_dataloader()
        if self.loader == "stock":
            train = DataLoader(list(train), batch_size=None, shuffle=True)
        return train, data.val_dataloader()[0]


def weights(module: Any) -> str:
    return tensors_sha256(module.exported_weights())
