"""What every module that starts from a language model shares: finding it, its tokenizer and export."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.algos.training_module import MakeOptimizer, MakeScheduler, TrainingModule
from lit_posttrain.batching import PassLoader, ReplayedPasses
from lit_posttrain.data.loaders import FixedLoader, StepLoader
from lit_posttrain.data.supervised import SupervisedDataModule
from lit_posttrain.models.folders import context_length
from lit_posttrain.models.loading import Pretrained, as_pretrained
from lit_posttrain.models.lora import as_adapter
from lit_posttrain.models.networks.layout import PacksRows
from lit_posttrain.models.sharding import full_state_dict, shard, sharded_like, sharding_mesh
from lit_posttrain.models.tokenizers import check_tokenizer

if TYPE_CHECKING:
    from lit_posttrain.models.adapter import Adapter

# Where checkpoints have the weights that are trained, if a callback averages them: "state_dict" is the average then.
UNAVERAGED = "current_model_state"

ModelSource: TypeAlias = str | Path | Pretrained | PreTrainedModel | Callable[[], PreTrainedModel]


class LanguageModelModule(TrainingModule):
    """A LightningModule that starts from a causal language model.

    Args:
        source: name or path of a model, a `Pretrained`, a built model, or a function that builds one. Names,
            `Pretrained` and functions are loaded in `configure_model`, after all arguments have been checked. With
            `Pretrained(lora=...)`, or a `PeftModel` with a LoRA adapter, the adapter alone is trained, and
            checkpoints hold no more than is trained.
        argument: what the algorithm calls it, for errors.
        tokenizer: needed with a built model that carries no name, otherwise found by the model's name.
        optimizer: see `TrainingModule`.
        scheduler: see `TrainingModule`.

    Attributes:
        adapter: the adapter that is trained; None = all weights are, or the model is not loaded yet.

    Raises:
        TypeError: if `source` is none of these.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        argument: str,
        tokenizer: PreTrainedTokenizerBase | None,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        found = as_pretrained(source)
        if not (isinstance(found, Pretrained | PreTrainedModel) or callable(found)):
            raise TypeError(
                f"`{argument}` must be the name or path of a model, a `Pretrained`, a transformers model or a function "
                f"that builds one, got {type(source).__name__}."
            )
        # held in a function, since a module among the attributes would be registered before `configure_model`
        self._source = lambda: found
        self._argument = argument
        self._given_tokenizer = tokenizer
        self.adapter: Adapter | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use.

        Raises:
            ValueError: if none was given and the model has no name to find one by.
        """
        return self._own_tokenizer()

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        """As the model came with it."""
        if self._given_tokenizer is None:
            source = self._source()
            if (given := as_adapter(source)) is not None:
                source = given.model
            if isinstance(source, PreTrainedModel) and source.name_or_path:
                source = Pretrained(source.name_or_path)
            if not isinstance(source, Pretrained):
                raise ValueError(
                    f"`tokenizer` is needed: the {self._argument} was given as an object that has no name to load it "
                    "by."
                )
            self._given_tokenizer = source.load_tokenizer()
        return self._given_tokenizer

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The transformers model that is trained; there once `configure_model` has run."""

    @property
    @abstractmethod
    def main_network(self) -> nn.Module:
        """What the language model is the main part of; there once `configure_model` has run."""

    def trained_networks(self) -> list[nn.Module]:
        """The networks whose forward is called in training, none of which is part of another."""
        return [self.main_network]

    @abstractmethod
    def build_networks(self) -> None:
        """Load what `configure_model` is to make; nothing where it has been done before."""

    def configure_model(self) -> None:
        """Build the networks and, where the strategy is made for it, deal out their weights over the processes.

        Lightning calls this once for every fit, validate or predict, in the context of its device. Networks are built
        on the CPU all the same: fresh weights are equal on every device then, and `from_pretrained` asks for no
        `accelerate`.

        Raises:
            ValueError: if the strategy does not work here, or not with an adapter.
        """
        mesh = None if self._trainer is None else sharding_mesh(self.trainer.strategy)
        if mesh is not None:
            self._refuse_adapter()
        with torch.device("cpu"):
            self.build_networks()
        if mesh is not None:
            self._refuse_adapter()  # one that a function has built
            self.shard_networks(mesh)

    def make_training_loader(self, loader: Any) -> PassLoader:
        """The micro-batches that a loader gives, in passes that can be gone on with anywhere.

        A plan of optimiser steps is cut and shared out as the Trainer has it; of somebody else's loader each batch is a
        micro-batch, and the order of a shuffling `DataLoader` is made a function of the seed and the epoch.
        """
        trainer = self.trainer
        if isinstance(loader, FixedLoader):
            plan = loader.plan.dealt(
                micro_batches=trainer.accumulate_grad_batches, rank=self.global_rank, world_size=trainer.world_size
            )
            return StepLoader(plan, trainer)
        return StepLoader(ReplayedPasses(loader, seed=torch.initial_seed(), world_size=trainer.world_size), trainer)

    def on_fit_start(self) -> None:
        """Find out before the first step whether the rows fit the model."""
        super().on_fit_start()
        datamodule = getattr(self._trainer, "datamodule", None)
        if datamodule is not None:
            self.check_lengths(datamodule, self.language_model.config)

    def check_lengths(self, datamodule: LightningDataModule, config: PreTrainedConfig) -> None:
        """Find out whether a model has positions for the longest row.

        Args:
            datamodule: its rows have been read; one of this library, or nothing is known.
            config: of the model.

        Raises:
            ValueError: if it has not.
        """
        if not isinstance(datamodule, SupervisedDataModule):
            return
        datamodule.encode(self.tokenizer)
        context = context_length(config)
        if context is not None and datamodule.longest > context:
            raise ValueError(
                f"the longest row has {datamodule.longest} tokens, but the model's context is {context} tokens: "
                f"`data.max_length={context}` leaves such rows out, or take a model with a longer one."
            )

    def shard_networks(self, mesh: DeviceMesh) -> None:
        """Deal out the weights of all networks.

        They are in the Trainer's precision before, of which the buffers are made that the processes meet in. Whether
        rows can be packed is found out before, too: later all processes would have to do it together.
        """
        for network in self.trained_networks():
            if self.packs_rows and isinstance(network, PacksRows):
                network.check_packing()
            shard(self.convert(network), mesh)

    def convert(self, network: nn.Module) -> nn.Module:
        """Give a network's weights the Trainer's precision, in place; twice is once."""
        return self.trainer.precision_plugin.convert_module(network)

    @property
    def packs_rows(self) -> bool:
        """Whether the data come in packed batches."""
        datamodule = getattr(self._trainer, "datamodule", None)
        return isinstance(datamodule, SupervisedDataModule) and datamodule.packing

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer as a Hugging Face folder."""

    def save_outline(self, folder: str | Path) -> None:
        """Write what an export has beside its weights, before they are loaded: config.json and tokenizer."""
        self.export_config().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def export_config(self) -> PreTrainedConfig:
        """What config.json of an export says of the architecture."""
        source = self._source()
        return source.load_config() if isinstance(source, Pretrained) else self.load_model().config

    def check_model(self) -> None:
        """Fail now, before data are read or weights loaded, where the model cannot be found."""
        source = self._source()
        if isinstance(source, Pretrained):
            source.check()

    def load_model(self) -> PreTrainedModel:
        """The causal language model to start from, with which the tokenizer has been seen to fit.

        It has no adapter yet, unless it was given with one.
        """
        source = self._source()
        if isinstance(source, Pretrained):
            model = source.load_base()
        else:
            model = source if isinstance(source, PreTrainedModel) or as_adapter(source) else source()
            if (given := as_adapter(model)) is not None:
                self.adapter, model = given, given.model
        check_tokenizer(self._own_tokenizer(), vocab_size=model.get_input_embeddings().weight.shape[0])
        return model

    def attach_adapter(self, model: PreTrainedModel) -> None:
        """Put the adapter on the model that is to be trained, where one is asked for."""
        source = self._source()
        lora = source.adapter if isinstance(source, Pretrained) else None
        if lora is not None:
            self.adapter = lora.attach(model)
        if self.adapter is not None:
            # not in `load_state_dict`: a copy of the module, as averages of weights are, loads as a part of another
            self.register_load_state_dict_pre_hook(_fill_in_frozen)

    def merged_model(self) -> PreTrainedModel:
        """The transformers model without an adapter: where one is trained, a copy with the adapter added."""
        return self.language_model if self.adapter is None else self.adapter.merged()

    def exported_weights(self) -> dict[str, Tensor]:
        """The tensors that `save_pretrained` writes, by name; of sharded weights on the first process alone.

        All processes call it together where weights are sharded.
        """
        if self.adapter is not None and self.adapter.export == "adapter":
            return self.adapter.state_dict()
        return full_state_dict(self.merged_model())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With an adapter, leave out what is frozen: it is loaded from where it came from."""
        super().on_save_checkpoint(checkpoint)
        if self.adapter is not None:
            frozen = self._frozen_names()
            for weights in {"state_dict", UNAVERAGED} & checkpoint.keys():
                checkpoint[weights] = {n: t for n, t in checkpoint[weights].items() if n not in frozen}
            checkpoint["adapter_only"] = True

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Find out whether this module can go on from a checkpoint, before anything else is done.

        Raises:
            ValueError: if another class wrote it, or only one of the two trains an adapter.
        """
        super().check_checkpoint(checkpoint)
        source = self._source()
        if not isinstance(source, Pretrained | PreTrainedModel) and self.adapter is None and not as_adapter(source):
            return  # a function: what it builds is known once it has been called
        here = self._trains_adapter
        there = checkpoint.get("adapter_only", False)
        if there and not here:
            raise ValueError(
                "the checkpoint holds an adapter without its model, and this run trains all weights: give the model "
                "and the adapter's options as its run had them, `model/lora=default`."
            )
        if here and not there:
            raise ValueError(
                "the checkpoint holds a whole model, and this run trains an adapter: leave out `model/lora`, or put "
                "an adapter on its run's export, `model=local model.path=<run>/export model/lora=default`."
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, whole ones into sharded networks too; of an adapter's model, what is frozen may be missing.

        Raises:
            ValueError: if the adapter is of another shape.
        """
        if self.adapter is None:
            return super().load_state_dict(sharded_like(self, state_dict), strict, assign)
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise ValueError(
                "the checkpoint does not fit this run's adapter: give `model.lora.r`, `model.lora.target_modules` and "
                f"the model as they were (config.yaml of its run has them). {' '.join(str(error).split())[:300]}"
            ) from error

    def _refuse_adapter(self) -> None:
        if self._trains_adapter:
            raise ValueError(
                "LoRA does not go with sharded weights (`trainer=fsdp`), of which no merged copy could be made: use "
                "`trainer=ddp`, where gradients and optimiser are as small as the adapter, or train all weights."
            )

    @property
    def _trains_adapter(self) -> bool:
        """As far as is known: what a function builds is seen once it has been called."""
        source = self._source()
        asked_for = isinstance(source, Pretrained) and source.adapter is not None
        return asked_for or self.adapter is not None or as_adapter(source) is not None

    def _frozen_names(self) -> set[str]:
        named = self.named_parameters(remove_duplicate=False)  # tied weights have two names
        return {name for name, parameter in named if not parameter.requires_grad}


def _fill_in_frozen(module: LanguageModelModule, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Leave what is frozen as it is, where a checkpoint has the adapter alone."""
    frozen = module._frozen_names()
    for name, tensor in module.state_dict().items():
        if name in frozen:
            state_dict.setdefault(f"{prefix}{name}", tensor)
