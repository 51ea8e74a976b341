"""Whether the Hugging Face Hub can be asked at all, found out once and quickly."""

import functools
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 5.0


@functools.cache
def hub_is_reachable() -> bool:
    """One short request to the Hub; the answer holds for the process.

    Left to itself `from_pretrained` retries for most of a minute before it gives up without a network.
    `HF_HUB_OFFLINE=1` answers without a request; proxies and `HF_ENDPOINT` are honoured, since the request goes
    through `huggingface_hub`'s own session.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
    except Exception as error:  # whatever the HTTP library raises, the answer is the same
        log.info("%s cannot be reached (%s): using local files only", constants.ENDPOINT, error)
        return False
    return True


# What a folder has to hold, and what is said where it is missing.
NEEDED = {
    "config.json": (
        "a config.json, so it is no Hugging Face model. Point `path` at a folder written by `save_pretrained`, "
        "or at the export/ folder of a run."
    ),
    "adapter_config.json": (
        "an adapter_config.json, so it is no adapter. Point `adapter` at a folder that PEFT wrote, or at "
        'the export/ folder of a run with `Lora(export="adapter")`.'
    ),
}


def resolve_folder(path: str, *, file: str = "config.json", option: str = "path") -> tuple[str, bool]:
    """Where to load `path` from: a local folder, the cache, or the Hub.

    Args:
        path: a folder, or the name of a repository on the Hub such as "gpt2".
        file: what makes a folder one of the wanted kind, "config.json" or "adapter_config.json".
        option: the argument that has named it, for errors.

    Returns:
        What to pass to `from_pretrained`, and its `local_files_only`.

    Raises:
        FileNotFoundError: if it is no folder, not in the local cache, and the Hub cannot be reached.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / file).is_file():
            raise FileNotFoundError(f"`{path}` is a folder without {NEEDED[file]}")
        return str(folder), True
    if path.startswith((".", "/", "~")) or path.count("/") > 1 or ":" in path:
        raise FileNotFoundError(f"there is no folder `{path}` (looked at {folder.resolve()}); check `{option}`.")
    if hub_is_reachable():
        return path, False
    if isinstance(try_to_load_from_cache(path, file), str):
        return path, True
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    raise FileNotFoundError(
        f"the model `{path}` is not in the local cache ({constants.HF_HUB_CACHE}) and {offline}. "
        f"Either run `hf download {path}` where there is a network and set HF_HOME to that cache, "
        'or give a local folder as `path`, or the built-in "tiny".'
        + (f" (HF_HOME is {os.environ['HF_HOME']})" if "HF_HOME" in os.environ else "")
    )
