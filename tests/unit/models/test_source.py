"""Where a module's model comes from and how it leaves, without a module."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_posttrain import BuiltModel, Lora, Pretrained
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reference import AdapterReference, FrozenReference
from lit_posttrain.models.source import UNAVERAGED, ModelSource
from lit_posttrain.models.weights import weights_sha256


def source_of(model, argument="policy"):
    return ModelSource(model, argument=argument)


@pytest.fixture
def folder(make_model, word_tokenizer, tmp_path):
    make_model("gpt2").save_pretrained(tmp_path / "base")
    word_tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def built(make_model, word_tokenizer):
    """A source with somebody's own model, as it is or with an adapter of peft's."""

    def make(*, adapter=False, **settings):
        model = make_model("gpt2")
        if adapter:
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))
        return source_of(BuiltModel(model, tokenizer=word_tokenizer, **settings))

    return make


def test_a_name_a_path_and_a_pretrained_are_the_same(folder, tmp_path):
    sources = [source_of(folder), source_of(tmp_path / "base"), source_of(Pretrained(folder))]
    assert len({weights_sha256(source.load()) for source in sources}) == 1
    assert all(source.is_named for source in sources)
    assert {source.logits_chunk_size for source in sources} == {512}
    assert source_of(Pretrained(folder, logits_chunk_size=3)).load_policy().chunk_size == 3


def test_a_model_is_taken_as_it_is_and_a_function_called_when_its_model_is_needed(make_model, word_tokenizer):
    model, calls = make_model("gpt2"), []

    def make():
        calls.append("made")
        return model

    for given in (model, make):
        source = source_of(BuiltModel(given, tokenizer=word_tokenizer, logits_chunk_size=7))
        source.check()
        assert not source.is_named
        assert not source.trains_adapter
        assert calls == []
        assert source.load() is model
        policy = source.load_policy()
        assert isinstance(policy, Policy)
        assert policy.model is model
        assert policy.chunk_size == 7
    assert calls == ["made"] * 2


@pytest.mark.parametrize("given", [3, None, ["tiny"]])
def test_what_is_no_model_is_named(given):
    message = rf"`model` must be the name or path of a model, .* got {type(given).__name__}\."
    with pytest.raises(TypeError, match=message):
        source_of(given, argument="model")


def test_the_tokenizer_is_that_which_was_given_or_found_by_name(folder, make_model, word_tokenizer):
    assert source_of(BuiltModel(make_model(), tokenizer=word_tokenizer)).tokenizer is word_tokenizer
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for given in (folder, loaded, get_peft_model(loaded, LoraConfig(target_modules=["c_attn"]))):
        source = source_of(given)
        assert source.tokenizer.get_vocab() == word_tokenizer.get_vocab()
        assert source.tokenizer is source.tokenizer
    for nameless in (make_model(), lambda: pytest.fail("weights were loaded")):
        with pytest.raises(ValueError, match=r"the reward was given as an object that has no name.*tokenizer=\.\.\."):
            _ = source_of(nameless, argument="reward").tokenizer


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(make_model):
    source = source_of(BuiltModel(make_model(), tokenizer=Pretrained("tiny").load_tokenizer()))
    with pytest.raises(ValueError, match="tokens"):
        source.load()


def test_a_folder_that_is_missing_is_found_out_without_loading():
    with pytest.raises(FileNotFoundError):
        source_of("./nowhere").check()


def test_the_config(folder, built):
    assert source_of(folder).config().model_type == built().config().model_type == "gpt2"


def test_an_adapter_is_put_on_what_is_trained(folder):
    source = source_of(Pretrained(folder, lora=Lora(r=2)))
    assert source.trains_adapter
    assert source.adapter is None  # nothing is loaded
    policy = source.load_policy()
    assert source.adapter is not None
    assert all("lora_" in name for name, p in policy.named_parameters() if p.requires_grad)
    assert isinstance(source.reference_of(policy), AdapterReference)
    assert source.merged(policy.model) is not policy.model


def test_an_adapter_in_somebody_s_model_is_found(built):
    source = built(adapter=True)
    assert source.trains_adapter
    policy = source.load_policy()
    assert source.adapter is not None
    assert isinstance(source.reference_of(policy), AdapterReference)


def test_the_reference_of_a_whole_model_is_a_copy(built):
    source = built()
    policy = source.load_policy()
    reference = source.reference_of(policy)
    assert isinstance(reference, FrozenReference)
    before = weights_sha256(reference.policy.model)
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    assert weights_sha256(reference.policy.model) == before != weights_sha256(policy.model)
    assert source.merged(policy.model) is policy.model


@pytest.mark.parametrize("export", ["merged", "adapter"])
def test_an_export_is_whole_or_the_adapter(folder, tmp_path, export):
    source = source_of(Pretrained(folder, lora=Lora(r=2, export=export)))
    assert source.exports_adapter == (export == "adapter")
    model = source.load_policy().model
    assert source.exports_adapter == (export == "adapter")
    names = source.exported_weights(model)
    assert all("lora_" in name for name in names) == (export == "adapter")
    source.save(tmp_path / "export", model, writes=False)
    assert not (tmp_path / "export").exists()
    source.save(tmp_path / "export", model, writes=True)
    assert (tmp_path / "export" / "adapter_config.json").is_file() == (export == "adapter")
    assert AutoTokenizer.from_pretrained(tmp_path / "export").get_vocab() == source.tokenizer.get_vocab()
    if export == "merged":  # a fresh adapter changes nothing
        want = AutoModelForCausalLM.from_pretrained(folder)
        assert weights_sha256(AutoModelForCausalLM.from_pretrained(tmp_path / "export")) == weights_sha256(want)


def test_a_checkpoint_of_an_adapter_has_what_is_trained(folder):
    source = source_of(Pretrained(folder, lora=Lora(r=2)))
    policy = source.load_policy()
    checkpoint = {"state_dict": dict(policy.state_dict()), UNAVERAGED: dict(policy.state_dict()), "other": 3}
    source.leave_out_frozen(policy, checkpoint)
    for weights in ("state_dict", UNAVERAGED):
        assert len(checkpoint[weights]) > 0
        assert all("lora_" in name for name in checkpoint[weights])
    assert checkpoint["adapter_only"]
    assert checkpoint["other"] == 3


def test_a_checkpoint_of_a_whole_model_stays_whole(built):
    source = built()
    policy = source.load_policy()
    checkpoint = {"state_dict": dict(policy.state_dict())}
    source.leave_out_frozen(policy, checkpoint)
    assert checkpoint.keys() == {"state_dict"}
    assert checkpoint["state_dict"].keys() == policy.state_dict().keys()


def test_checkpoints_of_the_other_kind_are_refused(folder, built, make_model, word_tokenizer):
    adapter, whole = source_of(Pretrained(folder, lora=Lora(r=2))), source_of(folder)
    for source in (adapter, built(adapter=True)):
        source.check_checkpoint({"adapter_only": True})
        with pytest.raises(ValueError, match="holds a whole model, and this run trains an adapter"):
            source.check_checkpoint({})
    for source in (whole, built()):
        source.check_checkpoint({})
        with pytest.raises(ValueError, match="holds an adapter without its model, and this run trains all weights"):
            source.check_checkpoint({"adapter_only": True})
    unknown = source_of(BuiltModel(make_model, tokenizer=word_tokenizer))
    for checkpoint in ({}, {"adapter_only": True}):
        unknown.check_checkpoint(checkpoint)  # what a function builds is known once it was called
