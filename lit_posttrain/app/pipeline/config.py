"""The configuration of a stage, as its own command line will compose it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lit_posttrain.app.errors import name_options, words
from lit_posttrain.app.options.checks import check_config
from lit_posttrain.app.options.hints import check_replaced, explain_composition_error
from lit_posttrain.app.pipeline.plan import Stage, plan_stages

# What watches a run or names it, and does not change its weights.
WITHOUT_EFFECT = ("run_dir", "names", "ckpt_path", "overwrite", "logger", "callbacks", "gate")

BLANK = ("run_dir=run", "names.algo=''", "names.model=''", "names.data=''")  # what a run fills in


def planned(cfg: DictConfig) -> list[tuple[Stage, dict[str, Any]]]:
    """Plan the stages of a pipeline that Hydra has composed, each with what makes its weights what they are.

    Raises:
        ValueError: if an option is wrong; the message names the stage.
    """
    config = HydraConfig.get()
    stages = plan_stages(
        cfg.pipeline,
        list(config.overrides.task),
        model=config.runtime.choices["model"],
        data_target=str(cfg.data.get("_target_", "")),
    )
    return [(stage, stage_config(stage)) for stage in stages]


def stage_config(stage: Stage) -> dict[str, Any]:
    """What makes the weights of a stage what they are, but for its inputs, which are named only.

    Raises:
        ValueError: if it could not begin so; the message names the stage.
    """
    exports = {name: name for name in stage.inputs}
    with told_of(stage):
        cfg = compose_stage(stage, exports)
        check_replaced([*stage.filled(exports), *BLANK], cfg, HydraConfig.get().job.config_name)
        check_config(cfg)
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    return {key: value for key, value in values.items() if key not in WITHOUT_EFFECT}


def compose_stage(stage: Stage, exports: Mapping[str, str]) -> DictConfig:
    """Compose it from the overrides of a stage, with these exports of the stages before."""
    return compose(HydraConfig.get().job.config_name, [*stage.filled(exports), *BLANK])


@contextmanager
def told_of(stage: Stage, exports: Mapping[str, str] | None = None) -> Iterator[None]:
    """Name the stage in whatever is said against its configuration.

    Args:
        stage: of a pipeline.
        exports: folders that stand for the exports of other stages, which the user knows as `{name}`.

    Raises:
        ValueError: in place of any other error.
    """
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # where it could not be composed there is nothing to name
            name_options(error, compose_stage(stage, exports or {}), prefix=f"stage.{stage.name}.")
        text = explain_composition_error(words(error), stage.overrides)
        for name, folder in (exports or {}).items():
            text = text.replace(folder, f"{{{name}}}")
        raise ValueError(f"stage `{stage.name}`: {text}") from error
