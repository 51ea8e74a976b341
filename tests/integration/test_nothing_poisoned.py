"""Infinite numbers and NaN end a run before they reach a checkpoint; rollouts without a signal are named."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from lit_posttrain.models.weights import NonFiniteError, non_finite
from tests.cutting import ALGORITHMS, command
from tests.plain_fits import PlainFit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
ONLINE = ("grpo", "ppo", "rloo", "reinforce_pp")


@pytest.fixture
def plain(make_model, word_tokenizer):
    def build(algorithm: str, **options) -> PlainFit:
        return PlainFit(algorithm, lambda: make_model("gpt2", scale=2.0), word_tokenizer, **options)

    return build


def finite(checkpoint: Path) -> bool:
    stored = torch.load(checkpoint, weights_only=True)
    moments = [t for state in stored["optimizer_states"][0]["state"].values() for t in state.values()]
    return all(t.isfinite().all() for t in [*stored["state_dict"].values(), *moments])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_learning_rate_that_is_too_high(tmp_path, algorithm):
    """The run ends, its checkpoints are finite, and nothing is exported."""
    rates = ["optim.lr=1e30", *(["algo.critic.lr=1e30"] if algorithm == "ppo" else [])]
    steps = ["trainer.max_steps=6", "val_every_steps=null", "callbacks.last_checkpoint.every_n_train_steps=1"]
    with pytest.raises(NonFiniteError):
        command(tmp_path / "run", *ALGORITHMS[algorithm], *rates, *steps)(None)
    assert all(finite(path) for path in tmp_path.glob("run/checkpoints/*.ckpt"))
    assert not list(tmp_path.glob("run/export*"))
    assert not (tmp_path / "run" / "summary.json").exists()


def of_both_signs(prompts, completions, **columns):
    """As large as 32-bit numbers go."""
    return [3e38 if index % 2 else -3e38 for index in range(len(completions))]


@pytest.mark.parametrize("algorithm", ONLINE)
def test_rewards_at_the_end_of_the_range(tmp_path, algorithm):
    reward = ["reward=custom", f"reward.path={__name__}:of_both_signs", "trainer.max_steps=3"]
    with pytest.raises(NonFiniteError, match=r"Scale the rewards down|the loss is"):
        command(tmp_path, *ALGORITHMS[algorithm], *reward)(None)
    assert not list(tmp_path.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_weights_that_are_not_finite_to_begin_with(plain, make_model, algorithm, tmp_path):
    def poisoned():
        model = make_model("gpt2", scale=2.0)
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight[3, 4] = torch.nan
        return model

    fit = plain(algorithm)
    fit.model = poisoned
    with pytest.raises(NonFiniteError, match=r"before the first step: not all numbers in `\S*h.1.mlp.c_fc.weight`"):
        fit(tmp_path)


class Poison(ModelCheckpoint):
    """Puts an infinite number into the gradient of the third step."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 2:
            pl_module.language_model.lm_head.weight.grad[0, 0] = torch.inf


def test_the_step_is_not_made_and_the_cause_is_named(plain, tmp_path):
    kept = Poison(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    message = r"optimiser step 3: the loss is finite, the gradients of `\S*wte.weight` are not.*\(now 0.00\d+\)"
    fit = plain("sft", callbacks=lambda: [kept])
    with pytest.raises(NonFiniteError, match=message):
        fit(tmp_path)
    assert {path.name for path in tmp_path.glob("step=*.ckpt")} == {"step=1.ckpt", "step=2.ckpt"}
    assert finite(tmp_path / "step=2.ckpt")


def none_at_all(prompts, completions, **columns):
    return [None] * len(completions)


def equal(prompts, completions, **columns):
    return [0.5] * len(completions)


def test_a_loss_that_is_not_finite_in_a_step_that_is_skipped(plain, tmp_path, monkeypatch):
    """There is nothing to learn, and the policy is broken all the same."""
    monkeypatch.setattr("tests.plain_fits.even_words", equal)
    fit = plain("rloo")
    module = fit.module()
    loss = module.loss
    monkeypatch.setattr(
        module, "loss", lambda batch: module.statistics.add("loss", torch.tensor(torch.nan)) or loss(batch)
    )
    monkeypatch.setattr(fit.__class__, "module", lambda self: module)
    with pytest.raises(NonFiniteError, match="optimiser step 1: the loss is nan"):
        fit(tmp_path)


@pytest.mark.parametrize("what", ["checkpoint", "export", "validation"])
def test_weights_that_are_not_finite_are_neither_stored_nor_judged(plain, tmp_path, what):
    module, trainer = plain("reward_model", settings={"max_steps": 2})(tmp_path / "run")
    with torch.no_grad():
        module.network.model.score.weight[0, 0] = torch.nan
    acts = {
        "checkpoint": lambda: trainer.save_checkpoint(tmp_path / "bad.ckpt"),
        "export": lambda: module.save_pretrained(tmp_path / "bad"),
        "validation": lambda: trainer.validate(module, plain("reward_model").loaders()[1], verbose=False),
    }
    with pytest.raises(NonFiniteError, match=r"`network.model.score.weight`"):
        acts[what]()
    assert not list(tmp_path.glob("bad*"))


def test_names_of_tensors():
    tensors = {"good": torch.ones(2), "bad": torch.tensor([1.0, -torch.inf]), "worse": torch.tensor([[torch.nan]])}
    assert non_finite([*tensors.items(), ("count", torch.tensor(3)), ("none", torch.ones(0))]) == ["bad", "worse"]


class Overflow(ModelCheckpoint):
    """An infinite gradient in the first two steps, as half precision makes it."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step < 2:
            pl_module.language_model.lm_head.weight.grad[0, 0] = torch.inf


def test_a_gradient_scaler_may_skip_steps(plain, tmp_path):
    """An overflow is what it looks for."""
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    settings = {"plugins": [precision], "max_steps": 4, "limit_val_batches": 0}
    fit = plain("sft", settings=settings, callbacks=lambda: [Overflow(tmp_path, filename="none")])
    module, trainer = fit(tmp_path)
    assert trainer.global_step == 4
    assert precision.scaler.get_scale() == 2.0**16 / 4
    assert non_finite(module.named_parameters()) == []


@pytest.mark.parametrize("algorithm", ONLINE)
@pytest.mark.parametrize(("reward", "reason"), [(none_at_all, "None for all"), (equal, "had the same reward")])
def test_rollouts_without_a_signal(plain, tmp_path, monkeypatch, caplog, algorithm, reward, reason):
    monkeypatch.setattr("tests.plain_fits.even_words", reward)
    settings = {"max_steps": 8, "limit_val_batches": 0}
    plain(algorithm, settings=settings)(tmp_path)
    said = [record.message for record in caplog.records if record.name.endswith("rollout.metrics")]
    assert reason in said[0]
    assert "1 of 1 rollouts so far" in said[0]
    if algorithm == "grpo" or (algorithm == "ppo" and reward is equal):  # KL and critic go on
        assert said[-1].endswith("4 of 4 rollouts")
    else:
        assert said[-1].startswith("nothing was learnt in 8 of 8 steps: ")


def test_prompts_of_unknown_words(plain, tmp_path, caplog):
    rows = [{"prompt": "nobody knows these words"}] * 4
    plain("rloo", rows=rows, settings={"max_steps": 2, "limit_val_batches": 0})(tmp_path)
    said = [record.message for record in caplog.records if record.name.endswith("rollout.metrics")]
    assert "100 % of the prompts' tokens are words that the tokenizer does not know" in said
    assert "most tokens of the prompts were unknown in 2 of 2 rollouts" in said


def some_none(prompts, completions, **columns):
    return [None if index % 3 == 0 else float(index) for index in range(len(completions))]


@pytest.mark.parametrize("algorithm", ONLINE)
def test_a_row_without_a_score_has_no_advantage_whatever_a_subclass_says(plain, tmp_path, monkeypatch, algorithm):
    monkeypatch.setattr("tests.plain_fits.even_words", some_none)
    fit = plain(algorithm, settings={"max_steps": 1, "limit_val_batches": 0})
    module = fit.module()
    seen, of_tokens, make = [], module.token_advantages, module.make_rollout

    def sevens(advantages, rollout):
        return torch.full_like(of_tokens(advantages, rollout), 7.0)

    monkeypatch.setattr(module, "token_advantages", sevens)
    monkeypatch.setattr(module, "make_rollout", lambda *prompts: seen.append(make(*prompts)) or seen[-1])
    monkeypatch.setattr(fit.__class__, "module", lambda self: module)
    fit(tmp_path)
    unscored = module.last_rollout.scored.rewards.isnan()
    assert unscored.any()
    assert not seen[0].rollout.advantages[unscored].any()
    assert (seen[0].rollout.advantages[~unscored] == 7.0).all()


def test_the_bar_counts_optimizer_steps(tmp_path, capsys):
    options = ["+trainer.enable_progress_bar=true", "trainer.accumulate_grad_batches=4", "trainer.max_steps=5"]
    command(tmp_path, *ALGORITHMS["sft"], *options, quiet=False)(None)
    shown = capsys.readouterr().out
    assert "5/5" in shown
    assert "/20" not in shown
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 5
