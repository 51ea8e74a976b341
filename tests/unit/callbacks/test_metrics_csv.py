"""The table of metrics and the history of the summary."""

import csv
import math
from types import SimpleNamespace

import pytest
import torch

from lit_posttrain.callbacks.metrics_csv import MetricsCSV
from lit_posttrain.callbacks.metrics_history import MetricsHistory


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_values_of_one_step_share_a_row(tmp_path):
    table = MetricsCSV(tmp_path / "metrics.csv")
    table.log_metrics({"reward/mean": 0.5, "epoch": 0}, step=0)
    table.log_metrics({"train/loss": 0.1}, step=0)
    table.log_metrics({"train/loss": 0.2, "grad_norm": 3.0}, step=1)
    table.finalize("success")
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "grad_norm": "", "reward/mean": "0.5", "train/loss": "0.1"},
        {"step": "1", "grad_norm": "3.0", "reward/mean": "", "train/loss": "0.2"},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_resumed_table_drops_what_comes_again(tmp_path):
    first = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(5):
        first.log_metrics({"train/loss": step / 10}, step=step)
    first.log_metrics({"val/reward": 1.5}, step=3)
    first.flush()
    second = MetricsCSV(tmp_path / "metrics.csv")
    second.go_on_from(3)
    second.log_metrics({"train/loss": 0.3}, step=3)
    second.log_metrics({"train/loss": 9.0}, step=4)
    second.flush()
    assert [(r["step"], float(r["train/loss"]), r["val/reward"]) for r in rows(tmp_path / "metrics.csv")] == [
        ("0", 0.0, ""),
        ("1", 0.1, ""),
        ("2", 0.2, ""),
        ("3", 0.3, "1.5"),
        ("4", 9.0, ""),
    ]


def test_a_new_table_does_not_take_up_an_old_one(tmp_path):
    first = MetricsCSV(tmp_path / "metrics.csv")
    first.log_metrics({"a": 1.0}, step=7)
    first.flush()
    second = MetricsCSV(tmp_path / "metrics.csv")
    second.log_metrics({"a": 2.0}, step=0)
    second.flush()
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["0"]


@pytest.fixture
def observe():
    history = MetricsHistory()

    def take(step, **metrics):
        trainer = SimpleNamespace(
            callback_metrics={name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()},
            accumulate_grad_batches=1,
            global_step=step,
            sanity_checking=False,
        )
        history.on_train_batch_end(trainer, None, None, None, step)
        history.on_validation_end(trainer, None)

    return history, take


def test_first_last_and_best_each_in_its_own_direction(observe):
    history, take = observe
    for step, (reward, loss) in enumerate([(1.0, 5.0), (3.0, 2.0), (2.0, 4.0)]):
        take(step, val__reward=reward, train__loss=loss, reward__mean=math.nan)
    assert history.metrics["val/reward"] == {"first": 1.0, "last": 2.0, "best": 3.0}
    assert history.metrics["train/loss"] == {"first": 5.0, "last": 4.0, "best": 2.0}
    assert "reward/mean" not in history.metrics
    assert history.last_validation_step == 2


def test_the_history_goes_on_in_a_resumed_run(observe):
    history, take = observe
    take(0, val__reward=1.0)
    resumed = MetricsHistory()
    resumed.load_state_dict(history.state_dict())
    assert resumed.metrics == {"val/reward": {"first": 1.0, "last": 1.0, "best": 1.0}}
