"""Exports of modules, as somebody calls `save_pretrained`: there whole or not at all, whatever was there before."""

import pytest
from transformers import AutoModelForCausalLM

from lit_posttrain import GRPO, SFT, Lora, Pretrained, RewardModel
from lit_posttrain.files.whole import NoRoomError
from lit_posttrain.models.weights import weights_sha256
from tests.small_files import files_of_at_most

MODULES = {
    "policy": lambda source: SFT(source),
    "adapter": lambda source: SFT(Pretrained(source, lora=Lora(export="adapter"))),
    "reward": lambda source: RewardModel(source),
}


@pytest.fixture
def source(tmp_path, make_model, word_tokenizer) -> str:
    """The folder of a model."""
    make_model("gpt2").save_pretrained(tmp_path / "source")
    word_tokenizer.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


@pytest.mark.parametrize("kind", MODULES)
def test_an_export_that_fails_leaves_the_old_one(tmp_path, source, kind):
    module = MODULES[kind](source)
    module.configure_model()
    module.save_pretrained(tmp_path / "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    with files_of_at_most(2000), pytest.raises(NoRoomError, match=f"`{tmp_path}/export` could not be written"):
        module.save_pretrained(tmp_path / "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before
    with files_of_at_most(2000), pytest.raises(NoRoomError):
        module.save_pretrained(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "source"]
    module.save_pretrained(tmp_path / "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before


def test_weights_in_one_file_take_the_place_of_shards(tmp_path, source, make_model):
    """And of an adapter: whoever loads the folder finds the new weights alone, and what is his stays."""
    make_model("gpt2", seed=1).save_pretrained(tmp_path / "export", max_shard_size=5000)
    Lora(r=2).attach(make_model("gpt2")).save_pretrained(tmp_path / "export")
    for notes in (None, tmp_path / "export" / "notes.txt"):
        if notes is not None:
            notes.touch()
        module = GRPO(source, lambda completions: [0.0] * len(completions))
        module.configure_model()
        module.save_pretrained(tmp_path / "export")
        names = {path.name for path in (tmp_path / "export").iterdir()}
        assert [name for name in sorted(names) if "model" in name or "adapter" in name] == ["model.safetensors"]
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
        assert weights_sha256(loaded) == weights_sha256(module.language_model)
        assert notes is None or notes.exists()
