"""A resumed run says in what it differs from the run that it goes on with."""

import pytest
from omegaconf import OmegaConf

from lit_posttrain.app.options.changed import changed_options
from tests.composing import compose_train


def test_changed_options_are_listed(tmp_path):
    OmegaConf.save(compose_train(run_dir=tmp_path), tmp_path / "config.yaml", resolve=True)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    assert (
        changed_options(checkpoint, compose_train("trainer.max_steps=200", "logger=csv", f"ckpt_path={checkpoint}"))
        == []
    )
    cfg = compose_train("optim.lr=0.5", "algo.group_size=4", "+algo.sampling.top_q=1", "model.random_init=true")
    assert changed_options(checkpoint, cfg) == [
        "algo.group_size: 8 -> 4",
        "algo.sampling.top_q: None -> 1",
        "model.random_init: False -> True",
        "optim.lr: 0.0003 -> 0.5 (the checkpoint's stays)",
    ]


def test_a_checkpoint_of_nobody_s_run_is_not_compared(tmp_path):
    assert changed_options(tmp_path / "mine.ckpt", compose_train()) == []


def test_options_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=rf"`{tmp_path}/config.yaml`.*cannot be read .*mend it, or move it away"):
        changed_options(tmp_path / "checkpoints" / "last.ckpt", compose_train())
