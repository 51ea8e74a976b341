"""Short runs, each on the second device and on the CPU."""

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR
from transformers import AutoModelForCausalLM

from lit_posttrain import (
    DPO,
    GRPO,
    PPO,
    RLOO,
    SFT,
    InstructDataModule,
    Lora,
    PreferenceDataModule,
    Pretrained,
    PromptDataModule,
    ReinforcePlusPlus,
    RewardModel,
    Sampling,
    Validation,
)
from lit_posttrain.app.run import run
from lit_posttrain.functional.random import accumulation_dtype
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.rewards.model import load_reward_model
from tests.composing import compose_train
from tests.device import second_device
from tests.groups import grouped
from tests.integration.ranks import MIXED, WORDS, length, make_model, make_tokenizer, reward

CPU, SECOND = "cpu", second_device.NAME
STEPS, KEPT = 3, 1  # optimiser steps of a job, and that of its checkpoint
PAIRS = [
    {"prompt": row["prompt"] + " ", "chosen": "c1 " * (1 + i % 5) + "w2", "rejected": f"w{i} " * (1 + 3 * i % 7) + "c2"}
    for i, row in enumerate(MIXED)
]
ROWS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
JUDGED = [{**row, "label": i % 3 > 0} for i, row in enumerate(ROWS)]

LEARNER = {
    "optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    "scheduler": partial(ConstantLR, factor=1.0),
}
FUSED = {**LEARNER, "optimizer": partial(torch.optim.AdamW, lr=1e-3, fused=True)}
WRITER = {**LEARNER, "sampling": Sampling(max_new_tokens=8), "validation": Validation(metrics={"length": length})}
NUCLEUS = {"sampling": Sampling(max_new_tokens=8, top_k=30, top_p=0.95)}


@dataclass(frozen=True)
class World:
    """A device, and the models that the jobs start from."""

    folder: Path
    device: str

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def reward_model(self) -> str:
        return str(self.folder / "reward_model")

    @property
    def place(self) -> dict[str, Any]:
        """Where a Trainer trains."""
        return {"accelerator": "cpu", "devices": 1} if self.device == CPU else second_device.second_trainer()

    def make(self) -> None:
        make_model(torch.float32).save_pretrained(self.model)
        network = RewardNetwork.from_causal_lm(make_model(torch.float32), pad_id=0, vocab_size=len(WORDS))
        network.save_pretrained(self.reward_model)
        for path in (self.model, self.reward_model):
            make_tokenizer().save_pretrained(path)


def prompts() -> PromptDataModule:
    return PromptDataModule(MIXED[:8], batch_size=4, val_path=MIXED[:3], val_batch_size=2)


def demonstrations(**settings: Any) -> InstructDataModule:
    held_out = {"val_path": ROWS[:3], "val_batch_size": 2, "val_prompts": prompts()}
    return InstructDataModule(ROWS, batch_size=5, **held_out, **settings)


def preferences(rows: list[dict] = PAIRS, **settings: Any) -> PreferenceDataModule:
    held_out = {"val_path": rows[:3], "val_batch_size": 2, "val_prompts": prompts()}
    return PreferenceDataModule(rows, batch_size=5, **held_out, **settings)


def online(algorithm: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return lambda model, world: algorithm(model, reward, **grouped({**WRITER, "group_size": 2, **settings}))


def offline(algorithm: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return lambda model, world: algorithm(model, **settings)


def with_learned_reward(model: Pretrained, world: World) -> GRPO:
    return GRPO(model, load_reward_model(world.reward_model, device=world.device), group_size=2, **WRITER)


def with_critic_of_a_reward_model(model: Pretrained, world: World) -> PPO:
    return PPO(model, reward, critic=world.reward_model, **WRITER)


def mixed_precision(world: World) -> dict[str, Any]:
    """That of `trainer=gpu`, with its rules; what the second device computes stays in float32."""
    return {} if world.device == CPU else {"plugins": MixedPrecision("bf16-mixed", device=world.device)}


@dataclass(frozen=True)
class Job:
    """A run.

    Args:
        module: makes it of a model, in a world.
        data: makes what it learns from.
        model: arguments of `Pretrained`.
        trainer: further settings of the Trainer, in a world.
        also: "resume" from a checkpoint; "predict" with the last weights.
        float64: whether the second device has it; Apple's GPUs do not.
    """

    module: Callable[[Pretrained, World], Any]
    data: Callable[[], LightningDataModule] = prompts
    model: dict[str, Any] = field(default_factory=dict)
    trainer: Callable[[World], dict[str, Any]] = lambda world: {}
    also: tuple[str, ...] = ()
    float64: bool = True

    def run(self, world: World) -> dict[str, Any]:
        """Metrics of the steps and of a validation, the last weights, and what is also asked for."""
        checkpoint = world.folder / f"{world.device}.ckpt"
        keep = Keep(checkpoint)
        module, trainer = self._fit(world, keep)
        result = {"steps": keep.metrics, "weights": on_cpu(module.exported_weights())}
        result["validated"] = trainer.validate(module, self.data(), verbose=False)[0]
        if "resume" in self.also:
            resumed, _ = self._fit(world, Keep(None), ckpt_path=checkpoint)
            result["resumed"] = on_cpu(resumed.exported_weights())
        if "predict" in self.also:
            result["predicted"] = trainer.predict(module, self.data())
        return result

    def _fit(self, world: World, keep: "Keep", **start: Any) -> tuple[Any, Trainer]:
        torch.manual_seed(0)
        module = self.module(Pretrained(world.model, **self.model), world)
        trainer = Trainer(
            **world.place,
            **self.trainer(world),
            max_steps=STEPS,
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=world.folder,
            callbacks=[keep],
        )
        trainer.fit(module, self.data(), weights_only=True, **start)
        return module, trainer


@dataclass(frozen=True)
class Command:
    """What the command line does, callbacks, digests and exports included."""

    overrides: tuple[str, ...]
    also: tuple[str, ...] = ()
    float64: bool = True

    def run(self, world: World) -> dict[str, Any]:
        """The last metrics and the exported weights."""
        folder = world.folder / f"command-{world.device}"
        folder.mkdir()  # as Hydra does
        place = [] if world.device == CPU else second_device.OVERRIDES
        run(compose_train(*self.overrides, *place, run_dir=folder))
        metrics = json.loads((folder / "summary.json").read_text())["metrics"]
        last = {name: values["last"] for name, values in metrics.items() if not name.startswith("throughput/")}
        export = AutoModelForCausalLM.from_pretrained(folder / "export").state_dict()
        return {"steps": [last], "weights": export, "validated": {}}


class Keep(Callback):
    """The metrics of every optimiser step, and a checkpoint."""

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.metrics.append({name: value.item() for name, value in trainer.callback_metrics.items()})
            if self.checkpoint is not None and trainer.global_step == KEPT:
                trainer.save_checkpoint(self.checkpoint)


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def deterministic(world: World) -> dict[str, Any]:
    return {"deterministic": True}


JOBS: dict[str, Job | Command] = {
    "command": Command(
        (
            *("logger=csv", "trainer.max_steps=1", "trainer.accumulate_grad_batches=1", "algo.group_size=2"),
            *("algo.validation.num_samples=1", "data.batch_size=2", "data.path.num_validation=2"),
        )
    ),
    "sft": Job(offline(SFT, label_smoothing=0.1, **WRITER), demonstrations, also=("resume",), float64=False),
    "sft_packed": Job(
        offline(SFT, **{**WRITER, **FUSED}), partial(demonstrations, packing=True), trainer=deterministic
    ),
    "fresh_weights": Job(offline(SFT, **WRITER), demonstrations, model={"random_init": True, "seed": 3}),
    "reward_model": Job(
        offline(RewardModel, normalization="standardize", **FUSED),
        preferences,
        trainer=mixed_precision,
        also=("resume", "predict"),
    ),
    "dpo": Job(offline(DPO, **WRITER), preferences, trainer=deterministic, also=("resume",), float64=False),
    "dpo_packed": Job(offline(DPO, **WRITER), partial(preferences, packing=True)),
    "dpo_precomputed": Job(offline(DPO, precompute_reference=True, **WRITER), preferences, also=("resume",)),
    "kto": Job(offline(DPO, loss="kto", **WRITER), partial(preferences, JUDGED)),
    "grpo": Job(
        online(GRPO, kl_coef=0.05, rollouts__num_minibatches=2, entropy_coef=0.01, **NUCLEUS),
        trainer=deterministic,
        also=("resume", "predict"),
    ),
    "grpo_refills": Job(online(GRPO, max_resample_batches=2, overlong_fraction=0.5)),
    "recomputed": Job(online(GRPO), model={"gradient_checkpointing": True}),
    "learned_reward": Job(with_learned_reward, trainer=mixed_precision),
    "ppo": Job(
        online(PPO, rollouts__num_epochs=2, kl_target=0.5, critic__lr=1e-3), trainer=deterministic, also=("resume",)
    ),
    "ppo_shared": Job(online(PPO, critic="shared", whiten_rewards=True)),
    "ppo_reward_model": Job(with_critic_of_a_reward_model),
    "rloo": Job(online(RLOO)),
    "reinforce_pp": Job(online(ReinforcePlusPlus), trainer=deterministic, float64=False),
    "reward_model_32": Job(offline(RewardModel, **LEARNER), preferences, float64=False),
    "grpo_32": Job(online(GRPO, kl_coef=0.05, **NUCLEUS), float64=False, also=("resume", "predict")),
    "ppo_32": Job(online(PPO, kl_target=0.5, whiten_rewards=True), float64=False),
}
WITH_ADAPTER: dict[str, Job | Command] = {
    "lora": Job(online(GRPO, kl_coef=0.05), model={"lora": Lora(r=2, seed=5)}, also=("resume",)),
    "lora_dpo": Job(offline(DPO, **WRITER), preferences, model={"lora": Lora(r=2)}),
    "lora_reward_model": Job(offline(RewardModel, **LEARNER), preferences, model={"lora": Lora(r=2)}),
}


def refusals() -> dict[str, list[str]]:
    """What the device says of operations that real ones refuse, what it notes of them, and of some that are allowed."""
    here, there, said = torch.ones(3, device=SECOND), torch.ones(3), []
    second_device.forget_faults()
    torch.use_deterministic_algorithms(True)
    second_device.refuse_float64(True)
    for refused in (
        lambda: here + there,
        lambda: torch.cat([here, torch.tensor(1.0)[None]]),
        lambda: torch.stack([here[0], torch.tensor(1.0)]),
        lambda: here.masked_fill_(there > 0, 0),
        lambda: torch.randn(3, device=SECOND),
        lambda: here.cumsum(0),
        lambda: here.double(),
    ):
        try:
            refused()
        except (RuntimeError, TypeError) as refusal:
            said.append(str(refusal).splitlines()[0])
    noted = second_device.faults()
    second_device.forget_faults()
    (2 - here + torch.tensor(1.0))[torch.tensor([0, 2])].long().cumsum(0).sum().item()
    torch.use_deterministic_algorithms(False)
    return {"said": said, "noted": noted, "noted_of_what_is_allowed": second_device.faults()}


def do(jobs: dict[str, Job | Command], folder: Path) -> None:
    """Leave what came of each job in `<name>-<device>.pt`: its result or its error, and the device's faults."""
    torch.set_num_threads(1)
    second_device.connect()
    worlds = [World(folder, device) for device in (CPU, SECOND)]
    worlds[0].make()
    for name, job in jobs.items():
        for world in worlds:
            second_device.forget_faults()
            second_device.refuse_float64(world.device == SECOND and not job.float64)
            accumulation_dtype.cache_clear()
            try:
                result = job.run(world)
            except Exception:
                result = {"error": traceback.format_exc()}
            torch.use_deterministic_algorithms(False)
            torch.save({**result, "faults": second_device.faults()}, folder / f"{name}-{world.device}.pt")
