"""Policies by name and path, and what is refused before weights are loaded."""

import time

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from lit_posttrain import Pretrained
from lit_posttrain.models import hub
from lit_posttrain.models.tokenizers import check_tokenizer, eos_token_ids, pad_token_id
from lit_posttrain.models.weights import weights_sha256


def test_tiny_comes_with_the_package():
    model, tokenizer = Pretrained("tiny").load(), Pretrained("tiny").load_tokenizer()
    assert model.dtype == torch.float32
    ids = tokenizer("grid 5 5 walls e3 start d1 goal a3 path c1")["input_ids"]
    assert tokenizer.decode(ids) == "grid 5 5 walls e3 start d1 goal a3 path c1"
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_a_random_init_is_a_function_of_its_seed():
    first, again, other = (Pretrained("tiny", random_init=True, seed=seed).load() for seed in (0, 0, 1))
    assert weights_sha256(first) == weights_sha256(again) != weights_sha256(other)
    assert weights_sha256(first) != weights_sha256(Pretrained("tiny").load())


def test_dtype_is_float32_whatever_the_folder_holds(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1)).to(torch.bfloat16).save_pretrained(
        tmp_path
    )
    assert Pretrained(str(tmp_path)).load().dtype == torch.float32
    assert Pretrained(str(tmp_path), dtype="auto").load().dtype == torch.bfloat16


def test_gradient_checkpointing_is_switched_on():
    assert Pretrained("tiny", gradient_checkpointing=True).load().is_gradient_checkpointing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": ""}, "`path` is empty"),
        ({"path": "tiny", "dtype": "float16"}, r"got `float16` \(AdamW in float16 ends in NaN\)"),
        ({"path": "tiny", "attention": "sdp"}, "`attention` must be one of sdpa.* or None, got `sdp`"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Pretrained(**settings)


def test_a_missing_folder_and_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder `\./nowhere`"):
        Pretrained("./nowhere").check()
    with pytest.raises(FileNotFoundError, match=r"without a config\.json"):
        Pretrained(str(tmp_path)).check()
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a t5 model, which is no causal language model"):
        Pretrained(str(tmp_path)).check()


def test_without_a_network_an_unknown_name_fails_at_once(monkeypatch):
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"hf download some/model.*a local folder as `path`"):
        Pretrained("some/model").load()
    assert time.monotonic() - started < 5


def test_the_probe_of_the_hub_is_short(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.hub_is_reachable.cache_clear()
    started = time.monotonic()
    assert not hub.hub_is_reachable()
    assert time.monotonic() - started < hub.PROBE_TIMEOUT_S + 2
    hub.hub_is_reachable.cache_clear()


def test_tokenizers(word_tokenizer, make_model):
    check_tokenizer(word_tokenizer, vocab_size=40)
    check_tokenizer(word_tokenizer, vocab_size=64)  # a padded embedding is normal
    with pytest.raises(ValueError, match="has 40 tokens but the model only 39 embeddings"):
        check_tokenizer(word_tokenizer, vocab_size=39)
    model = make_model("gpt2")
    model.generation_config.eos_token_id = [7, 1]
    assert eos_token_ids(word_tokenizer, model) == [1, 7]
    assert pad_token_id(word_tokenizer) == 0


def test_a_tokenizer_without_eos_or_pad(word_tokenizer):
    import copy

    without = copy.deepcopy(word_tokenizer)
    without.pad_token = None
    assert pad_token_id(without) == 1
    without.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        check_tokenizer(without, vocab_size=40)


def test_the_fingerprint_sees_names_dtypes_shapes_and_values():
    model = torch.nn.Linear(2, 3)
    first = weights_sha256(model)
    assert first == weights_sha256(model)
    with torch.no_grad():
        model.weight[0, 0] += 1e-6
    assert weights_sha256(model) != first
    assert weights_sha256(torch.nn.Linear(3, 2)) != first
