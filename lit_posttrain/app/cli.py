"""The command line. Nothing here imports torch, so that `--help` and `--cfg job` answer at once."""

import logging
import os
import re
import shlex
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lit_posttrain.app.errors import SET_HERE, USER_ERRORS, leave, name_options
from lit_posttrain.app.folder.claim import folder_of_job, release_folders
from lit_posttrain.app.lifeline import (
    HELD,
    TERMINATED,
    end_soon_after_sigterm,
    end_with_the_launcher,
    end_with_the_pipeline,
    ended_at_once,
    say_end,
)
from lit_posttrain.app.options.hints import applied_recipe, check_flags, check_given, explain_composition_error
from lit_posttrain.app.options.overrides import quote
from lit_posttrain.app.pipeline.plan import gather_stage_options

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="pkg://lit_posttrain.conf", config_name="train")
def _train(cfg: DictConfig) -> float | None:
    try:
        config = HydraConfig.get()
        if config.mode is RunMode.MULTIRUN:  # a single run is looked at before its folder is made
            check_given(config, cfg)
        if cfg.get("pipeline") is not None:
            from lit_posttrain.app.pipeline.run import run_pipeline

            run_pipeline(cfg)
            return None
        with ended_at_once(_way_on()):
            from lit_posttrain.app.console import speak_for_all_ranks
            from lit_posttrain.app.run import run

        logging.getLogger("lightning").handlers.clear()  # Hydra's root logger prints what Lightning has to say
        speak_for_all_ranks()
        if recipe := applied_recipe(config.runtime.choices.get("recipe")):
            log.info(recipe)
        with folder_of_job(cfg):
            return run(cfg)
    except Exception as error:
        name_options(error, cfg)
        _keep_traceback(error)
        raise
    except (KeyboardInterrupt, SystemExit) as stop:
        stop.add_note(_way_on())  # Hydra forgets the run when it has ended
        raise


def command() -> None:
    """Run `main` in a process of its own, which ends when it has to, whatever it is doing."""
    end_soon_after_sigterm()
    end_with_the_pipeline()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        end_with_the_launcher()
    main()


def main() -> None:
    """Run what the command line says; errors are a message, and the traceback goes to the run's log."""
    inherited = os.environ.get("LOCAL_RANK", "0") != "0" and SET_HERE in os.environ  # a process that Lightning launched
    full_errors = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0") and not inherited
    if not full_errors:  # so that Hydra raises instead of printing and leaving
        os.environ.update({"HYDRA_FULL_ERROR": "1", SET_HERE: "1"})
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # so that `_target_` may name a class of the user's own, as with `python -m`
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        check_flags(sys.argv[1:])
        sys.argv[1:] = gather_stage_options(_quoted_folder(sys.argv[1:]) if inherited else sys.argv[1:])
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
        release_folders()
        signal.signal(signal.SIGTERM, previous)
        if not full_errors:
            for name in ("HYDRA_FULL_ERROR", SET_HERE):
                os.environ.pop(name, None)


def _quoted_folder(arguments: list[str]) -> list[str]:
    """Mend the quotes that Lightning puts around a folder in the arguments of a process that it launches."""
    own = [re.fullmatch(r'hydra\.run\.dir="(.*)"', argument, flags=re.DOTALL) for argument in arguments[-3:]]
    mended = [f"hydra.run.dir={quote(match.group(1))}" if match else None for match in own]
    return [*arguments[:-3], *(new or old for new, old in zip(mended, arguments[-3:], strict=True))]


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
    number = signal.SIGINT if interrupted else signal.SIGTERM
    say_end(number, _last_note(stop) or "")
    sys.exit(128 + number)


def _keep_traceback(error: Exception) -> None:
    """Write the traceback of an error to the log of the run, and note in the error where that is."""
    config = HydraConfig.get()
    path = Path(config.runtime.output_dir) / f"{config.job.name}.log"
    with suppress(OSError):  # its disk may be what is wrong
        with path.open("a", encoding="utf-8") as file:
            file.writelines(traceback.format_exception(error))
        error.add_note(f"The traceback is in {path}")


def _way_on() -> str:
    """Return the words that say how to go on with a run that was stopped."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HELD in os.environ:
        where = shlex.quote(f"hydra.run.dir={quote(str(folder.parent))}")
        return f"; the pipeline's own command goes on with it, with {where}"
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        return " before the first checkpoint"
    option = shlex.quote(f"ckpt_path={quote(str(checkpoint))}")
    return f"; go on with `{_program()} {option}`"


def _program() -> str:
    """Return what was typed before the options."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m lit_posttrain"
    return f"python {shlex.quote(sys.argv[0])}" if path.suffix == ".py" else path.name


def _last_note(error: BaseException) -> str | None:
    notes = vars(error).get("__notes__", [])
    return notes[-1] if notes else None


def _leave(error: BaseException, message: str | None) -> NoReturn:
    kept = _last_note(error)
    where = f"{kept}; set" if kept else "For the traceback set"
    leave(error, message, more=f"\n\n{where} HYDRA_FULL_ERROR=1 to see it here.")
