"""A LoRA adapter on a model, by peft: switched off and on, merged, saved."""

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_posttrain.models.folders import check_finite, read_tokenizer
from lit_posttrain.models.lora import ADAPTER_FILE
from lit_posttrain.models.weights import drawn_on_cpu

log = logging.getLogger(__name__)

REFERENCE = "reference"  # the name of the frozen copy
LORA_WEIGHTS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
ZERO_AT_FIRST = {"lora_B", "lora_embedding_A"}


class Adapter:
    """The adapter that is trained. peft puts its layers into the model, which goes on being called as before.

    Not an `nn.Module`: its weights are registered as the model's, once.

    Args:
        peft_model: with a LoRA adapter that is trainable.
        export: what a run leaves, "merged" or "adapter".

    Raises:
        ValueError: if it has no such adapter.
    """

    def __init__(self, peft_model: PeftModel, *, export: str = "merged") -> None:
        self.name = str(peft_model.active_adapter)
        kind = peft_model.peft_config[self.name].peft_type
        if kind != PeftType.LORA:
            raise ValueError(f"only LoRA adapters can be trained, this one is {kind.value}: give another.")
        if not any(parameter.requires_grad for parameter in peft_model.parameters()):
            raise ValueError(
                "the adapter of the given PeftModel is frozen: load it with "
                "`PeftModel.from_pretrained(model, folder, is_trainable=True)`."
            )
        self.peft_model = peft_model
        self.export = export
        self._has_copy = False
        _refuse_tied_embeddings(self.model)

    @property
    def model(self) -> PreTrainedModel:
        """The model that the adapter's layers are in."""
        return self.peft_model.get_base_model()

    @property
    def is_fresh(self) -> bool:
        """Whether the adapter changes nothing as yet."""
        for name, tensor in self.state_dict().items():
            parts = set(name.split("."))
            if not parts & LORA_WEIGHTS or (parts & ZERO_AT_FIRST and tensor.any()):
                return False
        return True

    def keep_initial(self) -> None:
        """See to it that `initial` has the adapter as it is now: a frozen copy, or none where it changes nothing."""
        if self._has_copy or self.is_fresh:
            return
        config = copy.deepcopy(self.peft_model.peft_config[self.name])
        config.init_lora_weights = True  # some ways to begin change the model's own weights, once more
        with self._gradient_flags(), drawn_on_cpu(0), _without_known_warnings():  # and then overwritten
            self.peft_model.add_adapter(REFERENCE, config)
            set_peft_model_state_dict(self.peft_model, self.state_dict(), adapter_name=REFERENCE)
        self.peft_model.set_requires_grad(REFERENCE, False)
        self._has_copy = True

    @contextmanager
    def initial(self) -> Iterator[None]:
        """Inside, the model is what it was at `keep_initial`.

        peft's switches change which weights are trainable; they are as before afterwards. Modes are left alone.
        """
        with self._gradient_flags():
            if not self._has_copy:
                with self.peft_model.disable_adapter():
                    yield
                return
            self.peft_model.set_adapter(REFERENCE, inference_mode=True)
            try:
                yield
            finally:
                self.peft_model.set_adapter(self.name)

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights by the names that they have in its folder."""
        return get_peft_model_state_dict(self.peft_model, adapter_name=self.name, save_embedding_layers=False)

    def merged(self) -> PreTrainedModel:
        """A copy of the model with the adapter added to its weights, and without its layers."""
        copied = copy.deepcopy(self.peft_model)
        return copied.merge_and_unload(adapter_names=[self.name])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `AutoPeftModelForCausalLM` and `PeftModel.from_pretrained` load."""
        self.peft_model.save_pretrained(str(folder), selected_adapters=[self.name], save_embedding_layers=False)

    @contextmanager
    def _gradient_flags(self) -> Iterator[None]:
        flags = [(parameter, parameter.requires_grad) for parameter in self.peft_model.parameters()]
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def fresh_adapter(
    model: PreTrainedModel, *, r: int, alpha: float, target_modules: str | Sequence[str], export: str, seed: int
) -> Adapter:
    """Put a new adapter on a model; the arguments are those of `Lora`.

    Raises:
        ValueError: if `target_modules` are not layers of the model.
    """
    wanted = target_modules if isinstance(target_modules, str) else list(target_modules)
    _check_targets(model, wanted)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=wanted,
        exclude_modules=None if model.can_generate() else ["score"],  # the head of a reward model is trained whole
        task_type="CAUSAL_LM" if model.can_generate() else None,
    )
    with drawn_on_cpu(seed), _without_known_warnings():
        return Adapter(get_peft_model(model, config), export=export)


def loaded_adapter(model: PreTrainedModel, path: str, *, export: str) -> Adapter:
    """Put the adapter of a folder on a model.

    Raises:
        ValueError: if it is no LoRA adapter, or was trained on another kind of model.
    """
    config = PeftConfig.from_pretrained(path)
    if config.peft_type != PeftType.LORA:
        raise ValueError(f"the adapter `{path}` is {config.peft_type.value}, only LoRA can be trained: give another.")
    base = config.base_model_name_or_path
    if base and model.name_or_path and base != model.name_or_path:
        log.warning("the adapter `%s` was trained on `%s`, here it is put on `%s`", path, base, model.name_or_path)
    _check_vocabulary(model, path)
    config.inference_mode = False
    config.lora_dropout = 0.0
    config.task_type = "CAUSAL_LM" if model.can_generate() else None
    config.base_model_name_or_path = model.name_or_path
    try:
        with drawn_on_cpu(0), _without_known_warnings():  # and then overwritten
            peft_model = get_peft_model(model, config)
        found = peft_model.load_adapter(path, "default", is_trainable=True, torch_device="cpu")
        wrong = [*found.missing_keys, *(key for key in found.unexpected_keys if "lora_" in key)]
        if wrong:
            raise ValueError(f"{len(wrong)} weights are in one of the two only, {wrong[0]} for example")
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"the adapter `{path}` does not fit {type(model).__name__} `{model.name_or_path}`; it was trained on "
            f"`{base}`, give that model. {_shortened(error)}"
        ) from error
    adapter = Adapter(peft_model, export=export)
    check_finite(adapter.state_dict().items(), path)
    log.info("going on with the adapter `%s`: rank %s on %s", path, config.r, ", ".join(sorted(config.target_modules)))
    return adapter


@contextmanager
def _without_known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # and peft sets it right by itself
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks for it
        warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed from ''")
        yield


def _check_targets(model: PreTrainedModel, wanted: str | list[str]) -> None:
    """Refuse names that no layer has; peft lets them pass as long as another one is found."""
    if wanted == "all-linear":
        return
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D | nn.Embedding)]
    if isinstance(wanted, str):
        missing = [] if any(re.fullmatch(wanted, name) for name in names) else [wanted]
        rule = " (a single text is a regular expression that whole names match; ends of names go in a list)"
    else:
        missing = [each for each in wanted if not any(f".{name}".endswith(f".{each}") for name in names)]
        rule = ""
    if missing:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ValueError(
            f"`target_modules` names {', '.join(missing)}, which no layer of {type(model).__name__} is "
            f"called{rule}. There are: {there}; or all-linear."
        )


def _refuse_tied_embeddings(model: PreTrainedModel) -> None:
    """An adapter on one of two layers that share their weight cannot be merged."""
    first, second = model.get_input_embeddings(), model.get_output_embeddings()
    if second is None or first.weight is not second.weight:
        return
    if any(hasattr(layer, "base_layer") for layer in (first, second)):
        raise ValueError(
            f"`target_modules` has an embedding or the output head of {type(model).__name__}, which share "
            "one weight: merged, the adapter of one would change the other. Leave them out."
        )


def _check_vocabulary(model: PreTrainedModel, path: str) -> None:
    """A tokenizer that lies beside the adapter must fit the model."""
    folder = Path(path).expanduser()
    if not (folder / ADAPTER_FILE).is_file() or not (folder / "tokenizer_config.json").is_file():
        return
    size, rows = len(read_tokenizer(str(folder), local=True)), model.get_input_embeddings().weight.shape[0]
    if size > rows:
        raise ValueError(
            f"the adapter `{path}` comes with a tokenizer of {size} tokens, the model `{model.name_or_path}` has only "
            f"{rows} embeddings: they do not belong together. Give the model that it was trained on."
        )


def _shortened(error: Exception, *, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}..."
