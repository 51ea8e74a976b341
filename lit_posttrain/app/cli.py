"""The command line. Nothing here imports torch, so that `--help` and `--cfg job` answer at once."""

import logging
import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lit_posttrain.app.hints import explain_composition_error

log = logging.getLogger(__name__)

# Errors that tell a user what to change; anything else is shown with its traceback.
USER_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, ImportError, RuntimeError, OSError)


@hydra.main(version_base="1.3", config_path="pkg://lit_posttrain.conf", config_name="train")
def _train(cfg: DictConfig) -> float | None:
    from lit_posttrain.app.run import run

    return run(cfg)


def main() -> None:
    """Run what the command line says; errors are a message, and the traceback goes to the run's log."""
    full_errors = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises instead of printing and leaving
    sys.argv[1:] = resume_in_place(sys.argv[1:])
    try:
        _train()
    except (HydraException, OmegaConfBaseException) as error:
        if full_errors:
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        _leave(cause or error, explain_composition_error(error, sys.argv[1:]) if cause is None else None)
    except USER_ERRORS as error:
        if full_errors:
            raise
        _leave(error, None)


def resume_in_place(arguments: list[str]) -> list[str]:
    """A fit that resumes from a run's checkpoint goes on in that run's folder."""
    values = dict(argument.split("=", 1) for argument in arguments if "=" in argument and not argument.startswith("-"))
    checkpoint = values.get("ckpt_path", "null").strip("'\"")
    if checkpoint == "null" or values.get("mode", "fit") != "fit" or "hydra.run.dir" in values:
        return arguments
    folder = Path(checkpoint).resolve().parent.parent
    if not (folder / "config.yaml").is_file() or {"-m", "--multirun"} & set(arguments):
        return arguments
    return [*arguments, f"hydra.run.dir='{folder}'"]


def _leave(error: BaseException, message: str | None) -> None:
    text = message or (str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error))
    trace = "".join(traceback.format_exception(error))
    logs = _job_log()
    if logs is not None:
        with logs.open("a", encoding="utf-8") as file:
            file.write(trace)
    where = f"The traceback is in {logs}; " if logs else "For the traceback "
    print(f"\nerror: {type(error).__name__}: {text}\n\n{where}set HYDRA_FULL_ERROR=1 to see it here.", file=sys.stderr)  # noqa: T201
    sys.exit(1)


def _job_log() -> Path | None:
    """The log file of the run, once Hydra has made its folder."""
    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    return folder / f"{config.job.name}.log" if folder.is_dir() else None
