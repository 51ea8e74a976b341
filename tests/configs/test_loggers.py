"""Which loggers there are, and when Weights & Biases is online."""

import pytest
from lightning.pytorch.loggers import WandbLogger

from lit_posttrain.app.wandb_runs import key_is_configured, wandb_logger
from tests.composing import compose_train


def test_loggers_by_name():
    names = {option: list(compose_train(f"logger={option}").logger) for option in ("csv", "tensorboard", "wandb")}
    assert names == {option: [option] for option in names}
    assert list(compose_train("logger=default").logger) == ["csv", "wandb"]


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """Nothing about Weights & Biases is configured."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_no_key_is_configured(no_account):
    assert not key_is_configured()
    no_account.write_text("machine elsewhere.org login user password secret\n")
    assert not key_is_configured()
    no_account.write_text("machine machine machine\n")
    assert not key_is_configured()


def test_a_key_in_the_environment(no_account, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert key_is_configured()
    for mode in ("offline", "disabled", "dryrun"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert not key_is_configured()


def test_a_key_in_netrc(no_account, monkeypatch):
    no_account.write_text("machine api.wandb.ai login user password secret\n")
    assert key_is_configured()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org/")
    assert not key_is_configured()
    no_account.write_text("machine wandb.example.org login user password secret\n")
    assert key_is_configured()


@pytest.mark.parametrize("key", [None, "0" * 40])
def test_online_only_with_a_key(no_account, monkeypatch, tmp_path, key):
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    logger = wandb_logger(save_dir=str(tmp_path), project="p", name="n", group="g")
    assert isinstance(logger, WandbLogger)
    assert logger._wandb_init["mode"] == ("offline" if key is None else "online")
    assert (logger.save_dir, logger._wandb_init["group"]) == (str(tmp_path), "g")
