"""An online run that takes a second: a random two-layer model, twelve prompts, a reward that counts a word."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch.optim.lr_scheduler import ConstantLR

from lit_posttrain import GRPO, BuiltModel, OnlineModule, PromptDataModule, Sampling
from lit_posttrain.models.networks.layout import PacksRows
from tests.groups import grouped
from tests.integration.recording import StepRecorder

PROMPTS = [{"prompt": " ".join(f"w{(i * 7 + j) % 38}" for j in range(1 + i % 5)), "wanted": f"w{i}"} for i in range(12)]

SGD = partial(torch.optim.SGD, lr=0.05)


def counts_even_words(prompts, completions, **columns):
    """Unequal rewards of unequal completions."""
    return [sum(int(word[1:]) % 2 == 0 for word in text.split()) - 0.1 * len(text) for text in completions]


class Recorder(StepRecorder):
    """Also the sizes of micro-batches; of the gradients also those of a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[tuple[int, int]] = []

    def watched(self, pl_module):
        named = dict(super().watched(pl_module))
        if getattr(pl_module, "value_model", None) is not None:
            named |= {f"value_model.{name}": p for name, p in pl_module.value_model.named_parameters()}
        return named.items()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.widths.append((len(batch), batch.rollout.completion_ids.shape[1]))


@pytest.fixture
def networks_given_packed_rows(monkeypatch) -> list[PacksRows]:
    """Those that ran on fewer sequences than there were rows, once each, while the test goes on."""
    networks: list[PacksRows] = []
    lay_out = PacksRows.lay_out

    def watched(network, batch):
        laid_out = lay_out(network, batch)
        if len(laid_out.inputs["input_ids"]) < len(laid_out.sequences) and all(n is not network for n in networks):
            networks.append(network)
        return laid_out

    monkeypatch.setattr(PacksRows, "lay_out", watched)
    return networks


@pytest.fixture
def run_online(make_model, word_tokenizer, tmp_path) -> Callable[..., tuple[Any, Recorder, Trainer]]:
    """Fit an algorithm and return module, recorder and Trainer.

    `trainer` and `module` are settings that differ; those of groups of options as `grouped` takes them.
    """

    def run(
        *,
        algorithm: type[OnlineModule] = GRPO,
        family: str = "gpt2",
        dtype: torch.dtype = torch.float32,
        optimizer: Any = SGD,
        prompts: list[dict] = PROMPTS,
        batch_size: int = 4,
        callbacks: list[Callback] | None = None,
        ckpt_path: str | Path | None = None,
        trainer: dict[str, Any] | None = None,
        **module: Any,
    ) -> tuple[Any, Recorder, Trainer]:
        settings = {
            "group_size": 4,
            "sampling": Sampling(max_new_tokens=10),
            "scheduler": partial(ConstantLR, factor=1.0),
            **module,
        }
        built = algorithm(
            BuiltModel(make_model(family, dtype=dtype, scale=2.0), tokenizer=word_tokenizer),
            counts_even_words,
            optimizer=optimizer,
            **grouped(settings),
        )
        recorder = Recorder()
        engine = Trainer(
            **{
                "accelerator": "cpu",
                "devices": 1,
                "max_steps": 3,
                "logger": False,
                "enable_checkpointing": bool(callbacks),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": tmp_path,
                "limit_val_batches": 0,
                **(trainer or {}),
            },
            callbacks=[recorder, *(callbacks or [])],
        )
        engine.fit(built, datamodule=PromptDataModule(prompts, batch_size=batch_size), ckpt_path=ckpt_path)
        return built, recorder, engine

    return run
