"""Reading Hugging Face folders: no code of theirs is run, and no weight of theirs may be missing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SHOWN = 5  # names in a message


def read_config(folder: str, *, local: bool) -> PreTrainedConfig:
    """The config.json of a folder.

    Args:
        folder: path of a folder, or the name of a repository on the Hub.
        local: whether the Hub is not to be asked.

    Raises:
        ValueError: if the architecture is one that the folder brings its own code for.
    """
    with _code_refused(folder):
        return AutoConfig.from_pretrained(folder, local_files_only=local, trust_remote_code=False)


def read_tokenizer(folder: str, *, local: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; arguments and errors are those of `read_config`."""
    with _code_refused(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=local, trust_remote_code=False)


def read_model(
    kind: Any, folder: str, *, dtype: torch.dtype | str, local: bool, attention: str | None = None
) -> PreTrainedModel:
    """A model with all of its weights, in eval mode, on the CPU.

    Left to itself transformers gives random values to a weight that the folder lacks, with a warning.

    Args:
        kind: which of the `AutoModelFor...`.
        folder: path of a folder, or the name of a repository on the Hub.
        dtype: of the weights; "auto" takes that of the folder.
        local: whether the Hub is not to be asked.
        attention: the attention implementation; None = what transformers chooses for the model.

    Raises:
        ValueError: if weights are missing, have another shape than config.json says, are not finite or cannot be read,
            or the folder brings code of its own.
    """
    try:
        # in the context of another device transformers asks for accelerate
        with _code_refused(folder), torch.device("cpu"):
            model, found = kind.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=local,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
            )
    except SafetensorError as error:
        raise ValueError(f"the weights in `{folder}` cannot be read: {error}. Fetch or export them again.") from error
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    missing = sorted(set(found["missing_keys"]) & trained)  # any other is computed
    if missing:
        unused = sorted(found["unexpected_keys"])
        others = f" In their place it has {listed(unused)}." if unused else ""
        raise ValueError(
            f"`{folder}` has not all weights of its {type(model).__name__}: {listed(missing)} would be random.{others} "
            "Fetch or export it again, or mend the names."
        )
    wrong = [f"{name} {list(here)} instead of {list(asked)}" for name, here, asked in sorted(found["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"`{folder}` has weights of other shapes than its config.json asks for: {listed(wrong)}. The two do not "
            "belong together."
        )
    check_finite(model.state_dict().items(), folder)
    return model


def check_finite(weights: Iterable[tuple[str, Tensor]], folder: str) -> None:
    """Refuse weights that are no numbers.

    Args:
        weights: names and tensors.
        folder: where they are from.

    Raises:
        ValueError: naming them.
    """
    broken = [name for name, tensor in weights if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"`{folder}` has weights that are NaN or infinite: {listed(broken)}. A run that diverged may have left it: "
            "take an earlier one."
        )


def listed(names: list[str]) -> str:
    """The first names of a list, and how many there are.

    >>> listed(["a", "b"]), listed(list("abcdefg"))
    ('a, b', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@contextmanager
def _code_refused(folder: str) -> Iterator[None]:
    """Say what to do where transformers would have to run code of a folder."""
    try:
        yield
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise ValueError(
            f"`{folder}` brings Python code of its own (`auto_map` in its JSON files), which is never run here: take a "
            "model that transformers itself knows, or load it yourself and hand over model and tokenizer as objects."
        ) from error
