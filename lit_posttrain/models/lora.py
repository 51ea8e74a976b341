"""Low-rank adapters: a few weights beside the layers of a model, trained instead of all of its own."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lit_posttrain.models.hub import resolve_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_posttrain.models.adapter import Adapter

ADAPTER_FILE = "adapter_config.json"
Export = Literal["merged", "adapter"]


@dataclass(frozen=True)
class Lora:
    r"""Trains :math:`W + \frac{\alpha}{r} B A` with the weight :math:`W` left as it is (LoRA, arXiv:2106.09685).

    :math:`B` starts at 0, so that a fresh adapter changes nothing. There is no dropout, as everywhere here: a policy
    has to agree with itself. It takes several times the learning rate of training all weights.

    Args:
        r: rank of the change of a layer.
        alpha: the change is multiplied by `alpha / r`.
        target_modules: the layers that get one: "all-linear" (all but the output head), a list of their names or ends
            of names, or a regular expression that whole names match.
        adapter: go on with the adapter of this folder or Hub repository, in place of a fresh one; the rank and the
            layers are its own then. It also belongs to the reference of a KL term or of DPO.
        export: what a run leaves: "merged", a model like any other, or "adapter", the folder of a PEFT adapter.
        seed: of a fresh adapter.

    Raises:
        ValueError: if a number is out of its range, or `export` is none of the two.
    """

    r: int = 16
    alpha: float = 32.0
    target_modules: str | Sequence[str] = "all-linear"
    adapter: str | None = None
    export: Export = "merged"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"`r` must be >= 1, got {self.r}: it is the rank of a matrix.")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(
                f"`alpha` must be finite and > 0, got {self.alpha}: the adapter is multiplied by alpha / r."
            )
        if not self.target_modules:
            raise ValueError('`target_modules` is empty: name layers, or "all-linear" for all of them.')
        if self.export not in get_args(Export):
            raise ValueError(f"`export` must be one of {', '.join(get_args(Export))}, got `{self.export}`.")

    def check(self) -> None:
        """Find out without a model whether `attach` can work.

        Raises:
            ModuleNotFoundError: if peft is not installed.
            FileNotFoundError: if `adapter` is no adapter, or the Hub is needed and cannot be reached.
        """
        if importlib.util.find_spec("peft") is None:
            raise ModuleNotFoundError(
                "LoRA needs the package peft, which is not installed: `pip install 'lit-posttrain[lora]'`."
            )
        if self.adapter is not None:
            resolve_folder(self.adapter, file=ADAPTER_FILE)

    def attach(self, model: "PreTrainedModel") -> "Adapter":
        """Put an adapter on a model, in place; all other weights are frozen.

        Raises:
            ModuleNotFoundError: if peft is not installed.
            FileNotFoundError: if `adapter` is no adapter, or the Hub is needed and cannot be reached.
            ValueError: if `target_modules` are not layers of the model, or the adapter is of another model.
        """
        self.check()
        from lit_posttrain.models.adapter import fresh_adapter, loaded_adapter

        if self.adapter is not None:
            return loaded_adapter(model, resolve_folder(self.adapter, file=ADAPTER_FILE)[0], export=self.export)
        return fresh_adapter(
            model,
            r=self.r,
            alpha=self.alpha,
            target_modules=self.target_modules,
            export=self.export,
            seed=self.seed,
        )


def holds_adapter(path: str) -> bool:
    """Whether a path is a folder with an adapter in it instead of a whole model."""
    return (Path(path).expanduser() / ADAPTER_FILE).is_file()


def base_of_adapter(path: str) -> str:
    """Name or path of the model that the adapter of a folder was trained on.

    Raises:
        ValueError: if the folder does not say.
    """
    settings: dict[str, Any] = json.loads((Path(path).expanduser() / ADAPTER_FILE).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the adapter `{path}` does not say which model it belongs to: name it, "
            f'`Pretrained("<model>", lora=Lora(adapter="{path}"))`.'
        )
    return str(base)


def as_adapter(model: Any) -> "Adapter | None":
    """The adapter of a `PeftModel`, None of anything else; peft is not imported to find out.

    Raises:
        ValueError: if it has an adapter that cannot be trained here.
    """
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, peft.PeftModel):
        return None
    from lit_posttrain.models.adapter import Adapter

    return Adapter(model)
