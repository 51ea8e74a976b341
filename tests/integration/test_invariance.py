"""What must not change the result: micro-batches, accumulation, padding, order."""

import warnings

import pytest
import torch
from lightning import Callback

import tests.integration.conftest as world
from lit_posttrain import GRPO, PPO, RLOO, ReinforcePlusPlus, Sampling
from lit_posttrain.functional import group_advantages, overlong_penalty
from tests.integration.conftest import PROMPTS

FOUR_STEPS = {"rollouts__num_epochs": 2, "rollouts__num_minibatches": 2}
VARIANTS = {
    "dapo": {},
    "original": {"aggregation": "seq-mean-token-mean", "kl_coef": 0.1, "kl_gradient": "k3"},
    "dr_grpo": {"aggregation": "constant", "scale": "none", "entropy_coef": 0.01},
    "sum": {"aggregation": "seq-mean-token-sum", "scale": "batch", "mask_truncated": True},
    "off_policy": {
        "rollouts__num_epochs": 2,
        "rollouts__num_minibatches": 2,
        "kl_coef": 0.1,
        "scale": "none",
        "dual_clip": 3.0,
    },
    "gspo": {"ratio": "sequence", "aggregation": "seq-mean-token-mean", "rollouts__num_minibatches": 2},
    "cispo": {"clipping": "weight", "clip_low": 1.0, "clip_high": 0.1, "rollouts__num_minibatches": 2},
    "refilled": {"max_resample_batches": 3, "overlong_fraction": 0.5, "rollouts__num_minibatches": 2},
    "rloo": {"algorithm": RLOO, "kl_coef": 0.3, "rollouts__num_epochs": 2},
    "reinforce_pp": {"algorithm": ReinforcePlusPlus, "kl_coef": 0.3, "rollouts__num_minibatches": 2},
    "ppo": {
        "algorithm": PPO,
        "rollouts__num_epochs": 2,
        "rollouts__num_minibatches": 2,
        "kl_coef": 0.3,
        "entropy_coef": 0.01,
    },
    "ppo_shared": {
        "algorithm": PPO,
        "critic__start": "shared",
        "missing_eos": "mask",
        "whiten_rewards": True,
        "critic__warmup_steps": 2,
        "target_kl": 1e-3,
    },
    "reinforce_pp_baseline": {"algorithm": ReinforcePlusPlus, "baseline": "group", "kl_coef": 0.0},
}


def assert_equal_steps(recorders, *, atol):
    first, *others = recorders
    assert any(g.abs().max() > 1e-3 for g in first.gradients[0].values())
    for other in others:
        assert len(other.gradients) == len(first.gradients)
        for step, gradients in enumerate(first.gradients):
            for name, gradient in gradients.items():
                torch.testing.assert_close(
                    other.gradients[step][name], gradient, atol=atol, rtol=0, msg=f"{step} {name}"
                )
            torch.testing.assert_close(
                other.logged[step]["train/loss"], first.logged[step]["train/loss"], atol=1e-6, rtol=0
            )


@pytest.mark.parametrize("variant", VARIANTS)
def test_micro_batches_change_neither_loss_nor_gradient(run_online, variant):
    """16 sequences as 1 x 16, 2 x 8, 5 ragged parts and one by one."""
    recorders = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for accumulate in (1, 2, 5, 16):
            trainer = {"accumulate_grad_batches": accumulate, "max_steps": 4}
            recorders.append(run_online(dtype=torch.float64, trainer=trainer, **VARIANTS[variant])[1])
    assert_equal_steps(recorders, atol=1e-10)
    assert max(rows for rows, _ in recorders[-1].widths) == 1


@pytest.mark.parametrize(("family", "atol"), [("llama", 1e-10), ("gemma2", 1e-8)])
def test_micro_batches_with_other_families(run_online, family, atol):
    runs = [
        run_online(family=family, dtype=torch.float64, trainer={"accumulate_grad_batches": k, "max_steps": 2})[1]
        for k in (1, 3)
    ]
    assert_equal_steps(runs, atol=atol)


def test_more_micro_batches_than_sequences_are_filled_with_masked_rows(run_online):
    few = PROMPTS[:2]
    runs = [
        run_online(dtype=torch.float64, prompts=few, trainer={"accumulate_grad_batches": k, "max_steps": 2})[1]
        for k in (1, 11)
    ]
    assert_equal_steps(runs, atol=1e-10)


def test_the_batches_of_sampling_change_nothing(run_online):
    runs = [
        run_online(dtype=torch.float64, rollouts__batch_size=size, trainer={"max_steps": 2})[1] for size in (None, 4, 7)
    ]
    assert_equal_steps(runs, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_first_pass_over_a_rollout_is_on_policy(run_online, family):
    """Old log-probs come from other batches than the update's; the ratio must not show it."""
    _, recorder, _ = run_online(
        family=family,
        rollouts__num_epochs=2,
        rollouts__num_minibatches=1,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        trainer={"accumulate_grad_batches": 3, "max_steps": 4},
    )
    for step, logged in enumerate(recorder.logged):
        if step % 2 == 0:
            assert abs(logged["policy/ratio_max"] - 1) <= 1e-5
            assert logged["policy/clip_frac"] == 0
            assert abs(logged["policy/approx_kl"]) <= 1e-9
        else:
            assert logged["policy/ratio_max"] > 1 + 1e-4


def test_kl_is_zero_at_the_start_and_the_reference_stays(run_online, make_model):
    module, recorder, _ = run_online(kl_coef=0.1, scale="none", trainer={"max_steps": 3})
    assert recorder.logged[0]["policy/kl_ref"] == 0
    assert recorder.logged[2]["policy/kl_ref"] > 0
    initial = make_model("gpt2", scale=2.0).state_dict()
    for name, tensor in module.reference.policy.model.state_dict().items():
        assert torch.equal(tensor, initial[name]), name
    assert all(p.grad is None for p in module.reference.policy.parameters())
    assert not any(name.startswith("reference") for name in module.state_dict())
    changed = [not torch.equal(p, initial[name]) for name, p in module.language_model.named_parameters()]
    assert all(changed)


@pytest.mark.parametrize("algorithm", [GRPO, PPO, RLOO])
def test_kl_is_zero_at_the_start_at_any_temperature(run_online, algorithm):
    """Sampling, old, new and reference log-probs all divide by it."""
    sampling = Sampling(max_new_tokens=10, temperature=0.5)
    settings = {GRPO: {"scale": "none"}, PPO: {"missing_eos": "keep"}, RLOO: {}}[algorithm]
    module, recorder, _ = run_online(
        algorithm=algorithm, kl_coef=0.1, sampling=sampling, trainer={"max_steps": 1}, **settings
    )
    assert recorder.logged[0]["policy/kl_ref"] == 0
    assert (module.last_rollout.shaping == 0).all()


def test_a_step_without_spread_leaves_the_weights_alone(run_online, make_model, monkeypatch):
    """All rewards equal: AdamW with weight decay would still move."""
    monkeypatch.setattr(world, "counts_even_words", lambda prompts, completions, **columns: [1.0] * len(completions))
    module, recorder, trainer = run_online(optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5))
    assert trainer.global_step == 3
    assert recorder.logged[0]["rollout/zero_std_frac"] == 1
    assert recorder.gradients == []
    initial = make_model("gpt2", scale=2.0).state_dict()
    assert all(torch.equal(p, initial[name]) for name, p in module.language_model.state_dict().items())


class StepTokens(Callback):
    """Tokens in each optimiser step, and the denominator that its micro-batches were given."""

    def __init__(self) -> None:
        self.counted: list[int] = []
        self.given: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.counted.append(0)
            self.given.append(batch.normalizer.item())
        self.counted[-1] += int(batch.rollout.loss_mask.sum())


def test_the_denominator_is_that_of_the_step_and_not_of_the_rollout(run_online):
    tokens = StepTokens()
    run_online(rollouts__num_minibatches=3, callbacks=[tokens], trainer={"accumulate_grad_batches": 2, "max_steps": 6})
    assert tokens.given == tokens.counted
    assert len(set(tokens.counted)) > 1


def test_unscorable_completions_have_no_advantage(run_online, monkeypatch):
    monkeypatch.setattr(
        world,
        "counts_even_words",
        lambda prompts, completions, **columns: [
            None if index % 4 == 0 else float(len(text)) for index, text in enumerate(completions)
        ],
    )
    module, recorder, _ = run_online(trainer={"max_steps": 1})
    advantages = module.last_rollout.advantages.view(-1, 4)
    assert (advantages[:, 0] == 0).all()
    assert (advantages[:, 1:].abs() > 0).any()
    assert all(torch.isfinite(g).all() for g in recorder.gradients[0].values())


def test_penalties_are_part_of_the_rewards_that_are_compared(run_online):
    module, _, _ = run_online(overlong_fraction=1.0, overlong_factor=2.0, trainer={"max_steps": 1})
    record = module.last_rollout
    penalty = overlong_penalty(
        record.scored.completions.tokens.completion_mask.sum(1), max_length=10, buffer=10, factor=2.0
    )
    assert penalty.unique().numel() > 1
    torch.testing.assert_close(record.advantages, group_advantages(record.scored.rewards + penalty, group_size=4))
