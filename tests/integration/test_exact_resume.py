"""Killed as often as one likes, right after any checkpoint, and gone on with: as if nothing had happened.

The whole matrix is `python -m tests.cut_matrix`; here stands a part of it in which any two of algorithm, accumulation,
rhythm of checkpoints and place of the kill come together.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)

from tests.cut_matrix import ACCUMULATE, RHYTHMS, differences, rhythm
from tests.cutting import ALGORITHMS, command, killed_after, results, weights_of
from tests.plain_fits import DEMONSTRATIONS, PROMPTS, PlainFit, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


PAIRWISE = [
    (algorithm, accumulate, RHYTHMS[(i + j) % 3], (1 + (i + 2 * j) % 3, *[1] * ((i + j) % 2)))
    for i, algorithm in enumerate(ALGORITHMS)
    for j, accumulate in enumerate(ACCUMULATE)
]


@pytest.mark.parametrize(("algorithm", "accumulate", "every", "cuts"), PAIRWISE)
def test_the_command_line(tmp_path, algorithm, accumulate, every, cuts):
    steps = every[0] * sum(cuts) + 3  # and so many after the last kill: an epoch
    options = [*ALGORITHMS[algorithm], *rhythm(*every, steps=steps), f"trainer.accumulate_grad_batches={accumulate}"]
    command(tmp_path / "whole", *options)(None)
    assert differences(tmp_path, options, cuts, results(tmp_path / "whole")) == ""


EMA = "+callbacks.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.8}"


@pytest.mark.parametrize(
    ("algorithm", "options", "cuts"),
    [
        ("sft", [EMA, "model/lora=default"], (2, 1)),
        ("reward_model", [EMA, "algo.normalization=standardize"], (1, 2)),
    ],
)
def test_averages_of_an_adapter_and_of_what_is_measured(tmp_path, algorithm, options, cuts):
    options = [*ALGORITHMS[algorithm], *rhythm(2, 3), *options]
    command(tmp_path / "whole", *options)(None)
    assert differences(tmp_path, options, cuts, results(tmp_path / "whole")) == ""
    stored = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    if algorithm == "sft":
        for weights in ("state_dict", "current_model_state"):
            assert len(stored[weights]) > 0
            assert all("lora" in name for name in stored[weights])


def test_the_scores_of_averaged_weights_are_measured_with_them(tmp_path):
    """The best checkpoint is as if the run had ended there, and the last one as the export."""
    options = [*ALGORITHMS["reward_model"], EMA, "algo.normalization=standardize", "scheduler.num_training_steps=12"]
    options += ["val_every_steps=3", "monitor.metric=val/loss", "monitor.mode=max", "optim.lr=1e-2"]
    command(tmp_path / "long", *options, "trainer.max_steps=9")(None)
    command(tmp_path / "short", *options, "trainer.max_steps=3")(None)
    long, short = tmp_path / "long", tmp_path / "short"
    assert weights_of(long / "checkpoints" / "best.ckpt") == weights_of(short / "checkpoints" / "best.ckpt")
    best, export = (json.loads((f / "config.json").read_text()) for f in (long / "export_best", short / "export"))
    assert best == export
    assert best["score_scale"] not in (0.0, 1.0)
    last = torch.load(long / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    export = json.loads((long / "export" / "config.json").read_text())
    assert last["network.score_mean"].item() == pytest.approx(export["score_mean"], rel=1e-6)
    assert last["network.score_scale"].item() == pytest.approx(export["score_scale"], rel=1e-6)


def test_a_kill_before_the_first_checkpoint(tmp_path):
    options = [*ALGORITHMS["sft"], *rhythm(2, 3)]
    command(tmp_path / "whole", *options)(None)
    command(tmp_path / "again", *options)(None)
    assert results(tmp_path / "again") == results(tmp_path / "whole")


@pytest.fixture
def plain(make_model, word_tokenizer):
    def build(algorithm: str, **options: Any) -> PlainFit:
        return PlainFit(algorithm, lambda: make_model("gpt2", scale=2.0), word_tokenizer, **options)

    return build


def left_behind(folder: Path, fit: tuple[Any, Trainer]) -> dict[str, Any]:
    """What a plain fit leaves, on the disk and in its callbacks."""
    module, trainer = fit
    return {
        "weights": weights(module),
        "steps": (trainer.global_step, trainer.current_epoch),
        "files": {path.name: weights_of(path) for path in sorted(folder.glob("*.ckpt"))},
        "scores": [callback.best_model_score for callback in trainer.checkpoint_callbacks],
        "metrics": {n: float(v) for n, v in trainer.callback_metrics.items() if not n.startswith("time/")},
    }


def newest(folder: Path) -> Path | None:
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)


def killed_and_gone_on_with(fit: PlainFit, folder: Path, cuts: tuple[int, ...]) -> dict[str, Any]:
    folder.mkdir()
    for saves in cuts:
        with killed_after(saves, folder):
            fit(folder, newest(folder))
            raise AssertionError("the run was over before the kill")
    return left_behind(folder, fit(folder, newest(folder)))


EPOCHS = {"max_steps": -1, "max_epochs": 3, "check_val_every_n_epoch": 1, "val_check_interval": 1.0}


@pytest.mark.parametrize(
    ("algorithm", "loader", "settings", "cuts"),
    [
        ("grpo", "stock", EPOCHS, (3,)),
        ("ppo", "stock", {"accumulate_grad_batches": 2}, (1, 2)),
        ("rloo", "stream", {"accumulate_grad_batches": 2}, (3, 1)),
        ("reinforce_pp", "stock", EPOCHS, (1, 1)),
        ("sft", "ours", {"accumulate_grad_batches": 4}, (2, 1)),
        ("sft", "stock", {**EPOCHS, "accumulate_grad_batches": 2}, (1, 1)),
        ("reward_model", "ours", EPOCHS, (2, 1)),
        ("dpo", "ours", {"accumulate_grad_batches": 2}, (1, 1)),
        ("dpo", "stock", EPOCHS, (2,)),
    ],
)
def test_a_plain_trainer_with_loaders(plain, tmp_path, algorithm, loader, settings, cuts):
    fit = plain(algorithm, loader=loader, settings=settings)
    whole = left_behind(tmp_path / "whole", fit(tmp_path / "whole"))
    assert killed_and_gone_on_with(fit, tmp_path / "cut", cuts) == whole


@pytest.mark.parametrize("saves", [1, 3, 6])
def test_every_one_of_several_checkpoint_callbacks_gets_its_turn(plain, tmp_path, saves):
    """All of them save at the same steps, and the kill comes between them."""
    folder = tmp_path / "whole"

    def callbacks():
        same = {"dirpath": folder, "enable_version_counter": False}
        return [
            ModelCheckpoint(filename="loss", monitor="train/loss", every_n_train_steps=2, **same),
            ModelCheckpoint(filename="epoch", every_n_epochs=1, save_on_train_epoch_end=True, **same),
            ModelCheckpoint(filename="length", monitor="rollout/length_mean", **same),
            EMAWeightAveraging(decay=0.9),
        ]

    fit = plain("grpo", settings={"accumulate_grad_batches": 2}, callbacks=callbacks)
    whole = left_behind(folder, fit(folder))
    folder = tmp_path / "cut"
    assert killed_and_gone_on_with(fit, folder, (saves,)) == whole


def test_a_run_that_a_callback_had_ended_stays_ended(plain, tmp_path):
    def callbacks():
        return [EarlyStopping("val/loss", patience=1, mode="max")]

    fit = plain("sft", callbacks=callbacks, settings={"val_check_interval": 2, "max_steps": 20})
    whole = left_behind(tmp_path / "whole", fit(tmp_path / "whole"))
    assert whole["steps"][0] < 20
    for saves in (1, 2, 3):
        assert killed_and_gone_on_with(fit, tmp_path / f"cut_{saves}", (saves,)) == whole


class AfterEveryBatch(Callback):
    """Somebody's checkpoint after each micro-batch, wherever the optimiser is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "sft", "dpo"])
def test_a_checkpoint_inside_an_optimizer_step_is_exact(plain, tmp_path, algorithm):
    keep = tmp_path / "kept"
    settings = {"accumulate_grad_batches": 3, "max_steps": 5, "limit_val_batches": 0}
    fit = plain(algorithm, settings=settings, callbacks=lambda: [AfterEveryBatch(keep)])
    module, _ = fit(tmp_path / "whole")
    checkpoints = sorted(keep.glob("*.ckpt"))
    assert len(checkpoints) == 15
    fit.callbacks = list
    for checkpoint in checkpoints[::4]:
        resumed, trainer = fit(tmp_path / checkpoint.stem, checkpoint)
        assert trainer.global_step == 5
        assert weights(resumed) == weights(module), checkpoint.name


def test_a_checkpoint_by_the_clock(plain, tmp_path):
    """`train_time_interval=0` saves after every micro-batch."""

    def callbacks():
        always = {"train_time_interval": timedelta(0), "save_top_k": 1, "enable_version_counter": False}
        return [ModelCheckpoint(tmp_path / "cut", filename="clock", **always)]

    fit = plain("grpo", callbacks=callbacks, settings={"accumulate_grad_batches": 4, "max_steps": 4})
    whole, _ = fit(tmp_path / "whole")
    for saves in (2, 3):
        folder = tmp_path / "cut"
        with killed_after(saves, folder):
            fit(folder)
        resumed, _ = fit(folder, folder / "clock.ckpt")
        assert weights(resumed) == weights(whole)
        for path in folder.glob("*.ckpt"):
            path.unlink()


class StopsInside(Callback):
    """Raises while the optimiser changes the weights."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 1:
            optimizer.register_step_post_hook(self._stop)

    def _stop(self, *args):
        raise RuntimeError("stop here")


def test_a_checkpoint_from_inside_the_update_is_refused(plain, tmp_path):
    fit = plain("sft", callbacks=lambda: [StopsInside(), OnExceptionCheckpoint(tmp_path, "torn")])
    with pytest.raises(RuntimeError, match="stop here"):
        fit(tmp_path / "first")
    fit.callbacks = list
    with pytest.raises(ValueError, match="was written while the optimiser made step 2: its weights and its counters"):
        fit(tmp_path / "second", tmp_path / "torn.ckpt")


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("algorithm", ["grpo", "sft", "reward_model"])
def test_a_finished_run_goes_on_as_if_it_had_not_been_over(plain, tmp_path, algorithm, averages):
    def callbacks():
        return [EMAWeightAveraging(decay=0.8)] if averages else []

    fit = plain(algorithm, callbacks=callbacks, settings={"max_steps": 9, "accumulate_grad_batches": 2})
    whole, _ = fit(tmp_path / "whole")
    fit.settings["max_steps"] = 4
    _, first = fit(tmp_path / "first")
    first.save_checkpoint(tmp_path / "after_the_fit.ckpt")
    fit.settings["max_steps"] = 9
    resumed, trainer = fit(tmp_path / "first", tmp_path / "first" / "last.ckpt")
    assert trainer.global_step == 9
    assert weights(resumed) == weights(whole)
    if averages:
        with pytest.raises(ValueError, match="after the fit, when EMAWeightAveraging had put the average"):
            fit(tmp_path / "second", tmp_path / "after_the_fit.ckpt")
    else:
        resumed, _ = fit(tmp_path / "second", tmp_path / "after_the_fit.ckpt")
        assert weights(resumed) == weights(whole)


@pytest.mark.parametrize("steps", [3, 4])
def test_the_command_line_goes_on_after_its_end_with_averaged_weights(tmp_path, steps):
    """At the end of an epoch and inside one; the last checkpoint is written before the average takes their place."""
    options = [*ALGORITHMS["sft"], "scheduler=constant", "val_every_steps=null", EMA]
    command(tmp_path / "whole", *options, "trainer.max_steps=7")(None)
    command(tmp_path / "parts", *options, f"trainer.max_steps={steps}")(None)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    command(tmp_path / "parts", *options, "trainer.max_steps=7")(last)
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert parts["weights"] == whole["weights"]
    assert parts["last.ckpt"] == whole["last.ckpt"]


def test_what_cannot_average_here_is_refused_by_name(plain, tmp_path):
    fit = plain("sft", callbacks=lambda: [StochasticWeightAveraging(1e-2, swa_epoch_start=1)], settings=EPOCHS)
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging does not work here.*Use `EMAWeightAveraging`"):
        fit(tmp_path)


CHANGES: list[tuple[str, dict[str, Any], str]] = [
    ("batch size", {"batch_size": 5}, "batch_size"),
    ("a text", {"rows": [{**row, "prompt": f"w1 {row['prompt']}"} for row in PROMPTS]}, "rows"),
    ("the order", {"rows": PROMPTS[::-1]}, "rows"),
    ("the number", {"rows": PROMPTS[:-1]}, "rows"),
]


@pytest.mark.parametrize(("steps", "options", "name"), [(2 + i, *change[1:]) for i, change in enumerate(CHANGES)])
def test_data_that_have_changed_are_refused_on_the_command_line(tmp_path, steps, options, name):
    """Inside a pass and at its end; the run stays as it was."""
    rows, folder = tmp_path / "rows.jsonl", tmp_path / "run"

    def write(prompts):
        rows.write_text("".join(json.dumps(row) + "\n" for row in prompts))

    base = [
        "algo=rloo",
        "data=prompts",
        "reward=custom",
        "reward.path=tests.plain_fits:shortness",
        "algo.group_size=2",
    ]
    base += [f"data.path={rows}", "algo.sampling.max_new_tokens=4", "val_every_steps=null"]
    write(PROMPTS)
    command(folder, *base, "data.batch_size=4", f"trainer.max_steps={steps}")(None)
    write(options.get("rows", PROMPTS))
    last = folder / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    with pytest.raises(ValueError, match=rf"`{name}`.*allow_changed_data"):
        command(folder, *base, f"data.batch_size={options.get('batch_size', 4)}", "trainer.max_steps=8")(last)
    assert last.read_bytes() == before


@pytest.mark.parametrize("loader", ["stock", "stream"])
@pytest.mark.parametrize("options", [change[1] for change in CHANGES], ids=[change[0] for change in CHANGES])
def test_data_of_foreign_loaders_that_have_changed_are_refused(plain, tmp_path, loader, options):
    """What was read of them is compared."""
    settings = {"max_steps": 4, "limit_val_batches": 0}
    plain("rloo", loader=loader, settings=settings)(tmp_path / "first")
    fit = plain("rloo", loader=loader, settings={**settings, "max_steps": 6}, **options)
    with pytest.raises(ValueError, match=r"training data are not those of the checkpoint.*`allow_changed_data`"):
        fit(tmp_path / "second", tmp_path / "first" / "last.ckpt")


@pytest.mark.parametrize("algorithm", ["rloo", "sft"])
def test_changed_data_by_permission_begin_a_new_pass(plain, tmp_path, caplog, algorithm):
    settings = {"max_steps": 4, "limit_val_batches": 0}
    plain(algorithm, settings=settings)(tmp_path / "first")
    rows = (PROMPTS if algorithm == "rloo" else DEMONSTRATIONS)[::-1]
    fit = plain(algorithm, settings={**settings, "max_steps": 6}, rows=rows, allow_changed_data=True)
    caplog.clear()
    _, trainer = fit(tmp_path / "second", tmp_path / "first" / "last.ckpt")
    assert trainer.global_step == 6
    assert "a new pass over them begins. Of the pass that was interrupted 1 batches were used" in caplog.text
    assert "the other 2 are left out" in caplog.text


def test_the_other_half_of_the_algorithms_refuses_changed_rows(plain, tmp_path):
    for loader, name in (("ours", "`batch_size`: 4 -> 5"), ("stock", "other rows")):
        settings = {"max_steps": 4, "limit_val_batches": 0}
        plain("sft", loader=loader, settings=settings)(tmp_path / loader)
        fit = plain("sft", loader=loader, settings={**settings, "max_steps": 6}, batch_size=5)
        with pytest.raises(ValueError, match=rf"not those of the checkpoint \({name}\)"):
            fit(tmp_path / "second", tmp_path / loader / "last.ckpt")


class Fails(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        raise RuntimeError("not today")


def test_a_trainer_whose_fit_failed_trains_the_module_that_it_is_given_next(plain, tmp_path):
    fit = plain("rloo")
    (train, _), first, second = fit.loaders(), fit.module(), fit.module()
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path, callbacks=[fails := Fails()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="not today"):
        trainer.fit(first, train)
    trainer.callbacks.remove(fails)
    before = torch.clone(next(second.source.load().parameters()))
    first.last_rollout = None
    trainer.fit(second, train)
    assert second.last_rollout is not None
    assert first.last_rollout is None
    assert not torch.equal(next(second.language_model.parameters()), before)
    assert "process_dataloader" not in vars(trainer.strategy)
