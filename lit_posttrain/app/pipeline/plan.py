"""Which overrides each stage of a pipeline gets: its own, and those of the command line that concern it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.options.hints import nearest
from lit_posttrain.app.options.overrides import in_quotes, option, quote
from lit_posttrain.app.pipeline.gate import Gate

GIVEN = "pipeline.given"
_OF_A_STAGE = re.compile(r"([+~]{0,2})stage\.(.*)", flags=re.DOTALL)
# Groups and options that mean the same to every stage.
SHARED = ("trainer", "logger", "callbacks", "seed", "threads", "val_every_steps")
# Of the model: where the weights come from, which only a stage that starts from the pipeline's model can be told.
ORIGIN = ("model.path", "model.random_init", "model.seed", "model.tokenizer", "model.lora.adapter")
OWN = ("pipeline", "hydra", "model", "data")
REFUSED = {
    "mode": "a pipeline trains: `mode=validate model=local model.path=<pipeline>/<stage>/export` looks at a stage.",
    "ckpt_path": "a pipeline finds the checkpoints of its stages itself: `hydra.run.dir=<its folder>` goes on.",
    "overwrite": "a pipeline goes on in its folder: remove that yourself, or take another `hydra.run.dir`.",
}
REFUSED_OF_A_STAGE = {
    **REFUSED,
    **dict.fromkeys(("hydra", "run_dir"), "the folder of a stage is in that of its pipeline, `hydra.run.dir=...`."),
    "names": "the names of a stage are those of its choices.",
    "pipeline": "a stage is one run.",
    "gate": "gates are options of the pipeline, `pipeline.stages.<name>.gate.metric=...`.",
}
KINDS = {"PromptDataModule": "prompts", "InstructDataModule": "demonstrations", "PreferenceDataModule": "preferences"}
VIEWS = ("chosen", "prompts")  # how preferences are seen by a stage that learns from something else


@dataclass(frozen=True)
class Stage:
    """A run of a pipeline.

    Args:
        name: of the stage and of its folder.
        overrides: as on a command line; `{other}` stands for the export of the stage `other`, before this one.
        inputs: the names of those stages.
        gate: what its summary has to show, None = nothing.
    """

    name: str
    overrides: list[str]
    inputs: list[str]
    gate: Gate | None

    def filled(self, exports: Mapping[str, str]) -> list[str]:
        """The overrides with the export of each stage before in its place."""
        return [_fill(override, {name: quote(exports[name]) for name in self.inputs}) for override in self.overrides]


def plan_stages(pipeline: DictConfig, given: list[str], *, model: str, data_target: str) -> list[Stage]:
    """Distribute what the command line says over the stages.

    Options of `SHARED` reach every stage; `model=` and where its weights come from reach those that start from the
    pipeline's model, other options of `model` all; `data=` reaches each stage in the form that it learns from; and
    `pipeline.given` has what is for one stage alone.

    Args:
        pipeline: the node of the configuration.
        given: the overrides of the command line.
        model: the name of the pipeline's model, a choice of the group `model`.
        data_target: what the data that were chosen are built by.

    Raises:
        ValueError: naming an option that belongs to one stage or to none, an unknown stage, or data of a kind that a
            stage cannot learn from.
    """
    content: Any = OmegaConf.to_container(pipeline, resolve=False)
    nodes: dict[str, Any] = content["stages"]
    if not isinstance(nodes, dict) or not nodes:
        raise ValueError(f"`pipeline.stages` must have a name and `overrides` for each stage, got {nodes}.")
    _check_options(given, list(nodes))
    own = _own_options(content.get("given") or [], list(nodes))
    of_data = [override for override in given if option(override).split(".")[0] == "data"]
    _check_data(of_data)
    stages: list[Stage] = []
    for name, node in nodes.items():
        if not isinstance(node, dict) or not isinstance(node.get("overrides"), list):
            raise ValueError(
                f"`pipeline.stages.{name}` must have `overrides`, a list, got `{node}`: a stage that is not wanted is "
                f"left out by `~pipeline.stages.{name}`."
            )
        chosen = {option(override) for override in own[name]} & {"data", "model"}  # in place of the pipeline's own
        replaced = chosen | ({"data"} if of_data else set())
        lines = [o for o in node["overrides"] if option(o).split(".")[0] not in replaced]
        from_model = "model={model}" in lines
        overrides = [_fill(line, {"model": model}) for line in lines]
        overrides += [o for o in given if option(o).split(".")[0] in SHARED]
        overrides += [o for o in given if _is_for_model(option(o), from_model=from_model)]
        if "data" not in chosen:
            overrides += _data_overrides(name, node.get("data") or {}, of_data, data_target)
        overrides += own[name]
        earlier = [stage.name for stage in stages]
        inputs = [other for other in earlier if any(f"{{{other}}}" in override for override in overrides)]
        _check_placeholders(name, lines, earlier, known=None)
        _check_placeholders(name, own[name], earlier, known=list(nodes))
        stages.append(Stage(name, overrides, inputs, Gate.of(name, node.get("gate"))))
    return stages


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
    found = [match for match in map(_OF_A_STAGE.fullmatch, arguments) if match]
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
    quoted = ",".join(in_quotes("".join(match.groups())) for match in found)
    first = next(place for place, argument in enumerate(arguments) if _OF_A_STAGE.fullmatch(argument))
    before, behind = arguments[:first], [a for a in arguments[first:] if not _OF_A_STAGE.fullmatch(a)]
    return [*before, f"++{GIVEN}=[{quoted}]", *behind]


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _check_placeholders(name: str, overrides: list[str], earlier: list[str], *, known: list[str] | None) -> None:
    """Refuse exports that are not there yet; of a user's braces, which templates have too, those of stages only."""
    for override in overrides:
        for other in re.findall(r"(?<!\$)\{(\w+)\}", override):
            if other not in [*earlier, "model"] and (known is None or other in known):
                raise ValueError(
                    f"stage `{name}`: `{override}` names `{{{other}}}`, which is no stage before it."
                    f"{nearest(other, earlier)} There are: {', '.join(earlier) or 'none'}."
                )


def _check_options(given: list[str], stages: list[str]) -> None:
    for override in given:
        name = option(override)
        first = name.split(".")[0]
        if first in REFUSED:
            raise ValueError(f"`{first}` cannot be given with a pipeline: {REFUSED[first]}")
        if first not in SHARED + OWN:
            raise ValueError(
                f"`{override}` is a matter of one stage: say which, as `stage.{stages[-1]}.{override.lstrip('+~')}`. "
                f"The stages are: {', '.join(stages)}; for all of them are {', '.join(('model', 'data', *SHARED))}."
            )


def _own_options(given: Any, stages: list[str]) -> dict[str, list[str]]:
    """The options for one stage alone, by its name."""
    found: dict[str, list[str]] = {name: [] for name in stages}
    for text in given:
        match = re.fullmatch(r"([+~]{0,2})([^.=]+)\.(.+)", text, flags=re.DOTALL)
        if match is None:
            raise ValueError(f"an option of a stage is written `stage.<name>.<option>=<value>`, got `stage.{text}`.")
        sign, name, rest = match.groups()
        if name not in found:
            raise ValueError(f"there is no stage `{name}`.{nearest(name, stages)} The stages are: {', '.join(stages)}.")
        first = option(rest).split(".")[0]
        if first in REFUSED_OF_A_STAGE:
            raise ValueError(f"`stage.{name}.{first}` cannot be given: {REFUSED_OF_A_STAGE[first]}")
        found[name].append(sign + rest)
    return found


def _is_for_model(name: str, *, from_model: bool) -> bool:
    """Whether a stage gets an option of `model`; the choice itself stands in its overrides as `model={model}`."""
    return name.startswith("model.") and (from_model or not name.startswith(ORIGIN))


def _check_data(overrides: list[str]) -> None:
    if overrides and not any(option(override) == "data" for override in overrides):
        raise ValueError(
            f"`{overrides[0]}` could be of several stages' data: give `data=...` with it, whose preferences, prompts "
            f"or demonstrations the stages share, or say which stage: `stage.<name>.{overrides[0]}`."
        )


def _data_overrides(stage: str, forms: dict[str, str], overrides: list[str], target: str) -> list[str]:
    """The user's choice of data in the form that a stage learns from, if there is one."""
    if not overrides:
        return []
    kind = KINDS.get(target.rpartition(".")[2], "data of its own kind")
    form = forms.get(kind)
    if form is None:
        raise ValueError(
            f"stage `{stage}` learns from {' or '.join(forms) or 'data of its own'}, and `data=` names {kind}: "
            f"give it data of its own, `stage.{stage}.data=...`."
        )
    if form == "as_is":
        return overrides
    if form not in VIEWS:
        hint = nearest(form, list(VIEWS))
        raise ValueError(f"stage `{stage}`: data are taken `as_is` or as {', '.join(VIEWS)}, got `{form}`.{hint}")
    return [*overrides, f"data.view={form}"]
