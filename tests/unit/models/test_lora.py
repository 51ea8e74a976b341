"""Adapters: what they change and when, switching them, exports, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_posttrain import Lora, Pretrained
from lit_posttrain.functional.random import sample_keys
from lit_posttrain.models.adapter import Adapter
from lit_posttrain.models.lora import as_adapter
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reference import AdapterReference
from lit_posttrain.models.weights import tensors_sha256
from lit_posttrain.rollout.engine import sample_completions
from lit_posttrain.rollout.options import Sampling
from tests.conftest import EOS
from tests.unit.models.test_policy_logprobs import COMPLETIONS, PROMPTS, padded

INPUTS = padded(PROMPTS, COMPLETIONS, left=2, right=1)


def logprobs(model) -> torch.Tensor:
    with torch.no_grad():
        return Policy(model, chunk_size=3)(INPUTS).logprobs


def moved(adapter: Adapter) -> Adapter:
    """With weights as after some training."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(7)
        for parameter in adapter.model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return adapter


def trainable(model) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.fixture
def base(make_model, word_tokenizer, tmp_path):
    """A folder with a model and its tokenizer."""
    make_model("gpt2").save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def trained(base, word_tokenizer, tmp_path):
    """A folder with an adapter of `base` that changes something, rank 3."""
    adapter = moved(Lora(r=3).attach(Pretrained(base).load_base()))
    adapter.save_pretrained(tmp_path / "adapter")
    word_tokenizer.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_fresh_adapter_changes_nothing_and_alone_gets_gradients(make_model, family, recwarn):
    model = make_model(family)
    want = logprobs(model)
    adapter = Lora(r=2).attach(model)
    assert torch.equal(logprobs(model), want)
    assert adapter.is_fresh
    policy = Policy(moved(adapter).model)
    assert not torch.allclose(logprobs(model), want, atol=1e-2)
    policy(INPUTS).logprobs.sum().backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient == trainable(model)
    assert all("lora_" in name for name in with_gradient)
    assert not any("lm_head" in name or "embed" in name for name in with_gradient)
    assert [str(w.message) for w in recwarn] == []


def test_a_fresh_adapter_is_a_function_of_its_seed(make_model):
    first, again, other = (tensors_sha256(Lora(r=2, seed=seed).attach(make_model()).state_dict()) for seed in (0, 0, 1))
    assert first == again != other


def test_the_adapter_of_bfloat16_weights_is_in_float32(make_model):
    model = Lora(r=2).attach(make_model(dtype=torch.bfloat16)).model
    assert model.transformer.wte.weight.dtype == torch.bfloat16
    assert {model.get_parameter(name).dtype for name in trainable(model)} == {torch.float32}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_samples_are_those_of_the_merged_model(make_model, family):
    """The decode loop over the cache; greedy output is that of `generate`, too."""
    adapter = moved(Lora(r=2).attach(make_model(family, dtype=torch.float64)))
    drawn = {}
    for temperature in (0.0, 1.0):
        for name, model in (("adapter", adapter.model), ("merged", adapter.merged())):
            settings = {"sampling": Sampling(max_new_tokens=8, temperature=temperature), "num_samples": 2}
            keys = sample_keys(torch.arange(len(PROMPTS)), num_samples=2, seed=0)
            drawn[name], _ = sample_completions(model, PROMPTS, **settings, keys=keys, eos_ids=[EOS], pad_id=0)
        assert torch.equal(drawn["adapter"].completion_ids, drawn["merged"].completion_ids)
        if temperature == 0:
            want = adapter.peft_model.generate(input_ids=torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=8)
            length = int(drawn["adapter"].completion_mask[0].sum())
            got = drawn["adapter"].completion_ids[0, :length]
            assert got.tolist() == want[0, len(PROMPTS[0]) : len(PROMPTS[0]) + length].tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["fresh", "trained", "dora", "pissa"])
def test_the_initial_policy_is_had_again_to_the_bit(make_model, family, kind):
    model = make_model(family)
    extra = {"dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}.get(kind)
    if extra:
        adapter = Adapter(get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", **extra)))
    else:
        adapter = Lora(r=2).attach(model)
        adapter = moved(adapter) if kind == "trained" else adapter
    want, size = logprobs(model), sum(p.numel() for p in model.parameters())
    reference = AdapterReference(Policy(model, chunk_size=3), adapter)
    if kind == "fresh":
        assert sum(p.numel() for p in model.parameters()) == size
    assert torch.equal(logprobs(model), want)
    moved(adapter)
    after = logprobs(model)
    assert not torch.allclose(after, want, atol=1e-2)
    assert torch.equal(reference.logprobs(INPUTS, temperature=1.0), want)
    assert torch.equal(logprobs(model), after)


@pytest.mark.parametrize("kind", ["fresh", "trained"])
def test_switching_leaves_flags_modes_and_checkpointing_alone(make_model, kind):
    model = make_model("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapter = Lora(r=2).attach(model)
    policy = Policy(moved(adapter).model if kind == "trained" else model).train()
    model.model.layers[1].eval()  # as odd as it may be
    names = trainable(model)
    reference = AdapterReference(policy, adapter)
    model.get_parameter(names[0]).requires_grad_(False)  # somebody's own choice
    before = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]
    loss = policy(INPUTS).logprobs.sum()  # its graph outlives the switch, and runs forward again in backward
    reference.logprobs(INPUTS, temperature=1.0)
    with pytest.raises(KeyboardInterrupt), adapter.initial():
        raise KeyboardInterrupt
    loss.backward()
    gradients = {name: model.get_parameter(name).grad.clone() for name in names[1:]}
    assert trainable(model) == names[1:]
    assert [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()] == before
    model.zero_grad()
    policy(INPUTS).logprobs.sum().backward()
    assert all(torch.equal(model.get_parameter(name).grad, gradients[name]) for name in names[1:])
    assert all(p.grad is None for name, p in model.named_parameters() if name not in names[1:])


def test_exports_give_equal_outputs(base, trained, tmp_path):
    model = Pretrained(trained).load()  # the folder names its model
    want, untrained = logprobs(model), logprobs(Pretrained(base).load())
    assert not torch.allclose(want, untrained, atol=1e-2)
    assert torch.equal(logprobs(AutoPeftModelForCausalLM.from_pretrained(trained).get_base_model()), want)
    on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), trained)
    assert torch.equal(logprobs(on_base.get_base_model()), want)
    Lora(adapter=trained).attach(Pretrained(base).load_base()).merged().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert set(merged.state_dict()) == set(AutoModelForCausalLM.from_pretrained(base).state_dict())
    torch.testing.assert_close(logprobs(merged), want, atol=1e-5, rtol=0)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_merging_leaves_the_model_as_it_was(make_model):
    adapter = moved(Lora(r=2).attach(make_model()))
    before, want = tensors_sha256(adapter.model.state_dict()), logprobs(adapter.model)
    adapter.merged()
    assert tensors_sha256(adapter.model.state_dict()) == before
    assert torch.equal(logprobs(adapter.model), want)


def test_an_adapter_goes_on_with_its_own_rank_and_tokenizer(base, trained):
    found = Pretrained(trained, lora=Lora(export="adapter")).adapter
    assert (found.adapter, found.export) == (trained, "adapter")
    adapter = found.attach(Pretrained(base).load_base())
    assert {p.shape[0] for n, p in adapter.model.named_parameters() if "lora_A" in n} == {3}
    assert not adapter.is_fresh
    assert all("lora_" in name for name in trainable(adapter.model))
    assert len(Pretrained(trained).load_tokenizer()) == 40
    (Path(trained) / "tokenizer_config.json").unlink()
    assert len(Pretrained(trained).load_tokenizer()) == 40  # that of the model


def test_a_given_peft_model(make_model):
    model = make_model()
    assert as_adapter(model) is None
    assert as_adapter(get_peft_model(model, LoraConfig(target_modules="all-linear"))).model is model


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"r": 0}, "`r` must be >= 1, got 0"),
        ({"alpha": 0.0}, "`alpha` must be finite and > 0"),
        ({"target_modules": []}, "`target_modules` is empty"),
        ({"export": "merge"}, "`export` must be one of merged, adapter, got `merge`"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        Lora(**settings)


def test_random_weights_with_an_adapter_alone_are_refused():
    with pytest.raises(ValueError, match=r"`lora.export=.adapter.` does not go with `random_init`"):
        Pretrained("tiny", random_init=True, lora=Lora(export="adapter"))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj"], r"names q_proj, which no layer of GPT2LMHeadModel is called. There are: c_attn, c_fc, c_proj, "),
        (["c_attn", "v_proj"], "names v_proj, which no layer"),  # peft lets this one pass
        ("c_attn", "names c_attn, which .* regular expression that whole names match"),
        (["lm_head"], "share one weight"),
        (["wte"], "share one weight"),
    ],
)
def test_targets_that_cannot_be(make_model, targets, says):
    with pytest.raises(ValueError, match=says):
        Lora(target_modules=targets).attach(make_model())


def test_targets_by_name_and_by_pattern(make_model):
    for targets in (["c_attn"], r".*\.c_attn"):
        names = trainable(Lora(target_modules=targets).attach(make_model()).model)
        assert len(names) == 4
        assert all(".attn.c_attn.lora_" in name for name in names)


def test_a_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-posttrain\[lora\]'"):
        Pretrained("tiny", lora=Lora()).check()


def test_a_folder_that_is_no_adapter(base):
    with pytest.raises(
        FileNotFoundError, match=r"without an adapter_config.json, so it is no adapter. Point `adapter`"
    ):
        Pretrained(base, lora=Lora(adapter=base)).check()
    with pytest.raises(FileNotFoundError, match=r"there is no folder `\./nothing`"):
        Pretrained(base, lora=Lora(adapter="./nothing")).check()


def test_two_adapters_and_a_model_that_is_gone(base, trained):
    with pytest.raises(ValueError, match=r"`path` and `lora.adapter` are both adapters"):
        Pretrained(trained, lora=Lora(adapter=trained)).check()
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match=r"the model of the adapter .* is missing: .*lora=Lora.adapter="):
        Pretrained(trained).check()
    assert Pretrained("tiny", lora=Lora(adapter=trained)).adapter.adapter == trained


def test_an_adapter_of_another_model(make_model, trained):
    with pytest.raises(
        ValueError, match=r"does not fit LlamaForCausalLM .* trained on `.*base`, give that model. Targ"
    ):
        Lora(adapter=trained).attach(make_model("llama"))
    config = make_model().config
    config.n_embd = 8
    with pytest.raises(ValueError, match=r"does not fit GPT2LMHeadModel .*size mismatch"):
        Lora(adapter=trained).attach(AutoModelForCausalLM.from_config(config))
    config.n_embd, config.n_layer = 16, 3
    settings = Path(trained) / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "target_modules": ["c_attn"]}))
    with pytest.raises(ValueError, match=r"does not fit GPT2LMHeadModel .* weights are in one of the two only"):
        Lora(adapter=trained).attach(AutoModelForCausalLM.from_config(config))
    config.vocab_size = 39
    with pytest.raises(ValueError, match=r"tokenizer of 40 tokens, the model .* has only 39 embeddings"):
        Lora(adapter=trained).attach(AutoModelForCausalLM.from_config(config))


def test_other_adapters_and_frozen_ones(make_model, base, trained):
    prompts = get_peft_model(make_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="only LoRA adapters can be trained, this one is PROMPT_TUNING"):
        as_adapter(prompts)
    frozen = PeftModel.from_pretrained(Pretrained(base).load_base(), trained)
    with pytest.raises(ValueError, match="is_trainable=True"):
        as_adapter(frozen)
