"""Policies and tokenizers by name or path, loaded when they are asked for and not before."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lit_posttrain.models.hub import resolve_folder
from lit_posttrain.models.lora import Lora, base_of_adapter, holds_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BUILT_IN = {"tiny": Path(__file__).parent / "tiny"}
DType = Literal["float32", "bfloat16", "float64", "auto"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]


@dataclass(frozen=True)
class Pretrained:
    """A Hugging Face model that is not loaded yet.

    Args:
        path: a folder written by `save_pretrained`, a repository on the Hub, or "tiny", which comes with the package;
            or the folder of a PEFT adapter, which is then trained further on the model that it names.
        dtype: of the weights; "auto" takes that of the folder. Keep float32 to train: an update of a bfloat16 weight at
            the usual learning rates is below its resolution. For bf16 compute use `Trainer(precision="bf16-mixed")`.
        attention: the attention implementation; None = what transformers chooses for the model.
        gradient_checkpointing: recompute activations in backward: less memory, more time, the same result.
        random_init: the architecture with fresh weights instead of the stored ones.
        seed: of the fresh weights.
        tokenizer: another folder or repository to take the tokenizer from; None = `path`.
        lora: train a low-rank adapter instead of all weights; None = all weights.
        logits_chunk_size: positions whose logits exist at the same time in a policy; bounds memory, does not change the
            result.

    Raises:
        ValueError: if `dtype` or `attention` is none of the names above, or `lora` would export an adapter of random
            weights.
    """

    path: str
    dtype: DType = "float32"
    attention: Attention | None = None
    gradient_checkpointing: bool = False
    random_init: bool = False
    seed: int = 0
    tokenizer: str | None = None
    lora: Lora | None = None
    logits_chunk_size: int = 512

    def __post_init__(self) -> None:
        check_chunk_size(self.logits_chunk_size)
        if not self.path:
            raise ValueError("`path` is empty: give a folder or the name of a repository on the Hub.")
        if self.dtype not in get_args(DType):
            reason = " (AdamW in float16 ends in NaN)" if self.dtype == "float16" else ""
            raise ValueError(f"`dtype` must be one of {', '.join(get_args(DType))}, got `{self.dtype}`{reason}.")
        if self.attention is not None and self.attention not in get_args(Attention):
            raise ValueError(
                f"`attention` must be one of {', '.join(get_args(Attention))} or None, got `{self.attention}`."
            )
        if self.lora is not None and not isinstance(self.lora, Lora):
            raise TypeError(
                f"`lora` must be None or have options of its own, got `{self.lora}`: `Lora()` switches LoRA on."
            )
        if self.random_init and self.lora is not None and self.lora.export == "adapter":
            raise ValueError(
                '`lora.export="adapter"` does not go with `random_init`: nobody could load the weights that '
                'the adapter belongs to. Use `lora.export="merged"`.'
            )

    @property
    def adapter(self) -> Lora | None:
        """What is trained instead of all weights: `lora`, or the adapter that `path` holds.

        Raises:
            ValueError: if there are two adapters.
        """
        if not holds_adapter(self.path):
            return self.lora
        lora = self.lora or Lora()
        if lora.adapter is not None:
            raise ValueError(
                f"`path` and `lora.adapter` are both adapters, `{self.path}` and `{lora.adapter}`: give one."
            )
        return replace(lora, adapter=self.path)

    def load(self) -> "PreTrainedModel":
        """The model with its adapter where it has one, in eval mode, on the CPU.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
        """
        model, adapter = self.load_base(), self.adapter
        return model if adapter is None else adapter.attach(model).model

    def load_base(self) -> "PreTrainedModel":
        """The model without an adapter, in eval mode, on the CPU.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
            ValueError: if weights are missing or wrong.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from lit_posttrain.models.folders import read_model
        from lit_posttrain.models.weights import drawn_on_cpu

        folder, local = self._base_folder()
        if self.random_init:
            config = self.load_config()
            dtype = config.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
            with drawn_on_cpu(self.seed):
                model = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, attn_implementation=self.attention, trust_remote_code=False
                )
            model.eval()
        else:
            self.check()
            dtype = "auto" if self.dtype == "auto" else getattr(torch, self.dtype)
            model = read_model(AutoModelForCausalLM, folder, dtype=dtype, local=local, attention=self.attention)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def load_config(self) -> "PreTrainedConfig":
        """What says of which architecture the model is, without an adapter.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
        """
        from lit_posttrain.models.folders import read_config

        folder, local = self._base_folder()
        return read_config(folder, local=local)

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer that lies beside the model.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
        """
        from lit_posttrain.models.folders import read_tokenizer

        path = self.tokenizer or self.path
        if holds_adapter(path):
            beside = Path(path).expanduser()
            if (beside / "tokenizer_config.json").is_file():
                return read_tokenizer(str(beside), local=True)
            path = base_of_adapter(path)
        folder, local = self._folder(path)
        return read_tokenizer(folder, local=local)

    def check(self) -> None:
        """Find out without loading weights whether `load` can work.

        Raises:
            FileNotFoundError: if there is no such folder, or the Hub is needed and cannot be reached.
            ValueError: if it is no causal language model.
            ModuleNotFoundError: if there is an adapter and peft is not installed.
        """
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if (adapter := self.adapter) is not None:
            adapter.check()
        config = self.load_config()
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ValueError(
                f"`{self.path}` holds a {config.model_type} model, which is no causal language model; "
                "a policy must write text. Check `path`."
            )
        heads = config.architectures or []
        if any(head.endswith("ForSequenceClassification") for head in heads):
            raise ValueError(
                f"`{self.path}` holds {', '.join(heads)}, a reward model or classifier, which writes no text. Give the "
                "model that it was trained from; in online algorithms it can be the reward: "
                f'`load_reward_model("{self.path}")`.'
            )

    def _base_folder(self) -> tuple[str, bool]:
        if not holds_adapter(self.path):
            return self._folder(self.path)
        if self.random_init:
            raise ValueError(f"`random_init` does not go with an adapter, which `{self.path}` is: give a model.")
        base = base_of_adapter(self.path)
        try:
            return self._folder(base)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"the model of the adapter `{self.path}` is missing: {error} If it is elsewhere by now: "
                f'`Pretrained("<model>", lora=Lora(adapter="{self.path}"))`.'
            ) from error

    def _folder(self, path: str) -> tuple[str, bool]:
        return (str(BUILT_IN[path]), True) if path in BUILT_IN else resolve_folder(path)


@dataclass(frozen=True)
class BuiltModel:
    """A causal language model that somebody has built, or a function that builds one.

    Args:
        model: a `transformers` model, one of peft's with a LoRA adapter, or a function of no arguments that builds one;
            functions are called in `configure_model`, after all arguments have been checked.
        tokenizer: of the model; None = found by the name that the model carries.
        logits_chunk_size: positions whose logits exist at the same time in a policy; bounds memory, does not change the
            result.

    Raises:
        TypeError: if `model` is none of these.
    """

    model: "PreTrainedModel | Callable[[], PreTrainedModel]"
    tokenizer: "PreTrainedTokenizerBase | None" = None
    logits_chunk_size: int = 512

    def __post_init__(self) -> None:
        check_chunk_size(self.logits_chunk_size)
        if not callable(self.model):
            raise TypeError(
                f"`model` must be a transformers model or a function that builds one, got {type(self.model).__name__}."
            )


def check_chunk_size(logits_chunk_size: int) -> None:
    """Refuse a number of positions below 1.

    Raises:
        ValueError: naming it.
    """
    if logits_chunk_size < 1:
        raise ValueError(f"`logits_chunk_size` must be >= 1, got {logits_chunk_size}: it counts positions.")
