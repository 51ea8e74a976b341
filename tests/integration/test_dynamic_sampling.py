"""Groups without spread are replaced by others, exactly so often and always the same ones."""

import pytest
import torch
from lightning import Callback, LightningDataModule
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch.utils.data import DataLoader, IterableDataset

import tests.integration.conftest as world
from lit_posttrain.rollout.loader import SideStream
from tests.integration.conftest import PROMPTS
from tests.integration.test_resume import keep_every


def only_some_prompts(prompts, completions, **columns):
    """Spread for prompts of an odd number of words, none for the others."""
    return [float(len(text)) if len(p.split()) % 2 else 0.0 for p, text in zip(prompts, completions, strict=True)]


@pytest.fixture
def hard_prompts(monkeypatch):
    monkeypatch.setattr(world, "counts_even_words", only_some_prompts)


def has_odd_prompt(row):
    return len(row["prompt"].split()) % 2 == 1


def test_groups_are_replaced_until_the_rollout_is_full(run_online, hard_prompts):
    module, recorder, _ = run_online(max_resample_batches=10, trainer={"max_steps": 1})
    record = module.last_rollout
    assert record.groups_kept == 4
    assert recorder.widths[0][0] == 16
    kept = [has_odd_prompt(row) for row in record.scored.completions.rows]
    assert (record.advantages.view(-1, 4).abs().sum(1) > 0).sum() == 4
    assert all(keep for keep, advantage in zip(kept, record.advantages.tolist(), strict=True) if advantage)
    sampled = len(record.scored.rewards) // 4
    assert sampled > 4
    assert recorder.logged[0]["rollout/kept_frac"] == pytest.approx(4 / sampled)
    assert recorder.logged[0]["reward/mean"] == pytest.approx(record.scored.rewards.mean().item())


def test_without_it_the_groups_stay(run_online, hard_prompts):
    module, recorder, _ = run_online(trainer={"max_steps": 1})
    assert len(module.last_rollout.scored.rewards) == 16
    assert "rollout/kept_frac" not in recorder.logged[0]


def test_a_rollout_may_stay_short(run_online, hard_prompts):
    """The number of steps stays; the denominator is that of the groups kept."""
    runs = [run_online(max_resample_batches=refills, trainer={"max_steps": 1}) for refills in (0, 1)]
    module, recorder, trainer = runs[1]
    assert trainer.global_step == 1
    kept = module.last_rollout.groups_kept
    assert recorder.widths[0][0] == kept * 4
    assert kept > 0


def test_nothing_to_learn_at_all_skips_the_step(run_online, monkeypatch):
    monkeypatch.setattr(world, "counts_even_words", lambda prompts, completions, **columns: [1.0] * len(completions))
    module, recorder, trainer = run_online(
        max_resample_batches=2, rollouts__num_minibatches=2, trainer={"max_steps": 2}
    )
    assert trainer.global_step == 2
    assert recorder.gradients == []
    assert module.last_rollout.groups_kept == 0
    assert len(module.last_rollout.scored.rewards) == 3 * 16
    assert recorder.logged[0]["rollout/kept_frac"] == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_resumes_exactly(run_online, hard_prompts, tmp_path, steps):
    settings = {"max_resample_batches": 3, "rollouts__num_minibatches": 2}
    whole, _, _ = run_online(trainer={"max_steps": 8}, callbacks=[keep_every(1, tmp_path)], **settings)
    resumed, _, _ = run_online(trainer={"max_steps": 8}, ckpt_path=tmp_path / f"step={steps}.ckpt", **settings)
    for name, tensor in whole.language_model.state_dict().items():
        assert torch.equal(resumed.language_model.state_dict()[name], tensor), name


def test_an_interrupted_refill_is_done_again(run_online, hard_prompts, monkeypatch, tmp_path):
    """The reward fails inside the second rollout's refill: its further prompts come again after resuming."""
    settings = {"max_resample_batches": 3}
    whole, _, _ = run_online(trainer={"max_steps": 3}, **settings)
    calls = []

    def fails(prompts, completions, **columns):
        calls.append(len(prompts))
        if len(calls) == 4:
            raise RuntimeError("interrupted")
        return only_some_prompts(prompts, completions)

    monkeypatch.setattr(world, "counts_even_words", fails)
    with pytest.raises(RuntimeError, match="interrupted"):
        run_online(trainer={"max_steps": 3}, callbacks=[keep_every(1, tmp_path)], **settings)
    monkeypatch.setattr(world, "counts_even_words", only_some_prompts)
    (checkpoint,) = tmp_path.glob("step=*.ckpt")
    resumed, _, _ = run_online(trainer={"max_steps": 3}, ckpt_path=checkpoint, **settings)
    for name, tensor in whole.language_model.state_dict().items():
        assert torch.equal(resumed.language_model.state_dict()[name], tensor), name


def test_side_stream_goes_on_for_ever_and_anywhere():
    opened = []

    def open_pass(epoch, position):
        opened.append((epoch, position))
        return iter([[{"prompt": f"{epoch % 2}{letter}"}] for letter in "abc"][position:])

    stream = SideStream(open_pass)
    taken = [stream()[0]["prompt"] for _ in range(5)]
    assert taken == ["0a", "0b", "0c", "1a", "1b"]
    other = SideStream(open_pass)
    other.place = stream.place
    assert other()[0]["prompt"] == stream()[0]["prompt"] == "1c"
    assert all(epoch >= 1 << 20 for epoch, _ in opened)


def test_an_empty_side_stream_is_an_error():
    with pytest.raises(ValueError, match="no prompts to sample more groups from"):
        SideStream(lambda epoch, position: iter([]))()


def test_a_stock_dataloader_refills_too(run_online, hard_prompts, monkeypatch):
    loader = DataLoader(PROMPTS, batch_size=4, shuffle=True, collate_fn=list)
    monkeypatch.setattr(world, "PromptDataModule", lambda prompts, batch_size: Plain(loader))
    runs = [run_online(max_resample_batches=5, trainer={"max_steps": 4})[0] for _ in range(2)]
    assert runs[0].last_rollout.groups_kept == 4
    assert torch.equal(runs[0].last_rollout.scored.rewards, runs[1].last_rollout.scored.rewards)


class Plain(LightningDataModule):
    """A user's own DataModule."""

    def __init__(self, loader):
        super().__init__()
        self.loader = loader

    def train_dataloader(self):
        return self.loader


def test_refills_have_random_numbers_of_their_own(run_online, monkeypatch):
    """The same prompt again and again: no batch of the rollout repeats the completions of another."""
    monkeypatch.setattr(world, "counts_even_words", lambda prompts, completions, **columns: [1.0] * len(completions))
    same = [{"prompt": "w1 w2"}] * 12
    module, _, _ = run_online(prompts=same, batch_size=12, max_resample_batches=2, trainer={"max_steps": 1})
    record = module.last_rollout
    assert record.scored.prompt_index.unique().numel() == 36
    texts = record.scored.completions.texts
    groups = [tuple(texts[first : first + 4]) for first in range(0, len(texts), 4)]
    assert len(set(groups)) == 36


class Interrupts(Callback):
    """Fails at a micro-batch, when its rollout has been made."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.at:
            raise RuntimeError("interrupted")


def test_a_rollout_that_was_made_in_vain_gives_its_refills_back(run_online, hard_prompts, tmp_path):
    settings = {"max_resample_batches": 3, "rollouts__num_minibatches": 2}
    whole, _, _ = run_online(trainer={"max_steps": 6}, **settings)
    with pytest.raises(RuntimeError, match="interrupted"):
        run_online(trainer={"max_steps": 6}, callbacks=[Interrupts(2), OnExceptionCheckpoint(tmp_path)], **settings)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    resumed, _, _ = run_online(trainer={"max_steps": 6}, ckpt_path=checkpoint, **settings)
    for name, tensor in whole.language_model.state_dict().items():
        assert torch.equal(resumed.language_model.state_dict()[name], tensor), name


def test_persistent_workers_are_refused(run_online, monkeypatch):
    loader = DataLoader(PROMPTS, batch_size=4, collate_fn=list, num_workers=1, persistent_workers=True)
    monkeypatch.setattr(world, "PromptDataModule", lambda prompts, batch_size: Plain(loader))
    with pytest.raises(ValueError, match="use `persistent_workers=False`"):
        run_online(max_resample_batches=1)


class Endless(IterableDataset):
    """Prompts without a number of them."""

    def __iter__(self):
        yield from PROMPTS


def test_a_stock_dataloader_over_a_stream(run_online, monkeypatch):
    loader = DataLoader(Endless(), batch_size=4, collate_fn=list)
    monkeypatch.setattr(world, "PromptDataModule", lambda prompts, batch_size: Plain(loader))
    _, _, trainer = run_online(max_resample_batches=1, trainer={"max_steps": 3})
    assert trainer.global_step == 3
    with pytest.raises(ValueError, match=r"prompts without a length need `max_steps`"):
        run_online(trainer={"max_steps": -1, "max_epochs": 1})
