import time

import datasets
import pytest

from lit_posttrain.data import load_rows
from lit_posttrain.data.sources.hub import load_split, local_cache_only


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No Hub, an empty cache, an empty folder."""
    monkeypatch.setattr("lit_posttrain.data.sources.hub.hub_is_reachable", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_into_cache(folder, name: str, rows: list[dict]) -> None:
    """Leave `rows` in the cache as a download of `name` would."""
    (folder / "download").mkdir()
    datasets.Dataset.from_list(rows).to_json(folder / "download" / "train.jsonl")
    datasets.load_dataset_builder(str(folder / "download"), cache_dir=str(folder / "built")).download_and_prepare()
    built = next((folder / "built").glob("download/default/0.0.0/*/dataset_info.json")).parent
    owner, short_name = name.split("/")
    cached = folder / "cache" / f"{owner}___{short_name}" / "default" / "0.0.0" / built.name
    cached.parent.mkdir(parents=True)
    built.rename(cached)
    next(cached.glob("*.arrow")).rename(cached / f"{short_name}-train.arrow")


def test_without_a_network_it_fails_at_once_and_names_both_ways_out(no_network):
    (no_network / "prompts.jsonl").write_text("{}")
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as error:
        load_rows("openai/gsm8k", subset="main")
    assert time.monotonic() - start < 2.0
    message = str(error.value)
    assert "give a local file as `path`" in message
    assert "datasets.load_dataset('openai/gsm8k', 'main')" in message
    assert str(no_network / "cache") in message
    with pytest.raises(
        FileNotFoundError, match=r"There is no file .*promts\.jsnl either\. Did you mean `prompts\.jsonl`"
    ):
        load_rows("promts.jsnl")


def test_what_is_in_the_cache_needs_no_network(no_network):
    put_into_cache(no_network, "org/tiny", [{"prompt": "a"}, {"prompt": "b"}])
    rows = load_rows("org/tiny")
    assert rows.rows == [{"prompt": "a"}, {"prompt": "b"}]
    assert rows.where(1) == "row 1 of org/tiny (train)"
    assert load_rows("org/tiny", split="train[:1]").rows == [{"prompt": "a"}]
    with pytest.raises(FileNotFoundError, match=r"(?s)config 'main'.*datasets\.load_dataset\('org/tiny', 'main'\)"):
        load_rows("org/tiny", subset="main")


def test_a_wrong_split_is_named_with_those_there_are(no_network):
    put_into_cache(no_network, "org/tiny", [{"prompt": "a"}])
    with pytest.raises(ValueError, match=r"`split` must name a split of `org/tiny`, got 'test'.*one of \['train'\]"):
        load_rows("org/tiny", split="test")


def test_a_folder_does_not_ask_for_the_network(no_network, monkeypatch):
    monkeypatch.setattr("lit_posttrain.data.sources.hub.hub_is_reachable", lambda: pytest.fail("asked"))
    (no_network / "shards").mkdir()
    for number in range(2):
        (no_network / "shards" / f"part-{number}.jsonl").write_text(f'{{"prompt": "p{number}"}}\n')
    assert load_split("shards", split="train", subset=None).to_list() == [{"prompt": "p0"}, {"prompt": "p1"}]


def test_offline_mode_ends_with_the_block(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    seen = []

    def fail() -> None:
        with local_cache_only():
            seen.append(datasets.config.HF_HUB_OFFLINE)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*seen, datasets.config.HF_HUB_OFFLINE] == [True, False]
