"""The file of completions when a run goes on with it."""

from types import SimpleNamespace

import pytest

from lit_posttrain.callbacks.completions import CompletionsFile


@pytest.mark.parametrize(
    ("content", "stored", "left", "said"),
    [
        (b"one\ntwo\nthree\n", 8, b"one\ntwo\n", False),  # written after the checkpoint
        (b"one\ntwo\n", 8, b"one\ntwo\n", False),
        (b"one\ntw", 8, b"one\n", True),  # cut by somebody else
        (b"", 8, b"", True),
    ],
)
def test_it_is_cut_to_where_the_checkpoint_left_it(tmp_path, caplog, content, stored, left, said):
    path = tmp_path / "completions.jsonl"
    path.write_bytes(content)
    callback = CompletionsFile(path)
    callback.load_state_dict({"bytes": stored, "rollout": 0})
    callback.on_train_start(SimpleNamespace(is_global_zero=True), None)
    assert path.read_bytes() == left
    assert ("has fewer completions than when the checkpoint was written" in caplog.text) == said
