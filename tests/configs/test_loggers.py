"""Which loggers there are, and when Weights & Biases is online."""

import os
import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lit_posttrain.app.loggers import (
    key_is_configured,
    last_run_id,
    make_loggers,
    own_wandb_run,
    sweep_name,
    wandb_logger,
)
from lit_posttrain.app.options.checks import TENSORBOARD, check_config
from lit_posttrain.app.run import make_trainer
from lit_posttrain.callbacks.metrics_csv import MetricsCSV
from lit_posttrain.callbacks.metrics_history import MetricsHistory
from tests.composing import compose_train


def test_loggers_by_name():
    names = {option: list(compose_train(f"logger={option}").logger) for option in ("csv", "tensorboard", "wandb")}
    assert names == {option: [option] for option in names}
    assert list(compose_train("logger=default").logger) == ["csv", "wandb"]


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """Nothing about Weights & Biases is configured."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")  # so that what is set in between is taken back
        monkeypatch.delenv(name)
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
    assert os.environ.get("WANDB_DATA_DIR") == (f"{tmp_path}/wandb" if key is None else None)


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_the_mode_of_the_environment_is_kept(no_account, monkeypatch, tmp_path, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_logger(save_dir=str(tmp_path), project="p")._wandb_init["mode"] == mode
    assert os.environ["WANDB_MODE"] == mode


def test_a_disabled_run_writes_nothing(no_account, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with own_wandb_run():
        logger = wandb_logger(save_dir=str(tmp_path), project="p")
        logger.log_metrics({"a": 1.0}, step=0)
        logger.experiment.summary.update({"b": 1})
    assert not list(tmp_path.iterdir())


def test_the_newest_run_of_a_folder(tmp_path):
    assert last_run_id(tmp_path) is None
    names = ["run-20260102_000000-aaa", "offline-run-20260103_000000-b-c", "run-20260101_000000-zzz", "run-x", "sub"]
    for name in names:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-20260101_000000-zzz")
    assert last_run_id(tmp_path) == "b-c"
    assert wandb_logger(save_dir=str(tmp_path), project="p", resume_step=3).version == "b-c"
    assert wandb_logger(save_dir=str(tmp_path), project="p").version is None


def test_the_group_of_a_job(tmp_path):
    job = tmp_path / "sweep" / "3"
    assert sweep_name(job) is None
    job.mkdir(parents=True)
    (job.parent / "multirun.yaml").touch()
    assert sweep_name(job) == "sweep"
    assert wandb_logger(save_dir=str(job), project="p")._wandb_init["group"] == "sweep"
    assert wandb_logger(save_dir=str(job), project="p", group="g")._wandb_init["group"] == "g"


class SomeRun:
    exit_code = None

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_a_run_ends_with_its_job(monkeypatch):
    module = SimpleNamespace(run=None)
    monkeypatch.setitem(sys.modules, "wandb", module)

    @own_wandb_run()
    def job(run, error):
        module.run = run
        if error:
            raise error

    good, bad = SomeRun(), SomeRun()
    job(good, None)
    module.run = None
    with pytest.raises(KeyboardInterrupt):
        job(bad, KeyboardInterrupt())
    assert (good.exit_code, bad.exit_code) == (0, 1)


def test_a_run_of_somebody_else_goes_on(monkeypatch):
    module = SimpleNamespace(run=SomeRun())
    monkeypatch.setitem(sys.modules, "wandb", module)
    with own_wandb_run():
        pass
    assert module.run.exit_code is None


def test_jobs_do_not_share_the_folder_of_what_waits_for_upload(no_account, tmp_path, monkeypatch):
    for name in ("a", "b"):
        with own_wandb_run():
            wandb_logger(save_dir=str(tmp_path / name), project="p")
            assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / name / "wandb")
    monkeypatch.setenv("WANDB_DATA_DIR", "/mine")
    with own_wandb_run():
        wandb_logger(save_dir=str(tmp_path), project="p")
    assert os.environ["WANDB_DATA_DIR"] == "/mine"


def test_tensorboard_that_is_not_installed_is_said_first(monkeypatch):
    cfg = compose_train("logger=tensorboard")
    check_config(cfg)
    assert cfg.logger.tensorboard._target_ == TENSORBOARD
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"`logger.tensorboard` needs .*`pip install tensorboard`"):
        check_config(cfg)
    check_config(compose_train("logger=csv"))


def test_loggers_of_a_resumed_run(no_account, tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text("step,a\n0,1.0\n7,2.0\n")
    nodes = {**compose_train("logger=default", run_dir=tmp_path).logger}
    nodes |= {**compose_train("logger=tensorboard", run_dir=tmp_path).logger, "none": None}
    table, wandb, tensorboard = make_loggers(nodes, resume_step=5)
    assert isinstance(table, MetricsCSV)
    assert isinstance(wandb, WandbLogger)
    assert isinstance(tensorboard, TensorBoardLogger)
    assert list(table._rows) == [0]
    assert tensorboard._kwargs == {"purge_step": 6}
    assert tensorboard.log_dir == f"{tmp_path}/tensorboard/"
    assert make_loggers(nodes, resume_step=None)[2]._kwargs == {"purge_step": None}
    assert make_loggers(None, resume_step=5) == []


@pytest.mark.parametrize(("mode", "number"), [("fit", 2), ("validate", 1), ("predict", 0)])
def test_what_is_no_training_has_no_table_of_steps(no_account, tmp_path, mode, number):
    cfg = compose_train(f"mode={mode}", run_dir=tmp_path)
    assert len(make_trainer(cfg, MetricsHistory()).loggers) == number
