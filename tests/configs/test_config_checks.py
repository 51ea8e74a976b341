"""What is said of a configuration before anything is built."""

import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from lit_posttrain import AtomicCheckpointIO
from lit_posttrain.app.callbacks import MonitoredMetric
from lit_posttrain.app.options.checks import check_config
from lit_posttrain.app.run import make_trainer
from lit_posttrain.callbacks.metrics_history import MetricsHistory
from tests.composing import compose_train


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["+algo.sampling.temprature=1"], "no option `algo.sampling.temprature`. Did you mean `temperature`?"),
        (["+trainer.max_step=4"], "there is no option `trainer.max_step`. Did you mean `max_steps`?"),
        (["+callbacks.last_checkpoint.file_name=x"], "`callbacks.last_checkpoint.file_name`. Did you mean `filename`?"),
        (["mode=null"], "`mode` must be one of fit, validate, predict, got `None`."),
        (["data=prompts"], "`data.path`, `reward.path` must be given: add `data.path=... reward.path=...`"),
        (["model=local"], "`model.path` must be given: add `model.path=...` to the command line."),
        (["algo.mask_truncated=no"], "`algo.mask_truncated` must be true or false, got `no`."),
        (["algo.ratio=tokn"], "`algo.ratio` must be one of token, sequence, got `tokn`. Did you mean `token`?"),
        (["model.attention=flash"], "`model.attention` must be one of sdpa, eager, flash_attention_2"),
        (["algo.sampling=3"], "`algo.sampling` must have options of its own, got `3`."),
        (["model.lora=default"], "options of its own, got `default`: `model/lora=default` chooses them."),
        (["+trainer.detect_anomaly=no"], "`trainer.detect_anomaly` must be true or false, got `no`."),
        (["overwrite=maybe"], "`overwrite` must be true or false, got `maybe`."),
        (["algo.group_size=eight"], "`algo.group_size` must be a whole number, got `eight`."),
        (["algo.group_size=2.5"], "`algo.group_size` must be a whole number, got `2.5`."),
        (["algo.clip_low=null"], "`algo.clip_low` must be a number, got null."),
        (["trainer.max_steps=ten"], "`trainer.max_steps` must be a whole number, got `ten`."),
        (["seed=one"], "`seed` must be a whole number, got `one`."),
        (["seed=-1"], "`seed` must be from 0 to 2^32 - 1, got -1."),
        (["monitor.mode=maximum"], "`monitor.mode` must be min or max, got `maximum`."),
        (["optim.lr=abc"], "`optim.lr` must be a number, got `abc`."),
        (["optim.betas=3"], "`optim.betas` must be a list of numbers from 0 to below 1, as [0.9,0.95], got `3`."),
        (["optim.betas=[0.9,2]"], "`optim.betas` must be a list of numbers from 0 to below 1, as [0.9,0.95], got"),
        (["algo=ppo", "algo.kl_target=abc"], "`algo.kl_target` must be a number, got `abc`."),
        (["algo.rollouts.batch_size=2.5"], "`algo.rollouts.batch_size` must be a whole number, got `2.5`."),
        (["optim.lr=-1"], "`optim.lr` must be >= 0, got -1."),
        (["scheduler=cosine", "trainer.max_steps=-1"], "`trainer.max_steps` must be given with a schedule that ends"),
        (["val_every_steps=0"], "`val_every_steps` must be >= 1 or null, got 0."),
        (["trainer.accumulate_grad_batches=0"], "`trainer.accumulate_grad_batches` must be >= 1, got 0."),
        (
            ["+trainer.val_check_interval=5"],
            "`trainer.val_check_interval` is taken: use `val_every_steps`, which counts",
        ),
        (["trainer.precision=16-true"], "`trainer.precision=16-true` ends in NaN with AdamW: use 32-true"),
        (
            ["trainer=ddp", "trainer.strategy=fsdp"],
            "`trainer.strategy=fsdp` is FSDP1, whose weights cannot be made whole",
        ),
        (
            ["+trainer.strategy._target_=lightning.pytorch.strategies.FSDPStrategy"],
            "use FSDP2, `trainer=fsdp`.",
        ),
        (
            ["trainer=fsdp", "trainer.strategy.save_distributed_checkpoint=true"],
            "`trainer.strategy.save_distributed_checkpoint` must be false: a run's checkpoints are single files",
        ),
        (["ckpt_path=no/such.ckpt"], "there is no checkpoint `no/such.ckpt`; those of a run are in its checkpoints/"),
    ],
)
def test_check_explains(arguments, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_config(compose_train(*arguments))
    assert said in str(error.value)


def test_null_switches_off_what_may_be_off():
    check_config(compose_train("algo=ppo", "algo.critic.clip=null"))  # 0.2 unless told


def test_check_finds_nothing_wrong_with_the_defaults():
    check_config(compose_train())
    check_config(compose_train("val_every_steps=null", "algo.clip_low=0", "algo.dual_clip=3", "+data.val_size=4"))


@pytest.mark.parametrize(
    ("metric", "reported", "said"),
    [
        (
            "val/rewrad",
            ["val/reward", "val/success"],
            "Did you mean `val/reward`? Validation reports: val/reward, val/s",
        ),
        ("val/reward", ["val/reward"], None),
        ("reward/mean", ["val/reward"], None),  # known when training has begun
        ("val/reward", ["grad_norm"], None),  # nothing was validated
    ],
)
def test_monitored_metric_is_one_of_validation(metric, reported, said):
    trainer = SimpleNamespace(callback_metrics=dict.fromkeys(reported, 0.0))
    if said is None:
        MonitoredMetric("monitor.metric", metric).on_sanity_check_end(trainer, None)
    else:
        with pytest.raises(
            ValueError, match=r"`monitor\.metric` must be a metric of this run, got `val/rewrad`"
        ) as error:
            MonitoredMetric("monitor.metric", metric).on_sanity_check_end(trainer, None)
        assert said in str(error.value)


def test_the_gate_of_a_pipeline_is_watched_too(tmp_path):
    def watched(*overrides):
        trainer = make_trainer(compose_train("logger=csv", *overrides, run_dir=tmp_path), MetricsHistory())
        found = [callback for callback in trainer.callbacks if isinstance(callback, MonitoredMetric)]
        assert len({callback.state_key for callback in found}) == len(found)
        return [(callback.option, callback.metric) for callback in found]

    assert watched() == [("monitor.metric", "val/reward")]
    assert watched("gate=val/loss") == [("monitor.metric", "val/reward"), ("gate", "val/loss")]


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], AtomicCheckpointIO),
        (["trainer=ddp", "trainer.accelerator=cpu"], AtomicCheckpointIO),
        (["trainer=fsdp", "trainer.accelerator=cpu"], AtomicCheckpointIO),
        (["trainer.plugins=[]"], TorchCheckpointIO),
        (["trainer.plugins=[{_target_: lightning.pytorch.plugins.io.AsyncCheckpointIO}]"], AsyncCheckpointIO),
    ],
)
def test_checkpoints_are_written_whole_unless_somebody_has_plugins_of_his_own(tmp_path, overrides, kind):
    trainer = make_trainer(compose_train("logger=csv", *overrides, run_dir=tmp_path), MetricsHistory())
    assert type(trainer.strategy.checkpoint_io) is kind


@pytest.mark.parametrize(
    ("val_every_steps", "max_steps", "accumulate", "batches"),
    [(50, 100, 4, 200), ("null", 30, 2, 60), ("null", -1, 1, sys.maxsize)],
)
def test_validation_counts_optimizer_steps(val_every_steps, max_steps, accumulate, batches, tmp_path):
    cfg = compose_train(
        f"val_every_steps={val_every_steps}",
        f"trainer.max_steps={max_steps}",
        f"trainer.accumulate_grad_batches={accumulate}",
        "logger=csv",
        run_dir=tmp_path,
    )
    trainer = make_trainer(cfg, MetricsHistory())
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (batches, None)
    assert [type(logger).__name__ for logger in trainer.loggers] == ["MetricsCSV"]
