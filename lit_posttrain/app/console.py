"""One voice on the console where several processes share it."""

import logging

from huggingface_hub.utils import disable_progress_bars
from lightning.pytorch.utilities import rank_zero_only
from transformers.utils.logging import disable_progress_bar, set_verbosity_error


def speak_for_all_ranks() -> None:
    """Keep processes other than the first from printing what the first prints too; their log files have all of it.

    Their errors still reach the console: what fails on one process alone, such as a reward on its completions, nobody
    else can tell.
    """
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        return
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
    logging.captureWarnings(True)  # into the log file
    disable_progress_bars()
    disable_progress_bar()
    set_verbosity_error()
