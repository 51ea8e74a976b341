"""Data sets of the Hugging Face Hub, from the network or from the local cache, without waiting for either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_posttrain.data.hints import did_you_mean
from lit_posttrain.models.hub import hub_is_reachable

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder


@contextmanager
def local_cache_only() -> Iterator[None]:
    """Make `datasets` look into its cache and nowhere else.

    Set in `datasets.config`, which is read at each request: the environment is read only when `datasets` is imported,
    and `DownloadConfig(local_files_only=True)` still retries the first request for half a minute.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def load_split(name: str, *, split: str, subset: str | None) -> Dataset:
    """One split of a data set on the Hub, or of a local folder of data files.

    Args:
        name: such as "openai/gsm8k", or a folder.
        split: such as "train", also a part such as "train[:100]".
        subset: the data set's configuration, such as "main".

    Raises:
        FileNotFoundError: if the Hub cannot be reached and the data set is not in the local cache.
        ValueError: if there is no such data set, subset or split.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        builder = _prepare(str(folder), subset)
    else:
        builder = _prepare(name, subset) if hub_is_reachable() else _prepare_from_cache(name, subset)
    try:
        return builder.as_dataset(split=split)
    except ValueError as error:
        raise ValueError(
            f"`split` must name a split of `{name}`, got {split!r}: {error} Set `split` or `val_split`."
        ) from error


def _prepare(name: str, subset: str | None) -> DatasetBuilder:
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, subset)
        builder.download_and_prepare()
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"the data set `{name}` (subset {subset}) cannot be loaded: {error}.{_no_file(name)} "
            "Check `path` and `subset` (the configuration's name)."
        ) from error
    return builder


def _prepare_from_cache(name: str, subset: str | None) -> DatasetBuilder:
    import datasets

    with local_cache_only():
        try:
            return _prepare(name, subset)
        except ValueError as error:
            arguments = ", ".join(repr(part) for part in (name, subset) if part is not None)
            raise FileNotFoundError(
                f"{error} The Hugging Face Hub cannot be reached, so only the local cache was looked at "
                f"({datasets.config.HF_DATASETS_CACHE}). Either give a local file as `path`, or "
                f'download the data beforehand: run `python -c "import datasets; datasets.load_dataset({arguments})"` '
                "where there is a network, and set HF_HOME to that cache."
            ) from error


def _no_file(name: str) -> str:
    """What to say to somebody who meant a file."""
    path = Path(name).absolute()
    if path.is_dir():
        return ""
    nearby = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return f" There is no file {path} either.{did_you_mean(path.name, nearby)}"
