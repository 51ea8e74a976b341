"""The table of completions in Weights & Biases, in a Trainer of somebody's own."""

import json
import sys
from types import SimpleNamespace

import pytest
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lit_posttrain.callbacks.completions_table import SHOWN_INCREMENTS, CompletionsTable, _flat
from tests.integration.conftest import run_online  # noqa: F401 -- a fixture
from tests.wandb_files import read_runs


@pytest.fixture
def plain_wandb(monkeypatch, tmp_path):
    """A stock logger, whose run ends with the test."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield WandbLogger(save_dir=tmp_path, project="p", mode="offline", prefix="mine")
    if wandb.run is not None:
        wandb.finish()


def test_a_stock_logger_without_hydra(run_online, plain_wandb, tmp_path):  # noqa: F811
    table = CompletionsTable("samples", every_n_rollouts=2, rows=3)
    module, _, _ = run_online(
        trainer={"max_steps": 6, "logger": plain_wandb}, callbacks=[table], rollouts__num_minibatches=2
    )
    assert module.last_rollout.index == 2
    wandb.finish()
    (part,) = read_runs(tmp_path)
    increments = part.table("mine-samples")
    assert [[(row["rollout"], row["step"]) for row in rows] for rows in increments] == [[(0, 0)] * 3, [(2, 4)] * 3]
    assert part.steps("mine-samples") == [0, 4]
    assert list(increments[0][0]) == [
        "step",
        "rollout",
        "prompt",
        "completion",
        "reward",
        "reward/counts_even_words",
        "penalty",
        "advantage",
        "length",
        "truncated",
    ]


def test_without_wandb_nothing_is_imported_or_kept(run_online, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    table = CompletionsTable()
    run_online(trainer={"max_steps": 2, "logger": CSVLogger(tmp_path)}, callbacks=[table])
    assert table.state_dict() == {"columns": [], "rows": [], "rollout": None}


class FakeRun:
    """A W&B run that keeps what is logged."""

    def __init__(self, *, resumed):
        self.resumed = resumed
        self.logged = []

    def log(self, values):
        (table,) = (value for value in values.values() if isinstance(value, wandb.Table))
        self.logged.append((values["trainer/global_step"], [list(row) for row in table.data]))


@pytest.fixture
def fit(monkeypatch):
    """Feed rollouts to a table without a Trainer."""

    def feed(table, run, indices, *, steps=float("inf"), rewards=("f",), count=4, rank=0):
        from lit_posttrain.callbacks import completions_table

        monkeypatch.setattr(
            completions_table,
            "completion_rows",
            lambda record, which: [
                {"rollout": record.index, "row": i, "rewards": dict.fromkeys(rewards, None)} for i in which
            ],
        )
        module = SimpleNamespace(last_rollout=None, steps_per_rollout=2)
        trainer = SimpleNamespace(
            loggers=[WandbLogger(experiment=run)], is_global_zero=rank == 0, estimated_stepping_batches=steps
        )
        table.on_fit_start(trainer, module)
        table.on_train_start(trainer, module)
        for index in indices:
            scored = SimpleNamespace(completions=SimpleNamespace(rows=[None] * count))
            module.last_rollout = SimpleNamespace(index=index, step=2 * index, scored=scored)
            for _ in range(2):  # two batches of a rollout
                table.on_train_batch_start(trainer, module, None, 0)

    return feed


def saved(table):
    """What a checkpoint holds, through what it may hold."""
    return json.loads(json.dumps(table.state_dict()))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_resumed_table_is_whole(fit, resumed):
    """Where W&B resumes the run it has the rows up to the kill; elsewhere the checkpoint brings its own."""
    table, run = CompletionsTable(every_n_rollouts=1, rows=2), FakeRun(resumed=False)
    fit(table, run, range(2))
    state = saved(table)
    fit(table, run, [2])  # a rollout that the checkpoint does not know
    again, second = CompletionsTable(every_n_rollouts=1, rows=2), FakeRun(resumed=resumed)
    again.load_state_dict(state)
    fit(again, second, [1, 2, 3])  # the first of them has been seen
    ((step, first_rows), (_, all_rows)) = second.logged
    assert step == 4
    assert [row[0] for row in first_rows] == ([2, 2] if resumed else [0, 0, 1, 1, 2, 2])
    assert [row[0] for row in all_rows] == [row[0] for row in first_rows] + [3, 3]


def test_other_columns_begin_a_table_of_their_own(fit):
    table, run = CompletionsTable(every_n_rollouts=1, rows=1), FakeRun(resumed=False)
    fit(table, run, [0])
    again = CompletionsTable(every_n_rollouts=1, rows=1)
    again.load_state_dict(saved(table))
    fit(again, run, [1], rewards=("f", "g"))
    assert [len(row) for row in run.logged[-1][1]] == [4]


def test_a_fit_without_a_checkpoint_begins_anew(fit):
    table, run = CompletionsTable(every_n_rollouts=1, rows=1), FakeRun(resumed=False)
    fit(table, run, [0])
    fit(table, run, [0])
    assert [rows for _, rows in run.logged] == [[[0, 0, None]]] * 2


def test_a_second_resume_of_the_same_object(fit):
    table, first, second = CompletionsTable(every_n_rollouts=1, rows=1), FakeRun(resumed=False), FakeRun(resumed=True)
    fit(table, first, [0, 1])
    table.load_state_dict(saved(table))
    fit(table, second, [2])
    assert [rows for _, rows in second.logged] == [[[2, 0, None]]]


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        ({}, float("inf"), [0, 10, 20]),
        ({}, 2 * 25, list(range(25))),
        ({}, 2 * 120, list(range(0, 25, 3))),
        ({"every_n_rollouts": 7}, 2 * 120, [0, 7, 14, 21]),
    ],
)
def test_additions_are_spread_over_the_run(fit, settings, steps, expected):
    run = FakeRun(resumed=False)
    fit(CompletionsTable(**settings), run, range(25), steps=steps)
    assert [step // 2 for step, _ in run.logged] == expected


def test_rows_are_spread_over_the_rollout(fit):
    run = FakeRun(resumed=False)
    fit(CompletionsTable(rows=3), run, [0], count=12)
    fit(CompletionsTable(rows=3), run, [0], count=2)
    assert [[row[1] for row in rows] for _, rows in run.logged] == [[0, 4, 8], [0, 1]]


def test_what_a_checkpoint_holds_is_bounded(fit):
    table = CompletionsTable(every_n_rollouts=1, rows=2)
    fit(table, FakeRun(resumed=False), range(SHOWN_INCREMENTS + 20))
    assert [row[0] for row in table.state_dict()["rows"]] == [i // 2 + 20 for i in range(2 * SHOWN_INCREMENTS)]


def test_only_the_first_process_logs(fit):
    run = FakeRun(resumed=False)
    fit(CompletionsTable(), run, [0], rank=1)
    assert run.logged == []


def test_chat_messages_are_json():
    messages = [{"role": "user", "content": "né"}]
    row = _flat({"prompt": messages, "completion": "a", "rewards": {"f": 1.0, "g": None}, "length": 3})
    assert row == {"prompt": json.dumps(messages, ensure_ascii=False), "completion": "a", "length": 3} | {
        "reward/f": 1.0,
        "reward/g": None,
    }


@pytest.mark.parametrize(("name", "value"), [("every_n_rollouts", 0), ("rows", 0)])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be >= 1"):
        CompletionsTable(**{name: value})


def test_the_rows_load_safely(run_online, plain_wandb, tmp_path):  # noqa: F811
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run_online(trainer={"max_steps": 2, "logger": plain_wandb}, callbacks=[CompletionsTable(rows=2), checkpoint])
    table = CompletionsTable(rows=2)
    run_online(
        trainer={"max_steps": 3, "logger": plain_wandb},
        callbacks=[table, ModelCheckpoint(tmp_path / "b")],
        ckpt_path=tmp_path / "step=1.ckpt",
    )
    assert [row[1] for row in table.state_dict()["rows"]] == [0, 0, 1, 1, 2, 2]
