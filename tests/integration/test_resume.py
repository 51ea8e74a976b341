"""Stop anywhere, go on exactly: the resumed run ends bitwise where the uninterrupted one ends."""

from functools import partial

import pytest
import torch
from lightning import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader

from lit_posttrain.models.weights import weights_sha256
from tests.integration.conftest import PROMPTS

# 3 rollouts in an epoch of the 12 prompts, 4 optimiser steps in a rollout, 2 micro-batches in a step.
SETTINGS = {
    "rollouts__num_epochs": 2,
    "rollouts__num_minibatches": 2,
    "batch_size": 5,
    "kl_coef": 0.05,
    "scale": "none",
    "optimizer": partial(torch.optim.AdamW, lr=1e-2),
    "scheduler": partial(LinearLR, start_factor=0.1, total_iters=20),
}


def keep_every(steps, folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1)


def test_steps_of_two_epochs(run_online, tmp_path):
    trainer = {"max_steps": 15, "accumulate_grad_batches": 2}
    whole, _, _ = run_online(trainer=trainer, callbacks=[keep_every(1, tmp_path / "whole")], **SETTINGS)
    want = weights_sha256(whole.language_model)
    rollouts = whole.last_rollout.index
    assert rollouts == 3  # the second epoch had begun
    # inside a rollout, at its end, at the end of the epoch, and around them
    for step in (1, 4, 7, 8, 11, 12, 13):
        resumed, recorder, engine = run_online(
            trainer=trainer,
            callbacks=[keep_every(100, tmp_path / f"from_{step}")],
            ckpt_path=tmp_path / "whole" / f"step={step}.ckpt",
            **SETTINGS,
        )
        assert engine.global_step == 15
        assert len(recorder.gradients) == 15 - step
        assert weights_sha256(resumed.language_model) == want, f"resumed at step {step}"


@pytest.mark.parametrize("steps", [3, 8, 12])
def test_a_finished_run_goes_on_with_more_steps(run_online, tmp_path, steps):
    """The end of the first run may be in the middle of a rollout, at its end, or at the end of an epoch."""
    whole, _, _ = run_online(trainer={"max_steps": 15}, **SETTINGS)
    _, _, first = run_online(trainer={"max_steps": steps}, callbacks=[keep_every(100, tmp_path)], **SETTINGS)
    first.save_checkpoint(tmp_path / "end.ckpt")
    resumed, recorder, engine = run_online(trainer={"max_steps": 15}, ckpt_path=tmp_path / "end.ckpt", **SETTINGS)
    assert engine.global_step == 15
    assert len(recorder.gradients) == 15 - steps
    assert weights_sha256(resumed.language_model) == weights_sha256(whole.language_model)


def test_stopping_elsewhere_does_change_the_weights(run_online, tmp_path):
    """The comparison above can fail: another seed, or one step less."""
    trainer = {"max_steps": 6, "accumulate_grad_batches": 2}
    first, _, _ = run_online(trainer=trainer, **SETTINGS)
    other, _, _ = run_online(trainer=trainer, rollouts__seed=1, **SETTINGS)
    assert weights_sha256(first.language_model) != weights_sha256(other.language_model)


class FailsOnce(Callback):
    """Raises in the middle of a rollout, after a batch was fetched and before it was used."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0, 3, 4])
def test_an_exception_in_the_middle_of_a_rollout(run_online, tmp_path, at):
    trainer = {"max_steps": 7}
    whole, _, _ = run_online(trainer=trainer, **SETTINGS)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_online(trainer=trainer, callbacks=[OnExceptionCheckpoint(tmp_path, "stopped"), FailsOnce(at)], **SETTINGS)
    resumed, recorder, _ = run_online(trainer=trainer, ckpt_path=tmp_path / "stopped.ckpt", **SETTINGS)
    assert len(recorder.gradients) == 7 - at
    assert weights_sha256(resumed.language_model) == weights_sha256(whole.language_model)


class StockLoader(LightningDataModule):
    """Somebody's own DataModule: a shuffling DataLoader with worker-free defaults."""

    def train_dataloader(self):
        return DataLoader(PROMPTS, batch_size=4, shuffle=True, collate_fn=list)


def test_a_stock_shuffling_dataloader(run_online, tmp_path, monkeypatch):
    import tests.integration.conftest as world

    monkeypatch.setattr(world, "PromptDataModule", lambda *args, **settings: StockLoader())
    trainer = {"max_steps": 8}
    settings = {**SETTINGS, "rollouts__num_epochs": 1}
    whole, _, _ = run_online(trainer=trainer, callbacks=[keep_every(1, tmp_path)], **settings)
    torch.manual_seed(12345)  # the global random numbers are somewhere else by now
    for step in (2, 3, 7):
        resumed, _, _ = run_online(trainer=trainer, ckpt_path=tmp_path / f"step={step}.ckpt", **settings)
        assert weights_sha256(resumed.language_model) == weights_sha256(whole.language_model), f"resumed at step {step}"


def test_a_changed_plan_in_the_middle_of_a_rollout_is_refused(run_online, tmp_path):
    run_online(trainer={"max_steps": 2}, callbacks=[keep_every(1, tmp_path)], **SETTINGS)
    with pytest.raises(ValueError, match="in the middle of a rollout of 4 micro-batches, this run's have 8"):
        run_online(
            trainer={"max_steps": 4, "accumulate_grad_batches": 2}, ckpt_path=tmp_path / "step=1.ckpt", **SETTINGS
        )


def test_another_algorithm_is_refused(run_online, tmp_path):
    run_online(trainer={"max_steps": 2}, callbacks=[keep_every(1, tmp_path)])
    checkpoint = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    torch.save({**checkpoint, "algorithm": "PPO"}, tmp_path / "ppo.ckpt")
    with pytest.raises(ValueError, match="written by PPO, this run is GRPO"):
        run_online(ckpt_path=tmp_path / "ppo.ckpt")
