"""Options of one stage on the command line of a pipeline: `stage.<name>.<option>=<value>`."""

import re

from hydra.core.override_parser.types import Quote, QuotedString

GIVEN = "pipeline.given"
_OPTION = re.compile(r"([+~]{0,2})stage\.(.*)", flags=re.DOTALL)


def gather_stage_options(arguments: list[str]) -> list[str]:
    """Put all options of stages into one that Hydra knows, a list in `pipeline.given`.

    Hydra would look for them in the configuration of the pipeline, but they are of the stages' own.

    Args:
        arguments: of the command line.

    Raises:
        ValueError: if there is no pipeline, or one is to be swept.

    >>> gather_stage_options(["pipeline=rlhf", "stage.rm.optim.lr=1e-4", "+stage.rm.trainer.benchmark=true"])[1]
    "++pipeline.given=['rm.optim.lr=1e-4','+rm.trainer.benchmark=true']"
    """
    found = [match for match in map(_OPTION.fullmatch, arguments) if match]
    has_pipeline = any(argument.startswith("pipeline=") for argument in arguments)
    if found and not has_pipeline:
        raise ValueError(
            f"`{found[0].group(0)}` is for a stage of a pipeline: add `pipeline=rlhf`, or leave out `stage.<name>.`."
        )
    if has_pipeline and {"-m", "--multirun"} & set(arguments):
        raise ValueError(
            "a pipeline cannot be swept (`-m`): a job is one run, a pipeline several. Start it once for each value, or "
            "sweep one algorithm from what a stage exported: `-m model=local model.path=<its folder>/sft/export ...`."
        )
    if not found:
        return arguments
    quoted = ",".join(_in_quotes("".join(match.groups())) for match in found)
    first = next(place for place, argument in enumerate(arguments) if _OPTION.fullmatch(argument))
    before, behind = arguments[:first], [a for a in arguments[first:] if not _OPTION.fullmatch(a)]
    return [*before, f"++{GIVEN}=[{quoted}]", *behind]


def quote(text: str) -> str:
    r"""A text as a value of Hydra's grammar: in quotes unless it is plain, a quote in it escaped.

    >>> print(quote("/runs/sft"), quote("it's"))
    /runs/sft 'it\'s'
    """
    return text if re.fullmatch(r"[\w./-]*[A-Za-z_/][\w./-]*", text, flags=re.ASCII) else _in_quotes(text)


def _in_quotes(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
