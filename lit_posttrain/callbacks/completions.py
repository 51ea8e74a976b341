"""Every completion of every rollout, kept in a file."""

import json
import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from lit_posttrain.callbacks.completion_rows import completion_rows
from lit_posttrain.callbacks.records import RecordsRollouts
from lit_posttrain.files.whole import append_lines
from lit_posttrain.rollout.metrics import RolloutRecord

log = logging.getLogger(__name__)


class CompletionsFile(Callback):
    """Writes one JSON line for each completion: prompt, completion, each reward, advantage, length, step.

    The completions of all ranks come in the order of the prompts in their batch, so that the file does not depend on
    the number of ranks.

    The length of the file is part of a checkpoint: a resumed run cuts off what was written after it, so that no
    completion stands there twice.

    Args:
        path: the file; its folder is made when the first line is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._written: int | None = None  # index of the last rollout in the file
        self._resume_at: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut the file back to where the checkpoint left it; with sharded weights none is loaded at `on_fit_start`."""
        if trainer.is_global_zero and self._resume_at is not None and self.path.is_file():
            with self.path.open("r+b") as file:
                end = min(self._resume_at, self.path.stat().st_size)
                if end < self._resume_at:
                    end = file.read(end).rfind(b"\n") + 1  # so that no half line is gone on with
                    log.warning(
                        "%s has fewer completions than when the checkpoint was written: %d bytes of %d. What is "
                        "missing is not made again.", self.path, end, self._resume_at,
                    )  # fmt: skip
                file.truncate(end)
        self._resume_at = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write the rollout that the batch belongs to, once."""
        if not isinstance(pl_module, RecordsRollouts) or pl_module.last_rollout is None:
            return
        record = pl_module.last_rollout
        if record.index == self._written:
            return
        self._written = record.index
        groups = _groups(record)
        if trainer.world_size > 1:
            ranks: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(ranks, groups)
            groups = {slot: lines for rank in ranks for slot, lines in rank.items()}
        if trainer.is_global_zero:
            rows = (row for _, rows in sorted(groups.items()) for row in rows)
            append_lines(self.path, [json.dumps(row, ensure_ascii=False) for row in rows])

    def state_dict(self) -> dict[str, Any]:
        """Bytes in the file, and the last rollout in it."""
        return {"bytes": self.path.stat().st_size if self.path.is_file() else 0, "rollout": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the completions that the checkpoint knows of."""
        self._resume_at = state_dict["bytes"]
        self._written = state_dict["rollout"]


def _groups(record: RolloutRecord) -> dict[int, list[dict[str, Any]]]:
    """The rows of each prompt's completions, by its number in the rollout."""
    rows, size = completion_rows(record), record.scored.group_size
    return {
        slot: rows[size * group : size * (group + 1)] for group, slot in enumerate(record.scored.prompt_index.tolist())
    }
