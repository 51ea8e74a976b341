"""Models, tokenizers and checkpoints that do not fit end in a message, before a step is made."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from lit_posttrain.app import run as app_run
from lit_posttrain.app.folder.files import EXPORTS
from lit_posttrain.app.run import run
from lit_posttrain.files.whole import NoRoomError
from lit_posttrain.models.hub import hub_is_reachable
from lit_posttrain.models.loading import BUILT_IN, Pretrained
from tests.composing import compose_train
from tests.failing import GRID, assert_says, failure
from tests.small_files import files_of_at_most

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights is a failure of its own."""
    monkeypatch.setattr(Pretrained, "load_base", lambda self: pytest.fail("weights were loaded"))


@pytest.fixture
def tiny_copy(tmp_path):
    """A folder with the built-in model, to be spoilt."""
    return shutil.copytree(BUILT_IN["tiny"], tmp_path / "model")


def test_tokenizer_without_eos(tmp_path, tiny_copy):
    settings = json.loads((tiny_copy / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tiny_copy / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_says(
        failure(tmp_path / "run", *GRID, "model=local", f"model.path={tiny_copy}"),
        "the tokenizer has no EOS token: a completion could not end.",
        "tokenizer.eos_token = ...",
    )


def test_vocabulary_of_another_model(tmp_path):
    AutoTokenizer.from_pretrained(BUILT_IN["tiny"]).save_pretrained(tmp_path / "model")
    GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path / "model")
    assert_says(
        failure(tmp_path / "run", *GRID, "model=local", f"model.path={tmp_path}/model"),
        "the tokenizer has 79 tokens but the model only 10 embeddings",
        "resize_token_embeddings",
    )


def test_no_causal_language_model(tmp_path, no_weights):
    config = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    assert_says(
        failure(tmp_path / "run", *GRID, "model=local", f"model.path={tmp_path}/model"),
        "holds a t5 model, which is no causal language model",
        "Check `path`",
    )


def test_folder_that_is_no_model(tmp_path, no_weights):
    (tmp_path / "empty").mkdir()
    assert_says(
        failure(tmp_path / "run", *GRID, "model=local", f"model.path={tmp_path}/nowhere"),
        "there is no folder",
        "check `path`",
    )
    assert_says(
        failure(tmp_path / "run", *GRID, "model=local", f"model.path={tmp_path}/empty"),
        "is a folder without a config.json",
        "written by `save_pretrained`",
    )


@pytest.fixture
def offline(monkeypatch):
    """The Hub may not be asked, whatever was found out about it before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_is_reachable.cache_clear()
    yield
    hub_is_reachable.cache_clear()


def test_unknown_name_offline(tmp_path, no_weights, offline):
    assert_says(
        failure(tmp_path / "run", *GRID, "model=local", "model.path=somebody/no-such-model"),
        "the model `somebody/no-such-model` is not in the local cache",
        "HF_HUB_OFFLINE is set",
        "or give a local folder as `path`",
    )


# Checkpoints.


def test_missing_checkpoint(tmp_path, no_weights):
    assert_says(
        failure(tmp_path / "run", *GRID, f"ckpt_path={tmp_path}/none.ckpt"),
        f"there is no checkpoint `{tmp_path}/none.ckpt`",
    )


@pytest.mark.parametrize("mode", ["fit", "validate", "predict"])
def test_file_that_is_no_checkpoint(tmp_path, no_weights, mode):
    weights = BUILT_IN["tiny"] / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    torch.save({"global_step": tmp_path}, tmp_path / "unsafe.pt")
    (tmp_path / "text.ckpt").write_text("nothing")
    others = [tmp_path / name for name in ("other.pt", "list.pt", "unsafe.pt", "text.ckpt")]
    for path in [weights, *(others if mode == "fit" else [])]:
        assert_says(
            failure(tmp_path / "run", *GRID, f"mode={mode}", f"ckpt_path={path}"),
            f"`ckpt_path` must be a checkpoint that a run wrote, got `{path}`",
            "To start from exported weights: `model=local model.path=<run>/export`",
        )


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The folder of a run, whose last checkpoint tests may spoil."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(compose_train(*GRID, "callbacks.last_checkpoint.every_n_train_steps=1", run_dir=folder))
    shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture
def last(first) -> Iterator[Path]:
    """The last checkpoint, which is whole again afterwards."""
    path = first / "checkpoints" / "last.ckpt"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.mark.parametrize("mode", ["fit", "validate", "predict"])
def test_damaged_checkpoint(tmp_path, no_weights, last, mode):
    data = last.read_bytes()
    for damaged in (data[: len(data) // 2], data[:5000] + bytes(4096) + data[9096:], b""):
        last.write_bytes(damaged)
        assert_says(
            failure(tmp_path / "run", *GRID, f"mode={mode}", f"ckpt_path={last}"),
            f"the checkpoint `{last}` is damaged: ",
            f"The newest whole one beside it is `{last.parent}/best.ckpt`, of step 1: give that as `ckpt_path`.",
        )


def test_a_best_checkpoint_that_was_damaged_costs_its_export_alone(tmp_path, last, monkeypatch):
    last.write_bytes(last.read_bytes()[:-5000])
    monkeypatch.setattr(app_run, "best_checkpoint", lambda *_, **__: str(last))
    with pytest.raises(
        RuntimeError, match=rf"{tmp_path}/export` is written, `export_best` is not: .*{last}` is damaged"
    ):
        run(compose_train(*GRID, run_dir=tmp_path))
    assert {"summary.json", "export"} == {path.name for path in tmp_path.iterdir()} & {"summary.json", *EXPORTS}


def test_a_full_disk_ends_a_run_with_its_old_checkpoint(tmp_path, last):
    run_dir, before = last.parent.parent, last.read_bytes()
    with files_of_at_most(500_000), pytest.raises(NoRoomError, match=f"`{run_dir}/checkpoints/.*.ckpt` could not be"):
        run(compose_train(*GRID, "trainer.max_steps=3", f"ckpt_path={last}", run_dir=run_dir))
    assert last.read_bytes() == before
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "best.ckpt"}


def test_checkpoint_of_another_algorithm(tmp_path, last):
    path = last
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"algorithm": "DPO"}, path)
    assert_says(
        failure(tmp_path / "run", *GRID, f"ckpt_path={path}"),
        "the checkpoint was written by DPO, this run is GRPO",
        "model=local model.path=<run>/export",
    )
