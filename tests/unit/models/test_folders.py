"""Hugging Face folders that are not as they should be: weights missing, misshapen or no numbers, and code."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lit_posttrain
from lit_posttrain import Lora, Pretrained
from lit_posttrain.models.networks.reward import RewardNetwork
from lit_posttrain.models.weights import weights_sha256
from tests.conftest import FAMILIES, VOCAB


def change_weights(folder: Path, change, *, file: str = "model.safetensors") -> None:
    """Rewrite the tensors of a folder."""
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def layer_of(weights: dict[str, torch.Tensor]) -> str:
    """The name of some weight inside a layer."""
    return next(name for name in sorted(weights) if ".1." in name and name.endswith("weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_whole_and_no_weight_may_be_missing(tmp_path, make_model, family):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    assert weights_sha256(Pretrained(str(tmp_path)).load()) == weights_sha256(model)
    for name in sorted(load_file(tmp_path / "model.safetensors")):
        model.save_pretrained(tmp_path)
        change_weights(tmp_path, lambda weights, name=name: weights.pop(name))
        asked = {"embed_out.weight": "lm_head.weight"}.get(name, name)  # GPT-NeoX calls it otherwise in its files
        with pytest.raises(ValueError, match=rf"`{tmp_path}` has not all weights of its .*{asked}.* would be random"):
            Pretrained(str(tmp_path)).load()


def test_names_with_another_prefix(tmp_path, make_model):
    make_model("llama").save_pretrained(tmp_path)

    def rename(weights):
        for name in list(weights):
            weights[f"policy.{name}"] = weights.pop(name)

    change_weights(tmp_path, rename)
    said = r"lm_head.weight, .* and \d+ more would be random. In their place it has policy.lm_head.weight, "
    with pytest.raises(ValueError, match=said):
        Pretrained(str(tmp_path)).load()


def test_weights_that_nobody_asks_for_are_no_error(tmp_path, make_model):
    model = make_model("gpt2")
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.update(value_head=torch.zeros(3)))
    assert weights_sha256(Pretrained(str(tmp_path)).load()) == weights_sha256(model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_trunk_without_its_prefix_comes_back_whole(tmp_path, make_model, family):
    """As the first GPT-2 was stored: transformers finds the names, and the tied head."""
    model = make_model(family)
    if family == "llama":
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.base_model.save_pretrained(tmp_path)
    assert weights_sha256(Pretrained(str(tmp_path)).load()) == weights_sha256(model)


def test_a_shape_that_does_not_fit(tmp_path, make_model):
    make_model("qwen2").save_pretrained(tmp_path)
    name = layer_of(load_file(tmp_path / "model.safetensors"))
    change_weights(tmp_path, lambda weights: weights.update({name: torch.zeros(3, 5)}))
    with pytest.raises(ValueError, match=rf"of other shapes than its config.json asks for: {name} \[3, 5\] instead of"):
        Pretrained(str(tmp_path)).load()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_no_numbers(tmp_path, make_model, value, dtype):
    make_model("gemma2").to(getattr(torch, dtype)).save_pretrained(tmp_path)
    name = layer_of(load_file(tmp_path / "model.safetensors"))

    def spoil(weights):
        weights[name].view(-1)[-1] = value

    change_weights(tmp_path, spoil)
    with pytest.raises(ValueError, match=rf"`{tmp_path}` has weights that are NaN or infinite: {name}\. A run"):
        Pretrained(str(tmp_path), dtype=dtype).load()


def test_shards(tmp_path, make_model):
    model = make_model("llama")
    model.save_pretrained(tmp_path, max_shard_size=4000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert weights_sha256(Pretrained(str(tmp_path)).load()) == weights_sha256(model)
    name, file = max(index.items())
    change_weights(tmp_path, lambda weights: weights.pop(name), file=file)
    with pytest.raises(ValueError, match=f"has not all weights of its LlamaForCausalLM: {name} would be random"):
        Pretrained(str(tmp_path)).load()
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"the weights in `{tmp_path}` cannot be read"):
        Pretrained(str(tmp_path)).load()


def test_a_reward_model_without_its_head(tmp_path, make_model):
    network = RewardNetwork.from_causal_lm(make_model("gpt2"), pad_id=0, vocab_size=VOCAB)
    network.save_pretrained(tmp_path)
    RewardNetwork.load(str(tmp_path))
    change_weights(tmp_path, lambda weights: weights.pop("score.weight"))
    with pytest.raises(ValueError, match=r"all weights of its GPT2ForSequenceClassification: score\.weight would be"):
        RewardNetwork.load(str(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: weights.pop(min(weights)), "1 weights are in one of the two only"),
        (lambda weights: weights[max(weights)].fill_(torch.nan), "weights that are NaN or infinite: .*lora_B"),
        (lambda weights: weights.update({min(weights): torch.zeros(3, 5)}), "size mismatch"),
    ],
)
def test_adapters(tmp_path, make_model, spoil, said):
    make_model("gpt2").save_pretrained(tmp_path / "base")
    base = Pretrained(str(tmp_path / "base"))
    Lora(r=2).attach(base.load_base()).save_pretrained(tmp_path / "adapter")
    Pretrained(str(tmp_path / "adapter")).load()
    change_weights(tmp_path / "adapter", spoil, file="adapter_model.safetensors")
    with pytest.raises(ValueError, match=said):
        Pretrained(str(tmp_path / "adapter")).load()


def test_an_adapter_that_was_cut_off(tmp_path, make_model):
    make_model("gpt2").save_pretrained(tmp_path / "base")
    Lora(r=2).attach(Pretrained(str(tmp_path / "base")).load_base()).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the adapter `{tmp_path}/adapter` does not fit"):
        Pretrained(str(tmp_path / "adapter")).load()


# Code.


@pytest.fixture
def with_code(tmp_path, make_model, word_tokenizer, monkeypatch) -> Path:
    """A folder of an architecture that transformers does not know, whose code would leave a trace."""
    make_model("gpt2").save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "own", "auto_map": code}))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer | own))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    return tmp_path


@pytest.mark.parametrize("read", [Pretrained.load, Pretrained.load_config, Pretrained.check, Pretrained.load_tokenizer])
def test_code_of_a_folder_is_never_run(with_code, read):
    with pytest.raises(
        ValueError, match=rf"`{with_code}` brings Python code of its own .*hand over model and tokenizer"
    ):
        read(Pretrained(str(with_code)))
    assert not (with_code / "ran").exists()


def test_code_for_an_architecture_that_transformers_has_is_passed_over(with_code):
    settings = json.loads((with_code / "config.json").read_text())
    (with_code / "config.json").write_text(json.dumps(settings | {"model_type": "gpt2"}))
    assert type(Pretrained(str(with_code)).load()).__name__ == "GPT2LMHeadModel"
    assert not (with_code / "ran").exists()


def asks_for_trust(source: str) -> list[str]:
    """Calls that could run code of a folder, or ask whether to, by their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whose = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and not whose.startswith("Peft"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("trust_remote_code") != "False":
                    found.append(ast.unparse(node))
    return found


def test_no_call_asks_whether_to_trust():
    paths = sorted(Path(lit_posttrain.__file__).parent.rglob("*.py"))
    assert len(paths) > 100
    calls = {path.name: asks_for_trust(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: found for name, found in calls.items() if found} == {}
    assert asks_for_trust("AutoConfig.from_pretrained(folder)") == ["AutoConfig.from_pretrained(folder)"]
    assert asks_for_trust("kind.from_config(c, trust_remote_code=True)") != []


def test_a_model_is_loaded_once(tmp_path, make_model, monkeypatch):
    """The check of the weights is part of the loading, not a second one."""
    make_model("gpt2").save_pretrained(tmp_path)
    loads, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: (loads.append(a), load(*a, **k))[1])
    Pretrained(str(tmp_path)).load()
    assert len(loads) == 1
