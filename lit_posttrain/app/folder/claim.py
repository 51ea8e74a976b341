"""A folder belongs to one run: who is in it, or was, is found out before anything is written there."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from lit_posttrain.app.errors import USER_ERRORS, leave
from lit_posttrain.app.folder.files import is_of_run, remove_run, remove_sweep, results_in, sweep_in
from lit_posttrain.app.folder.parts import next_part
from lit_posttrain.app.options.checks import check_config
from lit_posttrain.app.options.hints import check_given
from lit_posttrain.app.options.overrides import option, quote
from lit_posttrain.app.pipeline.config import planned
from lit_posttrain.files.locks import FolderLock

log = logging.getLogger(__name__)

# By which launchers number processes: the first of all has 0 in each that is there.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
OF_A_PIPELINE = "pipeline.json"
OF_SEVERAL_RUNS = (OF_A_PIPELINE, ".jobs", "multirun.yaml")
WAIT_S = 60.0  # for a stage of a pipeline that is still ending
POLL_S = 2.0

_taken: dict[Path, FolderLock] = {}


class FolderOfOneRun(Callback):
    """Takes the folder of a run before Hydra writes into it, and ends a command that is wrong or must not have it.

    A run that resumes goes on in its folder, and the options that it began with stay: those of the resume go below
    them. Hydra makes a warning of an exception in a callback, so that the command is left instead.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take the folder of a single run, or of a pipeline."""
        with _readable(config), _leaving():
            _go_home(config)
            config.hydra.runtime.output_dir = str(Path(config.hydra.run.dir).absolute())  # as Hydra is about to
        with _readable(config), _leaving():
            if is_first_process():
                cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
                check_given(config.hydra, cfg)
                if cfg.get("pipeline") is None:
                    check_config(cfg)
                else:
                    planned(cfg)
                _prepare_run(config)
            else:
                config.hydra.output_subdir = None  # the first process writes what was asked for

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take the folder of a sweep, in which each job takes its own."""
        if is_first_process():
            with _readable(config), _leaving():
                claim_sweep(Path(config.hydra.sweep.dir).absolute(), overwrite=_overwrites(config))


def is_first_process() -> bool:
    """Whether this is the first of all processes of a run, which alone writes its files."""
    return all(os.environ.get(name, "") in ("", "0") for name in RANKS)


def claim_run(folder: Path, *, checkpoint: str | None = None, overwrite: bool = False) -> FolderLock:
    """Take the folder of a run that is to train.

    Args:
        folder: need not be there.
        checkpoint: that the run resumes from; None = it begins.
        overwrite: whether what an earlier run has left goes.

    Raises:
        RuntimeError: if a run is going on in it.
        ValueError: if it holds a run that this one would mix with, or replace without being told to.
        OSError: if it cannot be written.
    """
    resumes = checkpoint is not None and is_of_run(checkpoint, folder)
    other = "give this run a folder of its own, `hydra.run.dir=...`"
    if resumes and overwrite:
        raise ValueError(f"`overwrite=true` would remove the checkpoint to go on from: leave one out, or {other}.")
    for name in (name for name in OF_SEVERAL_RUNS if (folder / name).exists()):
        raise ValueError(f"`{folder}` is the folder of several runs (it has `{name}`): {other}.")
    place = folder / "checkpoints"
    if place.exists() and not place.is_dir():
        raise ValueError(f"`{place}` is a file, and a run keeps its checkpoints there: move it, or {other}.")
    held = (lambda _: []) if resumes else results_in
    return _claim(folder, held, remove_run, overwrite=overwrite, kind="run", other=other)


def claim_sweep(folder: Path, *, overwrite: bool) -> FolderLock:
    """Take the folder of a sweep; the arguments and errors are those of `claim_run`."""
    other = "give this sweep a folder of its own, `hydra.sweep.dir=...`"
    for name in results_in(folder) or [OF_A_PIPELINE] * (folder / OF_A_PIPELINE).is_file():
        raise ValueError(f"`{folder}` is the folder of a run (it has `{name}`): {other}.")
    return _claim(folder, sweep_in, remove_sweep, overwrite=overwrite, kind="sweep", other=other)


def claim_pipeline(folder: Path, name: str) -> FolderLock:
    """Take the folder of a pipeline, which goes on in it; what is left of an earlier start may still be ending there.

    Args:
        folder: need not be there.
        name: of the pipeline.

    Raises:
        RuntimeError: if it is not free after a minute.
        ValueError: if it is somebody else's.
    """
    record, own = folder / OF_A_PIPELINE, f"`pipeline={name}`"
    if record.is_file():
        owner = f"`pipeline={json.loads(record.read_text(encoding='utf-8'))['pipeline']}`"
    else:
        owner = "a single run" if results_in(folder) else "a sweep" if sweep_in(folder) else own
    if owner != own:
        raise ValueError(f"{folder} is the folder of {owner}: give {own} a `hydra.run.dir` of its own.")
    return _take(folder, wait_s=WAIT_S)


def release_folders() -> None:
    """Let go of all folders that this process has taken."""
    while _taken:
        _taken.popitem()[1].release()


@contextmanager
def folder_of_job(cfg: DictConfig) -> Iterator[None]:
    """Hold the folder of a job of a sweep while it trains there; a single run has taken its own before."""
    config = HydraConfig.get()
    if config.mode is not RunMode.MULTIRUN or cfg.mode != "fit" or not is_first_process():
        yield
        return
    folder = Path(config.runtime.output_dir)
    lock = claim_run(folder, checkpoint=cfg.ckpt_path)
    try:
        yield
    finally:
        _let_go(lock)


def _prepare_run(config: DictConfig) -> None:
    folder, mode, checkpoint = Path(config.hydra.run.dir).absolute(), config.get("mode"), config.get("ckpt_path")
    _check_writable(folder)
    below = None  # where in its `.hydra` the options go, if not on top
    if config.get("pipeline") is not None:
        claim_pipeline(folder, config.hydra.runtime.choices["pipeline"])
    elif mode == "fit":
        claim_run(folder, checkpoint=checkpoint, overwrite=_overwrites(config))
        below = f"part_{next_part(folder)}" if results_in(folder) else None
    else:
        below = mode
    options = config.hydra.output_subdir
    if options is not None and below is not None and (folder / options).exists():
        config.hydra.output_subdir = f"{options}/{below}"


def _overwrites(config: DictConfig) -> bool:
    value = config.get("overwrite", False)
    if not isinstance(value, bool):  # `no` is text to Hydra, and text counts as true
        raise ValueError(f"`overwrite` must be true or false, got `{value}`.")
    return value


def _go_home(config: DictConfig) -> None:
    """Let a run that resumes from a checkpoint of a run's folder go on there, unless it was given another."""
    given = any(option(override) == "hydra.run.dir" for override in config.hydra.overrides.hydra)
    if given or config.get("mode") != "fit" or config.get("ckpt_path") is None:
        return
    home = Path(config.ckpt_path).resolve().parent.parent
    if not (home / "config.yaml").is_file():
        return
    if "${" in str(home):
        raise ValueError(f"`{home}` has `${{` in its name, which Hydra takes for an interpolation: rename the folder.")
    config.hydra.run.dir = str(home)


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "cannot be written to" if there.is_dir() else "is a file"
        raise PermissionError(
            f"nothing can be written into `{folder}`: `{there}` {reason}. Give another folder, `hydra.run.dir=...`."
        )


def _claim(
    folder: Path,
    held_in: Callable[[Path], list[str]],
    remove: Callable[[Path], None],
    *,
    overwrite: bool,
    kind: str,
    other: str,
) -> FolderLock:
    """Take a folder, and refuse or remove what it holds; it is left as it was if anything is wrong with it.

    Args:
        folder: need not be there.
        held_in: what tells the names that it has of a run or sweep.
        remove: what removes them.
        overwrite: whether they go, where one has taken the folder before, so that these are of it.
        kind: run or sweep.
        other: how to give another folder.

    Raises:
        ValueError: if they are in the way.
    """
    known = FolderLock(folder).path.is_file()
    lock = _take(folder)
    try:
        if known and overwrite:
            remove(folder)
        elif held := held_in(folder):
            raise ValueError(_in_the_way(folder, held, known=known, overwrite=overwrite, kind=kind, other=other))
    except BaseException:
        if not known:
            lock.path.unlink(missing_ok=True)
        _let_go(lock)
        raise
    return lock


def _in_the_way(folder: Path, held: list[str], *, known: bool, overwrite: bool, kind: str, other: str) -> str:
    """Say what a folder holds that a run or sweep would replace, and what can be done."""
    names, checkpoint = ", ".join(f"`{name}`" for name in held), folder / "checkpoints" / "last.ckpt"
    holds = f"holds a {kind} already ({names})" if known else f"has {names}, which a {kind} would replace"
    resume = f"go on with it, `ckpt_path={quote(str(checkpoint))}`; " if checkpoint.is_file() else ""
    replace = "replace what is there, `overwrite=true`" if known else "move them"
    why = f" `overwrite=true` removes what a {kind} is known to have left." if overwrite else ""
    return f"`{folder}` {holds}: {resume}{other}; or {replace}.{why}"


def _take(folder: Path, *, wait_s: float = 0.0) -> FolderLock:
    """Return the lock of a folder, which a process takes once."""
    folder = folder.resolve()
    if folder in _taken:
        return _taken[folder]
    lock = FolderLock(folder)
    deadline = time.monotonic() + wait_s
    while not lock.take():
        if time.monotonic() >= deadline:
            raise RuntimeError(
                f"a run is going on in `{folder}` ({lock.holder()}): let it end, or take another `hydra.run.dir`."
            )
        log.warning("waiting for what is still running in %s", folder)
        time.sleep(POLL_S)
    _taken[folder] = lock
    return lock


def _let_go(lock: FolderLock) -> None:
    _taken.pop(lock.path.parent, None)
    lock.release()


@contextmanager
def _readable(config: DictConfig) -> Iterator[None]:
    """Let a configuration be resolved and changed before its job has begun, as Hydra does when it has."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        with read_write(config.hydra):
            yield
    finally:
        HydraConfig.instance().cfg = before


@contextmanager
def _leaving() -> Iterator[None]:
    """End the command where an error says what its user has to change."""
    try:
        yield
    except USER_ERRORS as error:
        leave(error)
