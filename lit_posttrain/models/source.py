"""Where the network of a module comes from, and how it leaves."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.models.export import export_folder
from lit_posttrain.models.loading import BuiltModel, Pretrained
from lit_posttrain.models.lora import as_adapter
from lit_posttrain.models.networks.policy import Policy
from lit_posttrain.models.networks.reference import AdapterReference, FrozenReference, Reference
from lit_posttrain.models.sharding import full_state_dict
from lit_posttrain.models.tokenizers import check_tokenizer

if TYPE_CHECKING:
    from lit_posttrain.models.adapter import Adapter

# Where checkpoints have the weights that are trained, if a callback averages them: "state_dict" is the average then.
UNAVERAGED = "current_model_state"

# Names come last: LightningCLI takes whatever comes first for the form to write an argument down in.
Model: TypeAlias = Pretrained | BuiltModel | PreTrainedModel | Callable[[], PreTrainedModel] | str | Path


class ModelSource:
    """The causal language model that a module starts from: found, loaded, given an adapter, stored and exported.

    Nothing is loaded before it is asked for. No `nn.Module`: the networks that are made of it belong to the module.

    Args:
        model: name or path of a model, a `Pretrained`, a `BuiltModel`, or what a `BuiltModel` is made of.
        argument: what the algorithm calls it, for errors.

    Attributes:
        adapter: the adapter that is trained; None = all weights are, or the model is not loaded yet.

    Raises:
        TypeError: if `model` is none of these.
    """

    def __init__(self, model: Model, *, argument: str) -> None:
        self._argument = argument
        if isinstance(model, str | Path):
            model = Pretrained(str(model))
        elif not isinstance(model, Pretrained | BuiltModel):
            if not callable(model):
                raise TypeError(
                    f"`{argument}` must be the name or path of a model, a `Pretrained`, a `BuiltModel`, a transformers "
                    f"model or a function that builds one, got {type(model).__name__}."
                )
            model = BuiltModel(model)
        self._given: Pretrained | BuiltModel = model
        self._tokenizer = model.tokenizer if isinstance(model, BuiltModel) else None
        self.adapter: Adapter | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, loaded on first use.

        Raises:
            ValueError: if none was given and the model has no name to find one by.
        """
        if self._tokenizer is None:
            source: Any = self._given
            if isinstance(source, BuiltModel):
                adapter = as_adapter(source.model)
                source = source.model if adapter is None else adapter.model
                if isinstance(source, PreTrainedModel) and source.name_or_path:
                    source = Pretrained(source.name_or_path)
            if not isinstance(source, Pretrained):
                raise ValueError(
                    f"a tokenizer is needed: the {self._argument} was given as an object that has no name to load it "
                    "by. Give `BuiltModel(model, tokenizer=...)`."
                )
            self._tokenizer = source.load_tokenizer()
        return self._tokenizer

    @property
    def logits_chunk_size(self) -> int:
        """Positions whose logits exist at the same time."""
        return self._given.logits_chunk_size

    @property
    def is_named(self) -> bool:
        """Whether the model lies in a folder or on the Hub, so that it can be looked at without its weights."""
        return isinstance(self._given, Pretrained)

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter is trained, as far as is known: what a function builds is seen once it was called."""
        if self.adapter is not None:
            return True
        if isinstance(self._given, Pretrained):
            return self._given.adapter is not None
        return as_adapter(self._given.model) is not None

    @property
    def exports_adapter(self) -> bool:
        """Whether an export is the adapter alone."""
        if self.adapter is not None:
            return self.adapter.export == "adapter"
        return (
            isinstance(self._given, Pretrained)
            and self._given.lora is not None
            and self._given.lora.export == "adapter"
        )

    def check(self) -> None:
        """Fail now, before data are read or weights loaded, where the model cannot be found."""
        if isinstance(self._given, Pretrained):
            self._given.check()

    def config(self) -> PreTrainedConfig:
        """Find out of which architecture the model is."""
        return self._given.load_config() if isinstance(self._given, Pretrained) else self.load().config

    def load(self) -> PreTrainedModel:
        """Load the model, with an adapter only where it was given with one; the tokenizer has been seen to fit."""
        if isinstance(self._given, Pretrained):
            model = self._given.load_base()
        else:
            given: Any = self._given.model
            built = given if isinstance(given, PreTrainedModel) or as_adapter(given) else given()
            self.adapter = as_adapter(built)
            model = built if self.adapter is None else self.adapter.model
        check_tokenizer(self.tokenizer, vocab_size=model.get_input_embeddings().weight.shape[0])
        return model

    def attach_adapter(self, model: PreTrainedModel) -> None:
        """Put the adapter on the model that is to be trained, where one is asked for."""
        lora = self._given.adapter if isinstance(self._given, Pretrained) else None
        if lora is not None:
            self.adapter = lora.attach(model)

    def load_policy(self) -> Policy:
        """Load the model as a policy, with its adapter where it has one."""
        model = self.load()
        self.attach_adapter(model)
        return Policy(model, chunk_size=self.logits_chunk_size)

    def reference_of(self, policy: Policy) -> Reference:
        """Keep a policy as it is now: a copy of it or, with an adapter, of as little as is needed."""
        return FrozenReference(policy) if self.adapter is None else AdapterReference(policy, self.adapter)

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """Give the model without an adapter: where one is trained, a copy with the adapter added."""
        return model if self.adapter is None else self.adapter.merged()

    def exported_weights(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Name the tensors that an export has; of sharded weights on the first process alone.

        All processes call it together where weights are sharded.
        """
        if self.adapter is not None and self.exports_adapter:
            return self.adapter.state_dict()
        return full_state_dict(self.merged(model))

    def save(self, folder: str | Path, model: PreTrainedModel, *, writes: bool) -> None:
        """Write a policy's model and tokenizer as a Hugging Face folder, or the adapter alone.

        Args:
            folder: where to; there whole or not at all.
            model: the one that is trained.
            writes: whether this process writes; all call it where weights are sharded.
        """
        if self.adapter is not None and self.exports_adapter:
            write = self.adapter.save_pretrained
        else:
            merged = self.merged(model)
            write = partial(merged.save_pretrained, state_dict=full_state_dict(merged))
        if writes:
            with export_folder(folder) as draft:
                write(draft)
                self.tokenizer.save_pretrained(draft)

    def leave_out_frozen(self, module: nn.Module, checkpoint: dict[str, Any]) -> None:
        """With an adapter, take what is frozen out of a checkpoint: it is loaded from where it came from."""
        if self.adapter is None:
            return
        frozen = frozen_names(module)
        for weights in {"state_dict", UNAVERAGED} & checkpoint.keys():
            checkpoint[weights] = {n: t for n, t in checkpoint[weights].items() if n not in frozen}
        checkpoint["adapter_only"] = True

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Find out whether a checkpoint's weights are those that this source trains.

        Raises:
            ValueError: if only one of the two trains an adapter.
        """
        given = self._given
        if isinstance(given, BuiltModel) and not isinstance(given.model, PreTrainedModel) and not self.trains_adapter:
            return  # a function: what it builds is known once it has been called
        there = checkpoint.get("adapter_only", False)
        if there and not self.trains_adapter:
            raise ValueError(
                "the checkpoint holds an adapter without its model, and this run trains all weights: give the model "
                "and the adapter's options as its run had them, `lora`."
            )
        if self.trains_adapter and not there:
            raise ValueError(
                "the checkpoint holds a whole model, and this run trains an adapter: leave out `lora`, or put an "
                "adapter on the export of the checkpoint's run."
            )


def frozen_names(module: nn.Module) -> set[str]:
    """Name the parameters that are not trained; tied weights have two names."""
    return {name for name, tensor in module.named_parameters(remove_duplicate=False) if not tensor.requires_grad}
