"""PPO through a Trainer: what moves when, clipping, stopping, checkpoints, critics of each kind, exports."""

import math
from functools import partial

import pytest
import torch
from lightning import Callback
from torch.optim.lr_scheduler import ConstantLR, LinearLR
from transformers import AutoModelForCausalLM

import tests.integration.conftest as world
from lit_posttrain import PPO, BuiltModel, Lora, Pretrained
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.models.networks.value import ValueHead, ValueNetwork
from lit_posttrain.models.weights import tensors_sha256
from tests.conftest import VOCAB
from tests.integration.conftest import PROMPTS
from tests.integration.test_resume import FailsOnce, keep_every

ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.5)
RUN = {"algorithm": PPO, "group_size": 2, "optimizer": ADAMW, "critic__lr": 1e-2}


def tensors_of(module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Watch(Callback):
    """The tensors after every optimiser step, and how large the clipped gradient of each group was."""

    def __init__(self) -> None:
        self.tensors: list[dict[str, torch.Tensor]] = []
        self.norms: list[dict[str, float]] = []

    def on_fit_start(self, trainer, pl_module):
        self.tensors.append(tensors_of(pl_module))
        step = trainer.optimizers[0].step

        def measured(closure=None):
            loss = closure()
            norms = {}
            for group in trainer.optimizers[0].param_groups:
                gradients = [p.grad for p in group["params"] if p.grad is not None]
                norms[group["name"]] = torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0
            self.norms.append(norms)
            return step(lambda: loss)

        trainer.optimizers[0].step = measured

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.tensors.append(tensors_of(pl_module))

    def moved(self, step: int, part: str) -> bool:
        before, after = self.tensors[step], self.tensors[step + 1]
        return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part))


@pytest.fixture
def watch(monkeypatch):
    return Watch()


@pytest.mark.parametrize("critic", ["policy", "shared"])
def test_the_policy_stays_as_it_is_while_the_critic_warms_up(run_online, watch, critic):
    """AdamW with weight decay would move it on a zero gradient, and its momentum would begin to count."""
    module, recorder, trainer = run_online(
        **RUN,
        critic__start=critic,
        critic__warmup_steps=3,
        rollouts__num_epochs=2,
        callbacks=[watch],
        trainer={"max_steps": 6},
    )
    assert [watch.moved(step, "policy.") for step in range(6)] == [False] * 3 + [True] * 3
    assert all(watch.moved(step, "value_model.") for step in range(6))
    state = trainer.optimizers[0].state
    assert {int(state[p]["step"]) for p in module.policy.parameters()} == {3}
    assert {int(state[p]["step"]) for p in module.value_model.parameters()} == {6}
    assert all(logged["policy/approx_kl"] == 0 for logged in recorder.logged[:4])
    assert recorder.logged[5]["policy/approx_kl"] > 0


def test_gradients_of_actor_and_critic_are_clipped_apart(run_online, watch):
    _, recorder, _ = run_online(
        **RUN, critic__coef=100.0, callbacks=[watch], trainer={"max_steps": 2, "gradient_clip_val": 0.5}
    )
    for logged, norms in zip(recorder.logged, watch.norms, strict=True):
        assert logged["value/grad_norm"] > 10
        assert norms["value"] == pytest.approx(0.5, rel=1e-4)
        assert norms["policy"] == pytest.approx(min(0.5, logged["policy/grad_norm"]), rel=1e-4)
        assert norms["policy"] > 0.1  # clipped together it would be 0.5 / 20 at most
        whole = math.hypot(logged["value/grad_norm"], logged["policy/grad_norm"])
        assert logged["grad_norm"] == pytest.approx(whole, rel=1e-4)


def test_clipping_by_value_and_none(run_online, watch):
    settings = {**RUN, "critic__coef": 100.0}
    by_value = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    module, _, _ = run_online(**settings, callbacks=[watch], trainer={"max_steps": 1, **by_value})
    count = sum(p.numel() for p in module.value_model.parameters())
    assert 0 < watch.norms[0]["value"] <= 1e-3 * math.sqrt(count) * 1.001
    free = Watch()
    _, recorder, _ = run_online(**settings, callbacks=[free], trainer={"max_steps": 1})
    assert free.norms[0]["value"] == pytest.approx(recorder.logged[0]["value/grad_norm"], rel=1e-4)


def test_a_rollout_ends_where_the_policy_has_gone_too_far(run_online, watch, tmp_path):
    """Steps 0 and 1 go far; 1 sees it and is left out, as are 2 and 3; the next rollout begins anew."""
    settings = {**RUN, "rollouts__num_epochs": 4, "target_kl": 1e-3}
    trainer = {"max_steps": 8}
    module, recorder, engine = run_online(
        **settings, callbacks=[watch, keep_every(1, tmp_path / "whole")], trainer=trainer
    )
    assert engine.global_step == 8
    assert [logged["policy/stopped"] for logged in recorder.logged] == [0, 1, 1, 1] * 2
    assert recorder.logged[1]["policy/approx_kl"] > 1e-3
    for part in ("policy.", "value_model."):
        assert [watch.moved(step, part) for step in range(8)] == [True, False, False, False] * 2
    # over is over, also for a run that goes on with another bound
    resumed, _, _ = run_online(
        **{**settings, "target_kl": 1e9}, trainer={"max_steps": 4}, ckpt_path=tmp_path / "whole" / "step=2.ckpt"
    )
    assert tensors_sha256(resumed.state_dict()) == tensors_sha256(watch.tensors[2])
    for step in (2, 4):
        resumed, _, _ = run_online(**settings, trainer=trainer, ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert tensors_sha256(resumed.state_dict()) == tensors_sha256(module.state_dict()), step


ADAPTIVE = {
    **RUN,
    "rollouts__num_epochs": 2,
    "rollouts__num_minibatches": 2,
    "batch_size": 5,
    "kl_coef": 0.2,
    "kl_target": 0.05,
    "kl_horizon": 40,
    "critic__warmup_steps": 3,
    "scheduler": partial(LinearLR, start_factor=0.1, total_iters=20),
}


def test_resume_is_bitwise_with_critic_and_adaptive_coefficient(run_online, tmp_path):
    trainer = {"max_steps": 13, "accumulate_grad_batches": 2}
    whole, recorder, _ = run_online(trainer=trainer, callbacks=[keep_every(1, tmp_path / "whole")], **ADAPTIVE)
    coefficients = [logged["policy/kl_coef"] for logged in recorder.logged]
    assert len(set(coefficients)) == 4  # one for each rollout
    for step in (1, 3, 4, 6, 8, 11, 12):
        resumed, _, _ = run_online(
            trainer=trainer,
            callbacks=[keep_every(100, tmp_path / f"from_{step}")],
            ckpt_path=tmp_path / "whole" / f"step={step}.ckpt",
            **ADAPTIVE,
        )
        assert tensors_sha256(resumed.state_dict()) == tensors_sha256(whole.state_dict()), f"resumed at step {step}"
        assert resumed.kl_control.state_dict() == whole.kl_control.state_dict()


@pytest.mark.parametrize("at", [4, 6])
def test_an_exception_after_a_rollout_was_made_leaves_its_coefficient(run_online, tmp_path, at):
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    trainer = {"max_steps": 9}
    whole, _, _ = run_online(trainer=trainer, **ADAPTIVE)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run_online(trainer=trainer, callbacks=[OnExceptionCheckpoint(tmp_path, "stopped"), FailsOnce(at)], **ADAPTIVE)
    resumed, _, _ = run_online(trainer=trainer, ckpt_path=tmp_path / "stopped.ckpt", **ADAPTIVE)
    assert tensors_sha256(resumed.state_dict()) == tensors_sha256(whole.state_dict())


def test_the_first_pass_is_on_policy_for_the_critic_too(run_online):
    """Old values come from other batches than the update's."""
    _, recorder, _ = run_online(
        **{**RUN, "critic__start": "shared"},
        rollouts__num_epochs=2,
        critic__clip=0.01,
        trainer={"accumulate_grad_batches": 3, "max_steps": 4},
    )
    assert recorder.logged[0]["value/clip_frac"] == recorder.logged[2]["value/clip_frac"] == 0
    assert recorder.logged[1]["value/clip_frac"] + recorder.logged[3]["value/clip_frac"] > 0


def test_the_critic_learns_rewards_of_single_tokens(run_online, monkeypatch):
    """Every token but the last earns its parity: values see it coming where a score at the end would be one number."""

    def parities(prompts, completions, completion_ids, **columns):
        return [[float(token % 2) for token in ids] for ids in completion_ids]

    monkeypatch.setattr(world, "counts_even_words", parities)
    module, recorder, _ = run_online(
        **RUN, missing_eos="keep", kl_coef=0.0, trainer={"max_steps": 1}, rollouts__num_epochs=1
    )
    record = module.last_rollout
    tokens = record.scored.completions.tokens
    want = (tokens.completion_ids % 2).masked_fill(~tokens.completion_mask, 0).sum(1)
    assert record.scored.rewards.tolist() == want.tolist()
    assert recorder.logged[0]["reward/parities"] == pytest.approx(want.float().mean().item())


def test_true_scores_of_rollouts_stand_beside_a_reward(run_online):
    def short(completion_ids):
        return [float(len(ids) < 4) for ids in completion_ids]

    module, recorder, _ = run_online(**RUN, validation__metrics={"short": short}, trainer={"max_steps": 1})
    lengths = module.last_rollout.scored.completions.tokens.completion_mask.sum(1)
    assert recorder.logged[0]["rollout/short"] == pytest.approx((lengths < 4).float().mean().item())


@pytest.fixture
def reward_folder(make_model, word_tokenizer, tmp_path):
    torch.manual_seed(0)
    RewardNetwork.from_causal_lm(make_model("gpt2"), pad_id=0, vocab_size=VOCAB).save_pretrained(tmp_path / "rm")
    word_tokenizer.save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


def test_a_critic_from_a_reward_model(run_online, reward_folder, make_model):
    module, recorder, _ = run_online(
        **{**RUN, "critic__lr": 0.0}, critic__start=reward_folder, trainer={"max_steps": 1}
    )
    want = ValueNetwork.from_reward_model(reward_folder)
    assert recorder.logged[0]["value/loss"] > 0
    for name, tensor in module.value_model.state_dict().items():
        if not name.startswith("trunk.wte"):  # weight decay times a learning rate of 0
            torch.testing.assert_close(tensor, want.state_dict()[name])
    assert module.hparams["critic"]["start"] == reward_folder


def test_a_critic_that_is_no_reward_model_is_refused(make_model, word_tokenizer, tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)
    module = PPO(
        BuiltModel(make_model("gpt2"), tokenizer=word_tokenizer), lambda completions: [0.0], critic=str(tmp_path)
    )
    for check in (module.check_model, module.configure_model):
        with pytest.raises(ValueError, match="which is no reward model"):
            check()


def test_a_critic_that_is_nowhere_is_refused(make_model, word_tokenizer):
    module = PPO(BuiltModel(make_model("gpt2"), tokenizer=word_tokenizer), lambda completions: [0.0], critic="./polcy")
    with pytest.raises(FileNotFoundError, match=r"`critic` must be policy, shared or a reward model, got `\./polcy`: "):
        module.check_model()


def test_a_policy_that_never_learns_is_told(run_online, caplog):
    run_online(**RUN, critic__warmup_steps=2, trainer={"max_steps": 2})
    assert "the critic warms up in all 2 steps (`warmup_steps` = 2): the policy stays as it is" in caplog.text
    caplog.clear()
    run_online(**RUN, critic__warmup_steps=1, trainer={"max_steps": 2})
    assert "warms up" not in caplog.text


def test_a_shared_critic_needs_hidden_states(make_model, word_tokenizer, monkeypatch):
    from lit_posttrain.models.networks.policy import OutputHead

    monkeypatch.setattr(OutputHead, "of", classmethod(lambda cls, model: None))
    module = PPO(BuiltModel(make_model("gpt2"), tokenizer=word_tokenizer), lambda completions: [0.0], critic="shared")
    with (
        pytest.warns(UserWarning, match="not known here"),
        pytest.raises(ValueError, match="start the `critic` from the policy"),
    ):
        module.configure_model()


def test_export_is_the_policy_and_a_checkpoint_has_the_critic(run_online, tmp_path):
    module, _, engine = run_online(**RUN, trainer={"max_steps": 2})
    module.save_pretrained(tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export").state_dict()
    for name, tensor in module.language_model.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    engine.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    names = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert names == {"policy", "value_model"}
    assert checkpoint["states"]["kl_control"]["kl_coef"] == 0.05


def test_with_an_adapter_the_critic_is_whole(make_model, word_tokenizer, tmp_path, monkeypatch):
    from lit_posttrain import PromptDataModule, Sampling
    from tests.integration.conftest import Recorder, counts_even_words
    from tests.integration.ranks import make_trainer

    make_model("gpt2", scale=2.0).save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")

    def fit(max_steps, **settings):
        module = PPO(
            Pretrained(str(tmp_path / "base"), lora=Lora(r=2)),
            counts_even_words,
            sampling=Sampling(max_new_tokens=6),
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
            scheduler=partial(ConstantLR, factor=1.0),
            critic={"lr": 1e-2},
        )
        recorder = NamedRecorder()
        trainer = make_trainer(tmp_path, recorder, max_steps=max_steps, limit_val_batches=0)
        trainer.fit(module, datamodule=PromptDataModule(PROMPTS, batch_size=4), **settings)
        return module, recorder, trainer

    class NamedRecorder(Recorder):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.gradients.append({n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None})

    whole, recorder, _ = fit(6)
    trained = {name.split(".")[0] for name in recorder.gradients[0]}
    assert trained == {"policy", "value_model"}
    assert all("lora" in name for name in recorder.gradients[0] if name.startswith("policy."))
    assert recorder.logged[0]["policy/kl_ref"] == 0 < recorder.logged[5]["policy/kl_ref"]
    assert not any("lora" in name for name in whole.value_model.state_dict())
    _, _, first = fit(3)
    first.save_checkpoint(tmp_path / "three.ckpt")
    stored = torch.load(tmp_path / "three.ckpt", weights_only=True)["state_dict"]
    assert all("lora" in name for name in stored if name.startswith("policy."))
    resumed, _, _ = fit(6, ckpt_path=tmp_path / "three.ckpt")
    assert tensors_sha256(resumed.state_dict()) == tensors_sha256(whole.state_dict())


def test_the_default_optimizer_and_schedule(make_model, word_tokenizer):
    module = PPO(BuiltModel(make_model("gpt2"), tokenizer=word_tokenizer), lambda completions: [0.0])
    module.configure_model()
    module._trainer = type("T", (), {"estimated_stepping_batches": 10})()
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    policy, value = optimizer.param_groups
    assert (policy["name"], policy["initial_lr"], value["name"], value["initial_lr"]) == ("policy", 3e-6, "value", 9e-6)
    assert (policy["betas"], policy["eps"], policy["weight_decay"]) == ((0.9, 0.95), 1e-5, 0.0)
    assert isinstance(module.value_model, ValueNetwork)
    assert not isinstance(module.value_model, ValueHead)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.5e-6, 4.5e-6])
    module._trainer = type("T", (), {"estimated_stepping_batches": math.inf})()
    with pytest.raises(ValueError, match="give the Trainer `max_steps`"):
        module.configure_optimizers()
