"""Adapters through a Trainer and from the command line: the start, the reference, checkpoints, resuming, exports."""

import json
import warnings
from functools import partial

import pytest
import torch
from lightning import Trainer
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch.optim.lr_scheduler import ConstantLR
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_posttrain import (
    DPO,
    GRPO,
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
)
from lit_posttrain.app.run import run
from lit_posttrain.models.weights import tensors_sha256, weights_sha256
from tests.composing import compose_train
from tests.groups import grouped
from tests.integration.conftest import PROMPTS, counts_even_words
from tests.integration.recording import StepRecorder
from tests.integration.test_dpo import PAIRS
from tests.integration.test_resume import keep_every
from tests.integration.test_sft import ROWS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = {
    SFT: lambda: InstructDataModule(ROWS, batch_size=4),
    DPO: lambda: PreferenceDataModule(PAIRS, batch_size=4),
    RewardModel: lambda: PreferenceDataModule(PAIRS, batch_size=4),
}
ONLINE = {"group_size": 4, "sampling": Sampling(max_new_tokens=6)}
ARGUMENTS = {
    SFT: {},
    DPO: {},
    RewardModel: {},
    GRPO: {**ONLINE, "rewards": counts_even_words, "kl_coef": 0.05, "scale": "none", "rollouts__num_minibatches": 2},
    RLOO: {**ONLINE, "rewards": counts_even_words, "kl_coef": 0.05},
    ReinforcePlusPlus: {**ONLINE, "rewards": counts_even_words, "kl_coef": 0.05},
}


class Recorder(StepRecorder):
    """The metrics of every optimiser step, and which parameters had gradients."""

    def __init__(self):
        super().__init__()
        self.with_gradient = set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.with_gradient |= {name for name, p in pl_module.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def folders(make_model, word_tokenizer, tmp_path_factory):
    """A model, and an adapter of it that has been trained a little."""
    folder = tmp_path_factory.mktemp("lora")
    make_model("gpt2", scale=2.0).save_pretrained(folder / "base")
    word_tokenizer.save_pretrained(folder / "base")
    adapter = Lora(r=2).attach(Pretrained(str(folder / "base")).load_base())
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    adapter.save_pretrained(folder / "adapter")
    return {"base": str(folder / "base"), "adapter": str(folder / "adapter")}


@pytest.fixture
def fit(folders, tmp_path):
    """Fit an algorithm with an adapter, from a fresh one or the trained one; module, recorder, Trainer."""

    def start(algorithm, *, start="fresh", max_steps=3, callbacks=(), ckpt_path=None, accumulate=1, r=2, **changed):
        lora = Lora(r=r, adapter=folders["adapter"] if start == "trained" else None)
        arguments = {
            "optimizer": partial(torch.optim.AdamW, lr=1e-2),
            "scheduler": partial(ConstantLR, factor=1.0),
            **ARGUMENTS[algorithm],
            **changed,
        }
        torch.manual_seed(0)
        module = algorithm(Pretrained(folders["base"], lora=lora), **grouped(arguments))
        recorder = Recorder()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            accumulate_grad_batches=accumulate,
            logger=False,
            limit_val_batches=0,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[recorder, *callbacks],
        )
        data = DATA.get(algorithm, lambda: PromptDataModule(PROMPTS, batch_size=4))()
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, recorder, trainer

    return start


def frozen_weights(module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.language_model.named_parameters() if not p.requires_grad}


def without_layers(weights):
    """By the names that they have in the model alone."""
    return {n.replace(".base_layer", ""): t for n, t in weights.items() if "lora_" not in n}


@pytest.mark.parametrize("algorithm", ARGUMENTS, ids=lambda algorithm: algorithm.__name__)
def test_the_adapter_alone_is_trained(fit, folders, algorithm):
    module, recorder, _ = fit(algorithm)
    head = {"network.model.score.weight"} if algorithm is RewardModel else set()
    assert {name for name in recorder.with_gradient if "lora_" not in name} == head
    assert len(recorder.with_gradient) == 16 + len(head)
    assert not module.source.adapter.is_fresh
    want = AutoModelForCausalLM.from_pretrained(folders["base"]).state_dict()
    for name, tensor in without_layers(frozen_weights(module)).items():
        assert torch.equal(tensor, want[name]), name


@pytest.mark.parametrize("start", ["fresh", "trained"])
@pytest.mark.parametrize("algorithm", [GRPO, RLOO, ReinforcePlusPlus], ids=lambda algorithm: algorithm.__name__)
def test_kl_is_exactly_0_at_the_start_and_the_reference_stays(fit, algorithm, start):
    """The base model without its adapter is the reference, as is a copy of an adapter that was trained."""
    module, recorder, _ = fit(algorithm, start=start, rollouts__num_minibatches=1)
    assert recorder.logged[0]["policy/kl_ref"] == 0
    assert recorder.logged[0]["policy/ratio_max"] == 1
    assert recorder.logged[-1]["policy/kl_ref"] > 1e-5
    names = {n for n, p in module.language_model.named_parameters() if ".reference." in n}
    assert len(names) == (16 if start == "trained" else 0)
    assert not any(p.requires_grad or p.grad is not None for n, p in module.named_parameters() if ".reference." in n)


def test_the_reference_of_a_trained_adapter_is_its_folder(fit, folders):
    module, _, _ = fit(GRPO, start="trained")
    with module.source.adapter.initial():
        ids = torch.arange(5)[None]
        got = module.language_model(input_ids=ids).logits
    want = AutoPeftModelForCausalLM.from_pretrained(folders["adapter"]).eval()(input_ids=ids).logits
    assert torch.equal(got, want)


@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_dpo_begins_at_log_2(fit, start):
    online, first, _ = fit(DPO, start=start, accumulate=2)
    assert first.logged[0]["train/loss"] == pytest.approx(0.693147, abs=1e-6)
    assert [first.logged[0][f"rewards/{name}"] for name in ("chosen", "rejected", "margin")] == [0, 0, 0]
    assert first.logged[2]["rewards/margin"] != 0
    kept, second, _ = fit(DPO, start=start, accumulate=2, precompute_reference=True)
    assert second.logged == first.logged
    assert kept.reference is None
    assert online.reference is not None


@pytest.mark.parametrize(
    ("algorithm", "start"),
    [(SFT, "fresh"), (SFT, "trained"), (GRPO, "fresh"), (GRPO, "trained"), (DPO, "trained"), (RewardModel, "fresh")],
)
def test_a_checkpoint_holds_what_is_trained_and_resumes_to_the_bit(fit, tmp_path, algorithm, start):
    """In the middle of a rollout too."""
    keep = keep_every(1, tmp_path / "whole")
    whole, _, _ = fit(algorithm, start=start, max_steps=4, accumulate=2, callbacks=[keep])
    want = weights_sha256(whole.language_model)
    for step in (1, 3):
        path = tmp_path / "whole" / f"step={step}.ckpt"
        held = torch.load(path, weights_only=True)["state_dict"]
        trained = {name for name, p in whole.named_parameters() if p.requires_grad}
        assert {name for name in held if "lora_" in name or "score.weight" in name} == trained
        assert not any("wte" in name or "base_layer" in name or ".reference." in name for name in held)
        resumed, recorder, _ = fit(algorithm, start=start, max_steps=4, accumulate=2, ckpt_path=path)
        assert len(recorder.logged) == 4 - step
        assert weights_sha256(resumed.language_model) == want, f"resumed at step {step}"


def test_checkpoints_that_do_not_fit(fit, folders, tmp_path):
    module, _, _ = fit(SFT, max_steps=1, callbacks=[keep_every(1, tmp_path)])
    path = tmp_path / "step=1.ckpt"
    with pytest.raises(ValueError, match=r"does not fit this run's adapter: give `r`, `target_modules`.*size mismatch"):
        fit(SFT, r=3, ckpt_path=path)
    with pytest.raises(ValueError, match=r"holds an adapter without its model.*options as its run had them, `lora`"):
        SFT.load_from_checkpoint(path, policy=folders["base"])
    lora = Lora(r=2)
    loaded = SFT.load_from_checkpoint(path, policy=Pretrained(folders["base"], lora=lora))
    assert weights_sha256(loaded.language_model) == weights_sha256(module.language_model)
    checkpoint = torch.load(path, weights_only=True)
    cut = dict(checkpoint["state_dict"])
    cut.pop(next(name for name in cut if "lora_B" in name))
    torch.save({**checkpoint, "state_dict": cut}, tmp_path / "cut.ckpt")
    with pytest.raises(ValueError, match=r"does not fit this run's adapter.*Missing key"):
        SFT.load_from_checkpoint(tmp_path / "cut.ckpt", policy=Pretrained(folders["base"], lora=lora))
    del checkpoint["adapter_only"]
    torch.save(checkpoint, tmp_path / "whole.ckpt")
    with pytest.raises(ValueError, match=r"holds a whole model, and this run trains an adapter: leave out `lora`"):
        SFT.load_from_checkpoint(tmp_path / "whole.ckpt", policy=Pretrained(folders["base"], lora=lora))


def test_the_reward_model_leaves_a_merged_classifier(fit, folders, tmp_path):
    module, _, _ = fit(RewardModel)
    module.save_pretrained(tmp_path / "export")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    ids = torch.tensor([[3, 4, 5, 6, 1]])
    with torch.no_grad():
        torch.testing.assert_close(exported(input_ids=ids).logits, module.language_model.eval()(input_ids=ids).logits)
    assert weights_sha256(exported) == tensors_sha256(module.exported_weights())
    assert exported.config.score_mean == pytest.approx(module.network.score_mean.item())
    with pytest.raises(ValueError, match="does not go with a reward model"):
        RewardModel(Pretrained(folders["base"], lora=Lora(export="adapter")))


def test_a_reward_model_goes_on_with_the_adapter_of_a_policy(fit):
    _, recorder, _ = fit(RewardModel, start="trained")
    assert len(recorder.with_gradient) == 17
    assert len(recorder.logged) == 3


SMALL = [
    "logger=csv",
    "seed=3",
    "trainer.max_steps=2",
    "+trainer.enable_progress_bar=false",
    "data.batch_size=2",
    "data.path.num_prompts=8",
    "data.path.num_validation=2",
    "algo.group_size=2",
    "algo.validation.num_samples=1",
    "algo.sampling.max_new_tokens=4",
    "algo.kl_coef=0.1",
    "optim.lr=3e-3",
]


def test_from_the_command_line(tmp_path):
    """A merged export, an adapter, and a run that goes on with it; each digest is that of what was written."""
    lora = ["model/lora=default", "model.lora.r=2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(compose_train(*SMALL, *lora, run_dir=tmp_path / "merged"))
        run(compose_train(*SMALL, *lora, "model.lora.export=adapter", run_dir=tmp_path / "alone"))
        going_on = ["model=local", f"model.path={tmp_path}/alone/export"]
        run(compose_train(*SMALL, *going_on, run_dir=tmp_path / "further"))
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("merged", "alone", "further")]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "export")
    assert weights_sha256(merged) == summaries[0]["weights_sha256"]
    alone = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "alone" / "export")
    written = load_file(tmp_path / "alone" / "export" / "adapter_model.safetensors")
    assert tensors_sha256(written) == summaries[1]["weights_sha256"]
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(alone(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4, rtol=0)
    further = AutoModelForCausalLM.from_pretrained(tmp_path / "further" / "export")
    assert weights_sha256(further) == summaries[2]["weights_sha256"]
    assert [summary["metrics"]["policy/kl_ref"]["first"] for summary in summaries] == [0, 0, 0]
    assert (tmp_path / "alone" / "export" / "tokenizer.json").is_file()
    assert not (tmp_path / "alone" / "export" / "model.safetensors").exists()
