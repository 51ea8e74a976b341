"""Reward functions by path: 'package.module:function' or 'file.py:function'."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from lit_posttrain.rewards.protocol import RewardFunctions


def load_rewards(path: str | Sequence[str], *, weights: Sequence[float] | None = None) -> RewardFunctions:
    """Load one or several reward functions.

    Args:
        path: one path or several, see `load_function`.
        weights: one number per path; None weighs each by 1.

    Raises:
        ValueError: if there is no path, or the weights do not fit.
        Exception: as `load_function`.

    >>> gsm8k = "lit_posttrain.rewards.gsm8k"
    >>> load_rewards([f"{gsm8k}:exact_match", f"{gsm8k}:has_answer_format"], weights=[1.0, 0.1]).names
    ['exact_match', 'has_answer_format']
    """
    paths = [path] if isinstance(path, str) or not isinstance(path, Sequence) else path
    return RewardFunctions([load_function(each) for each in paths], weights=weights)


def load_function(path: str) -> Callable:
    """Load a function from a module or from a file; a file is run once, as a module of its own.

    Args:
        path: 'package.module:function', or 'file.py:function' with the file relative to the working directory.

    Raises:
        ValueError: if the path does not have this form.
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if there is no such module.
        ImportError: if importing it failed, or it holds no such name; the cause is chained.
        TypeError: if the name is not that of a callable.

    >>> load_function("math:sqrt")(9.0)
    3.0
    """
    location, _, name = path.rpartition(":") if isinstance(path, str) else ("", "", "")
    if not (location and name):
        raise ValueError(
            f"The path of a function must be 'package.module:function' or 'file.py:function', got {path!r}."
        )
    module = _load_file(location, path=path) if location.endswith(".py") else _load_module(location, path=path)
    try:
        function = getattr(module, name)
    except AttributeError as error:
        raise ImportError(
            f"`{location}` must hold `{name}` to load {path!r}: {_describe_functions(module, name)}."
        ) from error
    if not callable(function):
        raise TypeError(
            f"{path!r} must name a callable, got {type(function).__name__}: {_describe_functions(module, name)}."
        )
    return function


def _load_module(location: str, *, path: str) -> ModuleType:
    try:
        return importlib.import_module(location)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{location}.".startswith(f"{error.name}."):
            raise ModuleNotFoundError(_describe_missing_module(location, path), name=error.name) from error
        raise _failed_import(path, error) from error
    except Exception as error:
        raise _failed_import(path, error) from error


def _load_file(location: str, *, path: str) -> ModuleType:
    file = Path(location).expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(
            f"The file `{location}` must exist to load {path!r}: there is no {file} (working directory {Path.cwd()})."
        )
    # A private name: a file `json.py` must not take the place of the module `json`.
    module_name = f"_lit_posttrain_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None  # as for every name that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before it runs: dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, Exception):
            raise _failed_import(path, error) from error
        raise
    return module


def _failed_import(path: str, error: Exception) -> ImportError:
    return ImportError(f"Importing {path!r} failed with {type(error).__name__}: {error}")


def _describe_missing_module(location: str, path: str) -> str:
    file = Path(location.replace(".", "/") + ".py")
    if file.is_file():
        way_out = f"there is a file of that name, so write '{file}:{path.rpartition(':')[2]}'"
    else:
        way_out = "install it, put its folder on PYTHONPATH, or name a file as 'file.py:function'"
    return f"The module `{location}` must be importable to load {path!r}: {way_out}."


def _describe_functions(module: ModuleType, name: str) -> str:
    public = {key: value for key, value in vars(module).items() if inspect.isroutine(value) and key[0] != "_"}
    own = [key for key, value in public.items() if inspect.isfunction(value) and value.__module__ == module.__name__]
    names = own or list(public)  # a package may hold nothing but names from its modules
    if not names:
        return "there is no public function in it"
    nearest_first = difflib.get_close_matches(name, names, n=len(names), cutoff=0.0)
    return f"there are {', '.join(f'`{each}`' for each in nearest_first)}"
