"""The same jobs on one process and on several; `python -m tests.integration.ranks FOLDER` is one rank of the latter.

A model of its own kind: after a curt word a completion soon ends, after any other it never does, so that the prompts
decide how many tokens each rank gets.
"""

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lit_posttrain import (
    GRPO,
    PPO,
    RLOO,
    BuiltModel,
    Critic,
    PromptDataModule,
    ReinforcePlusPlus,
    Rollouts,
    Sampling,
    Validation,
)
from lit_posttrain.app.run import run
from lit_posttrain.callbacks.completions import CompletionsFile
from tests.composing import compose_train
from tests.integration.conftest import Recorder
from tests.integration.cut_ranks import DDP, differences

WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("LOCAL_RANK", "0"))

EOS = 1
CURT = [f"c{i}" for i in range(18)]
ENDLESS = [f"w{i}" for i in range(18)]
WORDS = ["<pad>", "<eos>", *CURT, *ENDLESS]
MAX_NEW_TOKENS = 16

# An algorithm is compared by a line here: anything that is called with policy, rewards, sampling, optimizer and
# scheduler. Each makes 4 optimiser steps of a rollout or 1.
ALGORITHMS: dict[str, Callable[..., Any]] = {
    "grpo": partial(
        GRPO, group_size=4, rollouts=Rollouts(num_epochs=2, num_minibatches=2), kl_coef=0.05, scale="batch"
    ),
    "dapo": partial(
        GRPO, group_size=4, max_resample_batches=2, overlong_fraction=0.5, rollouts=Rollouts(num_minibatches=2)
    ),
    "rloo": partial(RLOO, group_size=4, kl_coef=0.2, rollouts=Rollouts(num_epochs=2)),
    "reinforce_pp": partial(ReinforcePlusPlus, group_size=2, kl_coef=0.2, rollouts=Rollouts(num_minibatches=2)),
    "ppo": partial(
        PPO,
        group_size=2,
        rollouts=Rollouts(num_epochs=2, num_minibatches=2),
        kl_coef=0.2,
        kl_target=0.5,
        kl_horizon=100,
        critic=Critic(lr=0.02),
    ),
    "dr_grpo": partial(GRPO, group_size=4, aggregation="constant", scale="none", entropy_coef=0.01),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="c0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="c0")


def make_model(dtype: torch.dtype) -> GPT2LMHeadModel:
    """The first coordinate of an embedding says of which kind a word is, and the head listens to it."""
    torch.manual_seed(0)
    size = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=len(WORDS), eos_token_id=EOS, tie_word_embeddings=False, **size)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
        kind = torch.tensor([0.0, 0.0, *[1.0] * len(CURT), *[-1.0] * len(ENDLESS)])
        model.transformer.wte.weight[:, 0] = 8 * kind
        model.lm_head.weight[:, 0] = 1.5 * kind
        model.lm_head.weight[EOS, 0] = 2.0
    return model.to(dtype).eval()


def reward(prompts, completions, **columns):
    """Unequal rewards of unequal completions."""
    return [sum(int(word[1:]) % 2 for word in text.split()) - 0.1 * len(text) for text in completions]


def length(completion_ids, **columns):
    """A score for validation."""
    return [float(len(ids) > 3) for ids in completion_ids]


def prompt(index: int, words: list[str]) -> dict[str, Any]:
    return {"prompt": " ".join(words[(index * 5 + j) % len(words)] for j in range(1 + index % 3))}


MIXED = [prompt(i, CURT if i % 3 else ENDLESS) for i in range(11)]
# In batches of an even number of them the first of two ranks gets all curt prompts.
ALTERNATING = [prompt(i, ENDLESS if i % 2 else CURT) for i in range(8)]


def keep_every(steps: int, folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1)


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    distributed = {"strategy": DDPStrategy(timeout=timedelta(seconds=60))} if WORLD_SIZE > 1 else {}
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": WORLD_SIZE,
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **distributed,
            **settings,
        },
        callbacks=list(callbacks),
    )


def make_module(algorithm: str = "grpo", *, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    return ALGORITHMS[algorithm](
        BuiltModel(make_model(dtype), tokenizer=make_tokenizer()),
        reward,
        **{
            "sampling": Sampling(max_new_tokens=MAX_NEW_TOKENS),
            "optimizer": partial(torch.optim.SGD, lr=0.02),
            "scheduler": partial(ConstantLR, factor=1.0),
            **settings,
        },
    )


def fit(
    folder: Path,
    *,
    data: LightningDataModule,
    callbacks: tuple[Callback, ...] = (),
    ckpt_path: Path | None = None,
    trainer: dict[str, Any],
    **module: Any,
) -> dict[str, Any]:
    """Train in `folder`; gradients and metrics of each step, the last weights."""
    recorder = Recorder()
    engine = make_trainer(folder, recorder, CompletionsFile(folder / "completions.jsonl"), *callbacks, **trainer)
    learner = make_module(**module)
    engine.fit(learner, data, ckpt_path=ckpt_path, weights_only=True)
    return {
        "gradients": recorder.gradients,
        "metrics": recorder.logged,
        "weights": learner.exported_weights(),
        "step": engine.global_step,
    }


def prompts_of(rows: list[dict], batch_size: int, *, shuffle: bool = True) -> PromptDataModule:
    return PromptDataModule(rows, batch_size=batch_size, shuffle=shuffle)


def train(folder: Path, algorithm: str, dtype: torch.dtype) -> dict[str, Any]:
    """11 prompts in batches of 5, 5 and 1: shares of 3 and 2 prompts, and of none at the end of an epoch."""
    whole_epoch = algorithm in ("grpo", "ppo") and dtype == torch.float64
    steps = {"max_steps": 12 if whole_epoch else 4, "accumulate_grad_batches": 2}
    return fit(folder, algorithm=algorithm, dtype=dtype, data=prompts_of(MIXED, 5), trainer=steps)


def unequal(folder: Path, **module: Any) -> dict[str, Any]:
    return fit(folder, data=prompts_of(ALTERNATING, 4, shuffle=False), trainer={"max_steps": 4}, **module)


def validate(folder: Path) -> dict[str, Any]:
    """Odd numbers of prompts, fewer prompts than ranks, and a stock DataLoader that Lightning shards itself."""
    scores = {}
    for name, rows, batch_size in (("seven", MIXED[:7], 4), ("one", MIXED[:1], 4), ("stock", MIXED[:7], 2)):
        engine = make_trainer(folder)
        data = PromptDataModule(MIXED, val_path=rows, val_batch_size=batch_size)
        stock = DataLoader(rows, batch_size=batch_size, collate_fn=list)
        (scores[name],) = engine.validate(
            make_module(validation=Validation(metrics={"length": length})),
            stock if name == "stock" else data,
            verbose=False,
        )
    return scores


class Stock(LightningDataModule):
    """Somebody's own loaders: batches of one prompt, of which two ranks get 4 and 3."""

    def train_dataloader(self):
        return DataLoader(MIXED[:7], batch_size=1, shuffle=True, collate_fn=list)

    def val_dataloader(self):
        return DataLoader(MIXED[:7], batch_size=2, collate_fn=list)


def stock(folder: Path) -> dict[str, Any]:
    return fit(folder, algorithm="dr_grpo", data=Stock(), trainer={"max_epochs": 2})


RESUMABLE = {"trainer": {"max_steps": 14, "accumulate_grad_batches": 2}, "dtype": torch.float32}


def stopped(folder: Path) -> dict[str, Any]:
    """A run that keeps a checkpoint of every step: 3 rollouts of 4 steps in an epoch."""
    keep = keep_every(1, folder / "checkpoints")
    return fit(folder, data=prompts_of(MIXED, 5), callbacks=(keep,), **RESUMABLE)


def resume(folder: Path, checkpoint: Path) -> dict[str, Any]:
    return fit(folder, data=prompts_of(MIXED, 5), ckpt_path=checkpoint, **RESUMABLE)


def command(folder: Path, mode: str) -> dict[str, Any]:
    """What the command line does on each rank, without the cost of starting it."""
    GlobalHydra.instance().clear()
    folder.mkdir(parents=True, exist_ok=True)  # as Hydra does
    small = ["logger=csv", "data.path.num_prompts=8", "data.path.num_validation=7", "data.val_batch_size=3"]
    trainer = ["trainer=ddp", "trainer.accelerator=cpu"] if WORLD_SIZE > 1 else []
    quiet = ["+trainer.enable_progress_bar=false"]
    run(compose_train(f"mode={mode}", *small, *trainer, *quiet, run_dir=folder))
    return {}


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{f"{name}-fp64": partial(train, algorithm=name, dtype=torch.float64) for name in ALGORITHMS},
    **{f"{name}-fp32": partial(train, algorithm=name, dtype=torch.float32) for name in ALGORITHMS},
    "unequal": unequal,
    "masked": partial(unequal, mask_truncated=True),
    "validate": validate,
    "stock": stock,
    "stopped": stopped,
    "command-predict": partial(command, mode="predict"),
    "command-validate": partial(command, mode="validate"),
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, job in JOBS.items():
        torch.save(job(folder / name), folder / f"{name}-{RANK}.pt")
    for step in (1, 4, 12):
        checkpoint = folder / "stopped" / "checkpoints" / f"step={step}.ckpt"
        torch.save(resume(folder / f"resumed-{step}", checkpoint), folder / f"resumed-{step}-{RANK}.pt")
    checkpoints = folder.parent / "one_process" / "stopped" / "checkpoints"
    torch.save(resume(folder / "joined", checkpoints / "step=4.ckpt"), folder / f"joined-{RANK}.pt")
    try:
        resume(folder / "refused", checkpoints / "step=1.ckpt")
    except ValueError as error:
        (folder / f"refused-{RANK}.json").write_text(json.dumps(str(error)))
    (folder / f"killed-{RANK}.json").write_text(json.dumps(differences(DDP, folder / "killed")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
