"""The comparison of a sweep's jobs: what the CSV has, and what is printed."""

import csv
import io

import pytest
from rich.console import Console

from lit_posttrain.reports.comparison import Job, print_comparison, varied, write_comparison

OK = Job(
    number=2,
    folder="/sweep/2",
    overrides={"optim.lr": "1e-4", "logger": "csv", "reward.path": "[a.py:f,b.py:g]"},
    metric="val/reward",
    first=0.5,
    last=0.1 + 0.2,
    best=0.75,
    steps=3,
    wall_s=1.5,
)
FAILED = Job(
    number=10,
    folder="/sweep/10",
    overrides={"optim.lr": "-1", "logger": "csv"},
    metric="val/reward",
    error='ValueError: "a", b\nand c',
)


def read(path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_csv_has_a_row_for_each_job(tmp_path):
    write_comparison([FAILED, OK], tmp_path / "comparison.csv")
    options = ["optim.lr", "reward.path"]
    header = ["job", "folder", "status", *options, "metric", "first", "last", "best", "steps", "wall_s", "error"]
    ok = ["2", "/sweep/2", "ok", "1e-4", "[a.py:f,b.py:g]", "val/reward", "0.5", str(0.1 + 0.2), "0.75", "3", "1.5", ""]
    failed = ["10", "/sweep/10", "failed", "-1", "", "val/reward", *[""] * 5, FAILED.error]
    assert read(tmp_path / "comparison.csv") == [header, ok, failed]


def test_csv_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "comparison.csv"
    write_comparison([OK], path)
    monkeypatch.setattr(csv, "writer", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_comparison([OK, FAILED], path)
    assert len(read(path)) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_columns_are_the_options_that_differ():
    assert varied([OK, FAILED]) == ["optim.lr", "reward.path"]
    assert varied([OK]) == []
    assert varied([]) == []


def printed(*jobs: Job, width: int = 120) -> str:
    text = io.StringIO()
    print_comparison(jobs, Console(file=text, width=width))
    return text.getvalue()


def test_table_shows_options_scores_and_errors():
    lines = printed(FAILED, OK).splitlines()
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
    assert lines[0].strip() == "val/reward"
    assert cells[2] == ["job", "status", "optim.lr", "reward.path", "first", "last", "best"]
    assert cells[4] == ["2", "ok", "1e-4", "[a.py:f,b.py:g]", "0.5", "0.3", "0.75"]
    assert cells[5] == ["10", "failed", "-1", "", "", "", ""]
    assert lines[7:] == ['job 10 failed: ValueError: "a", b', "and c", "  see /sweep/10"]


def test_an_error_is_printed_as_it_is():
    error = "ValueError: `a` must be [b] " + "x" * 200
    assert f"job 0 failed: {error}\n" in printed(Job(0, "/sweep/0", error=error), width=40)
