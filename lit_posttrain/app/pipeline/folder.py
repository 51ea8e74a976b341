"""What the folder of a stage says of earlier starts: done, begun, or made by another configuration."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_posttrain.app.options.changed import differences
from lit_posttrain.app.pipeline.plan import Stage
from lit_posttrain.files.whole import write_json

log = logging.getLogger(__name__)

RECORD = "stage.json"


@dataclass(frozen=True)
class StageFolder:
    """The folder of a stage.

    Args:
        path: the folder, which need not be there.
    """

    path: Path

    @property
    def export(self) -> Path:
        """The Hugging Face folder of the trained model."""
        return self.path / "export"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / "checkpoints" / "last.ckpt"

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`, which a run writes last."""
        content: dict[str, Any] = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        return content

    def is_done(self, origin: dict[str, Any]) -> bool:
        """Whether a run of just this origin, a configuration and digests of its inputs, ended here."""
        return self._is_of(origin) and (self.path / "summary.json").is_file() and self.export.is_dir()

    def prepare(self, origin: dict[str, Any], command: list[str]) -> Path | None:
        """Make ready for a run that is not done.

        What a run of another origin left is kept beside, as `<stage>.1` and so on. What one of this origin left
        without a checkpoint is of no use and goes.

        Returns:
            The checkpoint to go on from, None = begin.
        """
        if self._is_of(origin) and self.checkpoint.is_file():
            return self.checkpoint
        if self._is_of(origin):
            shutil.rmtree(self.path)
        elif self.path.is_dir() and any(self.path.iterdir()):
            number = next(n for n in range(1, 10**6) if not self.path.with_name(f"{self.path.name}.{n}").exists())
            aside = self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))
            why = "\n  ".join(_changes(aside / RECORD, origin))
            log.warning("%s was made otherwise and is kept as %s:\n  %s", self.path, aside, why)
        write_json(self.path / RECORD, {"command": command, "origin": origin})
        return None

    def _is_of(self, origin: dict[str, Any]) -> bool:
        return _recorded(self.path / RECORD) == origin


def origin_of(stage: Stage, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """By what a stage is known again: its configuration, and the weights of its inputs, which are done.

    Args:
        stage: of the pipeline.
        config: what makes its weights what they are.
        folder: of the pipeline.
    """
    digests = {other: StageFolder(folder / other).summary()["weights_sha256"] for other in stage.inputs}
    content: dict[str, Any] = json.loads(json.dumps({"config": config, "inputs": digests}))  # as read back from a file
    return content


def _recorded(record: Path) -> Any:
    """The origin of what a folder holds, None where nothing says."""
    return json.loads(record.read_text(encoding="utf-8"))["origin"] if record.is_file() else None


def _changes(record: Path, origin: dict[str, Any]) -> list[str]:
    """In what a run of another origin differs from the one that is to be made."""
    before = _recorded(record)
    if before is None:
        return ["it is no stage of a pipeline"]
    other = [
        f"{name}: other weights" for name, digest in origin["inputs"].items() if before["inputs"].get(name) != digest
    ]
    return [*differences(before["config"], origin["config"]), *other]
