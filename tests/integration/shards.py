"""Jobs with the weights dealt out (FSDP2) and not; `python -m tests.integration.shards FOLDER` is one rank of two.

Model and prompts are those of `ranks`: the prompts decide how many tokens each rank gets.
"""

import json
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra.core.global_hydra import GlobalHydra
from lightning import Callback, LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import ConstantLR
from transformers import AutoModelForCausalLM

from lit_posttrain import (
    DPO,
    GRPO,
    PPO,
    SFT,
    BuiltModel,
    Critic,
    InstructDataModule,
    PreferenceDataModule,
    PromptDataModule,
    RewardModel,
    Rollouts,
    Sampling,
)
from lit_posttrain.app.run import run
from lit_posttrain.batching import TrainingBatch
from lit_posttrain.callbacks.completions import CompletionsFile
from lit_posttrain.functional.random import sample_keys
from lit_posttrain.models.networks.policy import Policy, evaluation_mode
from lit_posttrain.models.sharding import full_state_dict, reshard, shard, total_norm
from lit_posttrain.models.sharding import unsharded as whole_weights
from lit_posttrain.rollout.engine import sample_completions
from tests.composing import compose_train
from tests.conftest import EOS, _config
from tests.integration.cut_ranks import FSDP, differences
from tests.integration.ranks import (
    ALTERNATING,
    MAX_NEW_TOKENS,
    MIXED,
    RANK,
    WORLD_SIZE,
    make_model,
    make_tokenizer,
    make_trainer,
    reward,
)
from tests.integration.recording import StepRecorder, whole

SGD = {"optimizer": partial(torch.optim.SGD, lr=0.02), "scheduler": partial(ConstantLR, factor=1.0)}
SAMPLING = {"sampling": Sampling(max_new_tokens=MAX_NEW_TOKENS)}
PAIRS = [
    {"prompt": row["prompt"] + " ", "chosen": "c1 " * (1 + i % 5) + "w2", "rejected": f"w{i} " * (1 + 3 * i % 7) + "c2"}
    for i, row in enumerate(MIXED)
]
ROWS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
JUDGED = [{**row, "label": i % 3 > 0} for i, row in enumerate(ROWS)]
# The first of two ranks puts two of its three rows in one sequence, the second has none that fit together.
UNEVEN = [{"prompt": "c1 ", "completion": "c2 " * count} for count in (1, 1, 2, 7, 8)]
DEALT_OUT = ("gpt2", "llama", "gemma2", "gpt_neox", "opt_350m")


class Recorder(StepRecorder):
    """The gradients of all that is trained."""

    def watched(self, pl_module):
        return [(name, parameter) for name, parameter in pl_module.named_parameters() if parameter.requires_grad]


class KeepSteps(Callback):
    """A checkpoint of each of these optimiser steps, `step=<number>.ckpt`."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.paths = {step: folder / f"step={step}.ckpt" for step in steps}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in self.paths:
            trainer.save_checkpoint(self.paths[trainer.global_step], weights_only=False)


@dataclass(frozen=True)
class Job:
    """A fit, by how its module and its data are made."""

    module: Callable[..., Any]
    data: Callable[[], LightningDataModule]
    trainer: dict[str, Any]
    rewards: tuple[Any, ...] = ()
    callbacks: tuple[Callable[[Path], Callback], ...] = field(default=())

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        torch.manual_seed(0)
        module = self.module(BuiltModel(make_model(dtype), tokenizer=make_tokenizer()), *self.rewards)
        if isinstance(module, RewardModel):
            module.build_networks()  # before anything else draws: its head is random
        return module

    def fit(
        self,
        folder: Path,
        module: Any,
        *callbacks: Callback,
        sharded: bool = False,
        ckpt_path: Path | None = None,
        **trainer: Any,
    ) -> dict[str, Any]:
        """Gradients and metrics of each step, the last weights; on the first rank where they are dealt out."""
        recorder = Recorder()
        strategy = {"strategy": fsdp2()} if sharded else {}
        every = [recorder, *(make(folder) for make in self.callbacks), *callbacks]
        engine = make_trainer(folder, *every, **{**self.trainer, **strategy, **trainer})
        engine.fit(module, self.data(), ckpt_path=ckpt_path, weights_only=True)
        dealt_out = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        assert dealt_out == sharded
        return {
            "gradients": recorder.gradients,
            "metrics": recorder.logged,
            "weights": full_state_dict(module),
            "step": engine.global_step,
        }


def fsdp2(**settings: Any) -> ModelParallelStrategy:
    sizes = {"data_parallel_size": WORLD_SIZE, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    return ModelParallelStrategy(timeout=timedelta(seconds=60), **{**sizes, **settings})


def completions_file(folder: Path) -> CompletionsFile:
    return CompletionsFile(folder / "completions.jsonl")


online = partial(Job, rewards=(reward,), callbacks=(completions_file,))

# In double precision, to be compared with one process.
EXACT: dict[str, Job] = {
    # 11 prompts in batches of 5, 5 and 1: in the third rollout a rank has none
    "ppo": online(
        partial(
            PPO,
            group_size=2,
            rollouts=Rollouts(num_epochs=1, num_minibatches=2),
            kl_coef=0.2,
            critic=Critic(lr=0.02),
            **SGD,
            **SAMPLING,
        ),
        lambda: PromptDataModule(MIXED, batch_size=5),
        {"max_steps": 6, "gradient_clip_val": 0.5, "limit_val_batches": 0},
    ),
    # completions of one rank end at once, those of the other never
    "shared": online(
        partial(
            PPO,
            critic="shared",
            group_size=4,
            rollouts=Rollouts(num_epochs=1, num_minibatches=2),
            kl_coef=0.0,
            **SGD,
            **SAMPLING,
        ),
        lambda: PromptDataModule(ALTERNATING, batch_size=4, shuffle=False),
        {"max_steps": 2, "accumulate_grad_batches": 2, "limit_val_batches": 0},
    ),
    "grpo": online(
        partial(GRPO, group_size=4, kl_coef=0.05, max_resample_batches=2, **SGD, **SAMPLING),
        lambda: PromptDataModule(ALTERNATING, batch_size=4, shuffle=False),
        {"max_steps": 2, "limit_val_batches": 0},
    ),
    "sft": Job(
        partial(SFT, label_smoothing=0.1, **SGD),
        lambda: InstructDataModule(ROWS, batch_size=5, val_path=UNEVEN, val_batch_size=5, packing=True),
        {"max_steps": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    ),
    "dpo": Job(
        partial(DPO, **SGD),
        lambda: PreferenceDataModule(PAIRS, batch_size=5, val_path=PAIRS[:3], val_batch_size=2),
        {"max_steps": 3, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    ),
    "kto": Job(
        partial(DPO, loss="kto", precompute_reference=False, **SGD),
        lambda: PreferenceDataModule(JUDGED, batch_size=5),
        {"max_steps": 2},
    ),
    "reward_model": Job(
        partial(RewardModel, normalization="standardize", **SGD),
        lambda: PreferenceDataModule(PAIRS, batch_size=5, val_path=PAIRS[:3], val_batch_size=2),
        {"max_steps": 3},
    ),
}
OFFLINE = ("sft", "dpo", "kto", "reward_model")

# In single precision, with AdamW, a schedule that asks how long the run will be, a critic that learns alone at first.
TRAINED = Job(
    partial(
        PPO,
        group_size=2,
        rollouts=Rollouts(num_epochs=2, num_minibatches=2),
        kl_coef=0.1,
        critic=Critic(lr=3e-3, warmup_steps=2),
        optimizer=partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1),
        **SAMPLING,
    ),
    lambda: PromptDataModule(MIXED[:10], batch_size=5, val_path=MIXED[:3], val_batch_size=2),  # 8 steps an epoch
    # an end in epochs, so that the schedule asks for the data before a checkpoint is read
    {"max_epochs": 2, "max_steps": 10, "gradient_clip_val": 0.1, "num_sanity_val_steps": -1},
    rewards=(reward,),
)
RESUMED = (1, 8)  # while the critic learns alone and in the middle of a rollout; at the end of an epoch
# With the default schedule, too.
TAUGHT = Job(
    partial(SFT, optimizer=partial(torch.optim.AdamW, lr=1e-3)),
    lambda: InstructDataModule(ROWS, batch_size=4),  # 3 steps an epoch
    {"max_epochs": 2},
)
# Weights in half precision, of policy, critic and reference.
HALVED = online(
    partial(
        PPO,
        group_size=2,
        rollouts=Rollouts(num_epochs=1),
        kl_coef=0.2,
        critic=Critic(lr=0.02),
        **SGD,
        **SAMPLING,
    ),
    lambda: PromptDataModule(MIXED[:8], batch_size=4, val_path=MIXED[:3], val_batch_size=2),
    {"max_steps": 2, "precision": "bf16-true", "gradient_clip_val": 0.1, "num_sanity_val_steps": -1},
)


def trained(folder: Path) -> dict[str, Any]:
    """Weights dealt out; then the same rollouts, each process with all weights."""
    results, rollouts = {}, []
    module = TRAINED.build(torch.float32)
    make_rollout = module.make_rollout

    def remember(*arguments: Any) -> Any:
        rollouts.append(deepcopy(made := make_rollout(*arguments)))
        return made

    module.make_rollout = remember
    keep = KeepSteps(folder / "checkpoints", *RESUMED)
    results["sharded"] = TRAINED.fit(folder, module, keep, sharded=True)
    module.save_pretrained(folder / "export")
    results["exported"] = module.exported_weights()
    before = torch.load(folder / "checkpoints" / "step=8.ckpt", weights_only=True)
    module.load_state_dict(before["state_dict"])
    results["loaded"] = full_state_dict(module)

    other = TRAINED.build(torch.float32)
    other.make_rollout = lambda rows, index, more_rows: rollouts[index]
    results["whole"] = TRAINED.fit(folder / "whole", other)
    other.save_pretrained(folder / "whole" / "export")
    return results


def resumed(folder: Path, job: Job, checkpoint: Path, **strategy: Any) -> dict[str, Any]:
    return job.fit(folder, job.build(torch.float32), sharded=WORLD_SIZE > 1, ckpt_path=checkpoint, **strategy)


def taught(folder: Path) -> dict[str, Any]:
    """A checkpoint, which is a file, or a folder with a part for each rank."""
    results = {}
    for kind, in_parts in (("file", False), ("parts", True)):
        keep = KeepSteps(folder / kind, 2)
        strategy = {"strategy": fsdp2(save_distributed_checkpoint=in_parts)}
        results[kind] = TAUGHT.fit(folder, TAUGHT.build(torch.float32), keep, sharded=True, **strategy)
    return results


def refusals(folder: Path) -> dict[str, str]:
    """What is said of an adapter, and of layers that are split."""
    said = {}
    job = EXACT["sft"]
    lora = get_peft_model(make_model(torch.float32), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))
    split = fsdp2(data_parallel_size=1, tensor_parallel_size=WORLD_SIZE)
    for name, model, strategy in (
        ("lora", lambda: lora, fsdp2()),
        ("split", make_model(torch.float32), split),
    ):
        module = SFT(BuiltModel(model, tokenizer=make_tokenizer()))
        try:
            job.fit(folder, module, sharded=True, strategy=strategy)
        except ValueError as error:
            said[name] = str(error)
    return said


def command(folder: Path, *overrides: str) -> None:
    """What the command line does, without the cost of starting it."""
    GlobalHydra.instance().clear()
    folder.mkdir(parents=True, exist_ok=True)  # as Hydra does
    small = ["logger=csv", "algo=ppo", "algo.group_size=2", "data.batch_size=3", "algo.sampling.max_new_tokens=24"]
    small += [
        "data.path.num_prompts=8",
        "data.path.num_validation=5",
        "algo.validation.num_samples=1",
        "trainer.max_steps=2",
    ]
    trainer = ["trainer=fsdp", "trainer.accelerator=cpu"] if WORLD_SIZE > 1 else []
    quiet = ["+trainer.enable_progress_bar=false"]
    run(compose_train(*small, "val_every_steps=1", *trainer, *quiet, *overrides, run_dir=folder))


def family(name: str) -> dict[str, float]:
    """How far a policy is from one with all weights: its completions, log-probs and gradients, and its shards."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(name), dtype=torch.float64)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model).train()
    plain = deepcopy(policy)
    shard(policy, init_device_mesh("cpu", (WORLD_SIZE,)))
    policy.try_out()
    reshard(policy)

    prompts = [[2, 3, 4][: 1 + i] for i in range(3 - 2 * RANK)]  # three of one rank and one of the other
    keys = sample_keys(torch.arange(len(prompts)), num_samples=2, seed=RANK)
    sampled = []
    for each in (policy, plain):
        with whole_weights(each), evaluation_mode(each):
            settings = {"sampling": Sampling(max_new_tokens=4 + 4 * RANK), "num_samples": 2, "keys": keys}
            sampled.append(sample_completions(each.model, prompts, **settings, eos_ids=[EOS], pad_id=0)[0])
    got, want = sampled
    batch = TrainingBatch(**vars(want), loss_mask=want.completion_mask)
    logprobs = [each(batch).logprobs for each in (policy, plain)]
    for each in logprobs:
        each.sum().backward()
    gradients = [parameter.grad / WORLD_SIZE for parameter in plain.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    pairs = list(zip(policy.parameters(), gradients, strict=True))
    return {
        "completions": float((got.completion_ids != want.completion_ids).sum()),
        "logprobs": (logprobs[0] - logprobs[1]).abs().max().item(),
        "gradients": max((whole(p.grad) - gradient).abs().max().item() for p, gradient in pairs),
        "norm": abs(total_norm([p.grad for p, _ in pairs]) - nn.utils.get_total_norm(gradients)).item(),
        "shards": sum(isinstance(module, FSDPModule) for module in policy.modules()),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)

    def save(name: str, result: Any) -> None:
        torch.save(result, folder / f"{name}-{RANK}.pt")

    for name, job in EXACT.items():
        save(name, job.fit(folder / name, job.build(), sharded=True))
    for name in OFFLINE:
        save(f"{name}-ddp", EXACT[name].fit(folder / f"{name}-ddp", EXACT[name].build()))
    save("trained", trained(folder / "trained"))
    for step in RESUMED:
        checkpoint = folder / "trained" / "checkpoints" / f"step={step}.ckpt"
        save(f"trained-from-{step}", resumed(folder / f"from-{step}", TRAINED, checkpoint))
    save("halved", HALVED.fit(folder / "halved", HALVED.build(torch.float32), sharded=True))
    save("taught", taught(folder / "taught"))
    for kind in ("file", "parts"):
        save(f"taught-{kind}", resumed(folder / f"from-{kind}", TAUGHT, folder / "taught" / kind / "step=2.ckpt"))
    command(folder / "command")
    last = folder / "command" / "checkpoints" / "last.ckpt"
    command(folder / "validated", "mode=validate", f"ckpt_path={last}")
    command(folder / "predicted", "mode=predict")
    save("families", {name: family(name) for name in DEALT_OUT})
    (folder / f"refusals-{RANK}.json").write_text(json.dumps(refusals(folder / "refusals")))
    (folder / f"killed-{RANK}.json").write_text(json.dumps(differences(FSDP, folder / "killed")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
