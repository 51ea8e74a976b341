"""The command line. Nothing here imports torch, so that `--help` and `--cfg job` answer at once."""

import logging
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lit_posttrain.app.errors import SET_HERE, told
from lit_posttrain.app.hints import check_additions, explain_composition_error
from lit_posttrain.app.lifeline import (
    HELD,
    TERMINATED,
    end_soon_after_sigterm,
    end_with_the_launcher,
    end_with_the_pipeline,
)
from lit_posttrain.app.stage_options import gather_stage_options

# Errors that tell a user what to change; anything else is shown with its traceback.
USER_ERRORS = (ValueError, TypeError, KeyError, FileNotFoundError, ImportError, RuntimeError, OSError)

INTERRUPTED = 128 + signal.SIGINT


@hydra.main(version_base="1.3", config_path="pkg://lit_posttrain.conf", config_name="train")
def _train(cfg: DictConfig) -> float | None:
    try:
        config = HydraConfig.get()
        check_additions(list(config.overrides.task), list(config.runtime.choices))
        if cfg.get("pipeline") is not None:
            from lit_posttrain.app.pipeline import run_pipeline

            run_pipeline(cfg)
            return None
        from lit_posttrain.app.console import speak_for_all_ranks
        from lit_posttrain.app.run import run

        logging.getLogger("lightning").handlers.clear()  # Hydra's root logger prints what Lightning has to say
        speak_for_all_ranks()
        return run(cfg)
    except Exception as error:
        _keep_traceback(error)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(_way_on(Path(HydraConfig.get().runtime.output_dir)))  # Hydra forgets the run when it has ended
        raise


def main() -> None:
    """Run what the command line says; errors are a message, and the traceback goes to the run's log."""
    inherited = os.environ.get("LOCAL_RANK", "0") != "0" and SET_HERE in os.environ  # a process that Lightning launched
    full_errors = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0") and not inherited
    if not full_errors:  # so that Hydra raises instead of printing and leaving
        os.environ.update({"HYDRA_FULL_ERROR": "1", SET_HERE: "1"})
    previous = signal.signal(signal.SIGTERM, _terminate)
    end_soon_after_sigterm()
    end_with_the_pipeline()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        end_with_the_launcher()
    try:
        sys.argv[1:] = gather_stage_options(resume_in_place(sys.argv[1:]))
        _train()
    except (HydraException, OmegaConfBaseException) as error:
        if full_errors:
            raise
        built = isinstance(error, InstantiationException)
        _leave(error, None if built else explain_composition_error(str(error), sys.argv[1:]))
    except USER_ERRORS as error:
        if full_errors:
            raise
        _leave(error, None)
    except (KeyboardInterrupt, SystemExit) as stop:
        _end(stop)
    finally:
        signal.signal(signal.SIGTERM, previous)
        if not full_errors:
            for name in ("HYDRA_FULL_ERROR", SET_HERE):
                os.environ.pop(name, None)


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


def _terminate(number: int, frame: FrameType | None) -> None:
    """Unwind, so that a launcher ends the processes of its jobs; dying at once would leave them running.

    While Lightning fits in this process it has a handler of its own, which calls this one too and stops after a batch.
    """
    if signal.getsignal(signal.SIGTERM) is _terminate:
        sys.exit(TERMINATED)


def _end(stop: KeyboardInterrupt | SystemExit) -> NoReturn:
    """Say in one sentence how to go on with a run that was stopped, and leave with the status of the signal."""
    interrupted = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
    terminated = type(stop) is not SystemExit or stop.code == TERMINATED  # Lightning's SIGTERMException has no status
    if not interrupted and not terminated:
        raise stop
    if os.environ.get("LOCAL_RANK", "0") == "0":
        word = "interrupted" if interrupted else "terminated"
        print(f"\n{word}{_last_note(stop) or ''}", file=sys.stderr)  # noqa: T201
    sys.exit(INTERRUPTED if interrupted else TERMINATED)


def _keep_traceback(error: Exception) -> None:
    """Write it to the log of the run, and note in the error where that is."""
    config = HydraConfig.get()
    path = Path(config.runtime.output_dir) / f"{config.job.name}.log"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    error.add_note(f"The traceback is in {path}")


def _way_on(folder: Path) -> str:
    """How to go on with a run that was stopped."""
    if HELD in os.environ:
        return f"; the pipeline's own command goes on with it, with hydra.run.dir={shlex.quote(str(folder.parent))}"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        return " before the first checkpoint"
    return f"; go on with `{_program()} ckpt_path={shlex.quote(str(checkpoint))}`"


def _program() -> str:
    """What was typed before the options."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m lit_posttrain"
    return f"python {shlex.quote(sys.argv[0])}" if path.suffix == ".py" else path.name


def _last_note(error: BaseException) -> str | None:
    notes = vars(error).get("__notes__", [])
    return notes[-1] if notes else None


def _leave(error: BaseException, message: str | None) -> None:
    kept = _last_note(error)
    where = f"{kept}; set" if kept else "For the traceback set"
    rank = os.environ.get("LOCAL_RANK", "0")
    who = "" if rank == "0" else f" in process {rank}"
    print(f"\nerror{who}: {told(error, message)}\n\n{where} HYDRA_FULL_ERROR=1 to see it here.", file=sys.stderr)  # noqa: T201
    sys.exit(1)
