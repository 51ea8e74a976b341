import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lit_posttrain.data.sources.mixing import permutation
from lit_posttrain.data.sources.rows import Rows, has_splits, load_rows


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_jsonl_keeps_rows_and_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "x", "n": 1}\r\n{"prompt": "line\u2028separator"}\n\n  \n')
    rows = load_rows(path)
    assert list(rows) == [{"prompt": "x", "n": 1}, {"prompt": "line\u2028separator"}]
    assert rows.where(1) == f"{path}:2"
    assert rows.columns() == ["prompt", "n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path, name):
    text = "prompt\nx\n" if name == "a.csv" else '{"prompt": "x"}\n'
    assert load_rows(write(tmp_path / name, text.encode("utf-8-sig"))).rows == [{"prompt": "x"}]


def test_json_holds_one_list_or_one_object_per_line(tmp_path):
    listed = load_rows(write(tmp_path / "list.json", json.dumps([{"a": 1}, {"a": 2}], indent=2)))
    assert listed.rows == [{"a": 1}, {"a": 2}]
    assert listed.where(1) == f"row 1 of {tmp_path / 'list.json'}"
    lines = load_rows(write(tmp_path / "lines.json", '{"a": 1}\n{"a": 2}'))
    assert lines.rows == [{"a": 1}, {"a": 2}]
    assert lines.where(1) == f"{tmp_path / 'lines.json'}:2"


def test_csv_counts_lines_over_quoted_line_breaks(tmp_path):
    path = write(tmp_path / "a.csv", 'question,answer\n"two\nlines, one comma",1\nplain,2\n\n')
    rows = load_rows(str(path))
    assert rows.rows == [{"question": "two\nlines, one comma", "answer": "1"}, {"question": "plain", "answer": "2"}]
    assert [rows.where(i) for i in range(2)] == [f"{path}:2", f"{path}:4"]


def test_parquet_counts_rows(tmp_path):
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "hi"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"prompt": messages}, {"prompt": messages}]), path)
    rows = load_rows(path)
    assert rows.rows == [{"prompt": messages}, {"prompt": messages}]
    assert rows.where(1) == f"row 1 of {path}"


def test_rows_in_memory_are_copied():
    given = [{"prompt": "a"}]
    rows = load_rows(given)
    rows[0]["prompt"] = "changed"
    assert given == [{"prompt": "a"}]
    assert rows.where(0) == "row 0"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1,}\n', r"a\.jsonl:2: broken JSON at column 9: .*double quotes"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl:2: each line must hold one JSON object .* got list"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}\n', r"a\.jsonl:2: a blank line"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: the file must be UTF-8 text, got byte 0xff"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "\n", r"a\.jsonl:1: JSON that cannot be read"),
        ("a.json", '[\n{"a": 1},\n{"a" 2}]', r"a\.json:3: broken JSON at column 6: Expecting ':'"),
        ("a.json", '[{"a": 1}, "b"]', r"row 1 of .*a\.json: must be a JSON object .* got str"),
        ("a.json", "[]", r"a\.json: there are no rows"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"a\.csv:3: the header has 2 fields, this row 3"),
        ("a.csv", "a,b\n1,2\n\n1,2\n", r"a\.csv:3: the header has 2 fields, this row 0"),
        ("a.csv", "a,b,a\n1,2,3\n", r"a\.csv:1: column names must differ, got `a`"),
        ("a.csv", 'a,b\n1,"2" 3\n', r"a\.csv:2: broken CSV"),
        ("a.csv", "a,b\n", r"a\.csv: there are no rows"),
        ("a.csv", " \n\n", r"a\.csv: the file is empty"),
        ("a.jsonl", "", r"a\.jsonl: the file is empty"),
        ("a.parquet", "", r"a\.parquet: the file is empty"),
        ("a.parquet", "no parquet", r"a\.parquet: not a Parquet file"),
        ("a.txt", "text", r"the extension must be one of \.jsonl, \.json, \.csv, \.parquet, got '\.txt'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path, name, data, message):
    path = write(tmp_path / name, data)
    with pytest.raises(ValueError, match=message):
        load_rows(path)


def test_a_missing_file_is_named_with_its_neighbor(tmp_path, monkeypatch):
    write(tmp_path / "prompts.jsonl", "{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_rows("promts.jsonl")
    assert f"there is no file {tmp_path / 'promts.jsonl'}. Did you mean `prompts.jsonl`?" in str(error.value)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        load_rows("nowhere/prompts.jsonl")


def test_a_file_has_no_splits(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}')
    with pytest.raises(ValueError, match=r"got 'test' with .*a\.jsonl"):
        load_rows(path, split="test")
    assert load_rows(path, subset="main")[0] == {"a": 1}  # a local copy of one configuration of a data set


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="must be a path, a name or a list of mappings, got None"):
        load_rows(None)
    with pytest.raises(TypeError, match="row 1 must be a mapping from column to value, got str"):
        load_rows([{"a": 1}, "b"])
    with pytest.raises(ValueError, match="the list given: there are no rows"):
        load_rows([])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/gsm8k", True),
        ("imdb", True),
        ("wikitext-2.0", True),
        ("prompts.jsonl", False),
        ("DATA.JSONL", False),
        ("./prompts", False),
        ("/a/prompts", False),
        ("a/b/prompts", False),
        (Path("openai/gsm8k"), False),
    ],
)
def test_names_of_the_hub_are_told_from_files(source, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert has_splits(source) is expected


def test_split_holds_out_by_seed_in_order_of_the_source():
    rows = Rows([{"n": n} for n in range(10)], source="a.jsonl", numbers=list(range(1, 11)), by_line=True)
    rest, held_out = rows.split(0.3, seed=1)
    chosen = permutation(10, seed=1)[:3]
    assert [row["n"] for row in held_out] == sorted(chosen)
    assert [row["n"] for row in rest] == sorted(set(range(10)) - set(chosen))
    assert held_out.where(0) == f"a.jsonl:{held_out[0]['n'] + 1}"
    assert rows.split(3, seed=1) == (rest, held_out)
    assert rows.split(3, seed=2) != (rest, held_out)


def test_split_sizes():
    rows = Rows([{"n": n} for n in range(10)])
    assert [len(part) for part in rows.split(0, seed=0)] == [10, 0]
    assert [len(part) for part in rows.split(1, seed=0)] == [9, 1]
    assert [len(part) for part in rows.split(1.0, seed=0)] == [0, 10]
    assert [len(part) for part in rows.split(0.001, seed=0)] == [9, 1]
    with pytest.raises(ValueError, match="from 0 to the number of rows, 10, got 11"):
        rows.split(11, seed=0)
    with pytest.raises(ValueError, match=r"fraction from 0 to 1 or a number of rows, got 1\.5"):
        rows.split(1.5, seed=0)


def test_rows_of_a_part_know_where_they_came_from():
    rows = Rows([{"n": n} for n in range(4)], source="openai/gsm8k (train)")
    part = rows.select([3, 1]).select([1])
    assert part.rows == [{"n": 1}]
    assert part.where(0) == "row 1 of openai/gsm8k (train)"
