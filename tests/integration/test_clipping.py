"""Clipping by the module: as Lightning's own, of groups with names apart, and of fused optimisers too."""

import math
from functools import partial

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import ConstantLR

from lit_posttrain import (
    DPO,
    GRPO,
    PPO,
    SFT,
    BuiltModel,
    InstructDataModule,
    PostTrainingModule,
    PreferenceDataModule,
    PromptDataModule,
    RewardModel,
    Sampling,
)
from lit_posttrain.models.weights import tensors_sha256
from tests.integration.conftest import PROMPTS, counts_even_words
from tests.integration.test_dpo import PAIRS
from tests.integration.test_sft import ROWS

CONSTANT = {"scheduler": partial(ConstantLR, factor=1.0)}
ONLINE = {"rewards": counts_even_words, "group_size": 4, "sampling": Sampling(max_new_tokens=6)}
ALGORITHMS = {
    "sft": (SFT, {}, lambda: InstructDataModule(ROWS, batch_size=4)),
    "reward_model": (RewardModel, {}, lambda: PreferenceDataModule(PAIRS, batch_size=4)),
    "dpo": (DPO, {}, lambda: PreferenceDataModule(PAIRS, batch_size=4)),
    "grpo": (GRPO, ONLINE, lambda: PromptDataModule(PROMPTS, batch_size=4)),
    "ppo": (PPO, {**ONLINE, "critic": {"lr": 1e-3}}, lambda: PromptDataModule(PROMPTS, batch_size=4)),
}


@pytest.fixture
def fit(make_model, word_tokenizer, tmp_path):
    """Train an algorithm for three steps; its tensors and the norms of gradients that it logged."""

    def train(name, *, optimizer=torch.optim.AdamW, fused=None, lr=1e-3, **trainer):
        algorithm, settings, data = ALGORITHMS[name]
        torch.manual_seed(0)
        make = partial(optimizer, lr=lr, **({} if fused is None else {"fused": fused}))
        module = algorithm(
            BuiltModel(make_model(scale=2.0), tokenizer=word_tokenizer), optimizer=make, **CONSTANT, **settings
        )
        norms = []
        log = module.log
        module.log = lambda key, value, **how: (
            norms.append(float(value)) if key.endswith("grad_norm") else None,
            log(key, value, **how),
        )
        engine = Trainer(
            accelerator="cpu",
            max_steps=3,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **trainer,
        )
        engine.fit(module, datamodule=data())
        return dict(module.state_dict()), norms

    return train


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "grpo"])
def test_it_is_lightning_s_to_the_last_bit(fit, monkeypatch, name, algorithm):
    limits = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    got, norms = fit(name, optimizer=torch.optim.SGD, lr=0.1, **limits)
    assert min(norms) > 0.01
    monkeypatch.setattr(PostTrainingModule, "configure_gradient_clipping", LightningModule.configure_gradient_clipping)
    want, _ = fit(name, optimizer=torch.optim.SGD, lr=0.1, **limits)
    assert tensors_sha256(got) == tensors_sha256(want)
    unclipped, _ = fit(name, optimizer=torch.optim.SGD, lr=0.1)
    assert tensors_sha256(got) != tensors_sha256(unclipped)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_fused_optimizers_in_mixed_precision(fit, name, precision):
    """They do what others do: with a scale on the loss, the gradients that are logged and clipped are without it."""

    def plugin():
        scaler = GradScaler("cpu", init_scale=1024.0) if precision == "16-mixed" else None
        return MixedPrecision(precision, device="cpu", scaler=scaler)

    (got, norms), (want, expected) = (
        fit(name, fused=fused, plugins=plugin(), gradient_clip_val=0.01) for fused in (True, False)
    )
    assert norms == pytest.approx(expected, rel=1e-4)
    assert min(norms) > 0.01
    assert max(norms) < 100  # with the scale they are in the thousands
    for key, tensor in want.items():
        torch.testing.assert_close(got[key], tensor, atol=1e-5, rtol=0, msg=key)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_whose_gradient_overflows_is_left_out(fit, make_model, fused):
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=GradScaler("cpu", init_scale=2.0**40))
    got, norms = fit("sft", fused=fused, plugins=plugin, gradient_clip_val=0.01)
    assert not any(map(math.isfinite, norms))
    want = make_model(scale=2.0).state_dict()
    assert tensors_sha256({name.removeprefix("policy.model."): t for name, t in got.items()}) == tensors_sha256(want)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_groups_with_names_are_clipped_apart_and_all_others_together(algorithm):
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(5)]
    names = ["policy", "policy", "value", None, None]
    groups = [{"params": [p], **({"name": n} if n else {})} for p, n in zip(parameters, names, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    gradients = [torch.tensor([3.0, 4.0]) * 10.0**power for power in range(5)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    PostTrainingModule.configure_gradient_clipping(None, optimizer, 2.0, algorithm)
    if algorithm == "value":
        assert all(torch.equal(p.grad, torch.tensor([2.0, 2.0])) for p in parameters)
        return
    for together in ([0, 1], [2], [3, 4]):
        norm = torch.cat([parameters[i].grad for i in together]).norm().item()
        assert norm == pytest.approx(2.0, rel=1e-5)
        ratios = [parameters[i].grad / gradients[i] for i in together]
        torch.testing.assert_close(torch.cat(ratios), ratios[0][0].expand(2 * len(together)))


@pytest.mark.parametrize("limit", [None, 0, 0.0])
def test_no_limit(limit):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), 1e9)
    PostTrainingModule.configure_gradient_clipping(None, torch.optim.SGD([parameter], lr=1.0), limit, None)
    assert torch.equal(parameter.grad, torch.full((2,), 1e9))
