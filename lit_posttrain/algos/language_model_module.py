"""What every module that starts from a language model shares: finding it, its tokenizer and export."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.algos.training_module import MakeOptimizer, MakeScheduler, TrainingModule
from lit_posttrain.models.loading import Pretrained, as_pretrained
from lit_posttrain.models.tokenizers import check_tokenizer

ModelSource: TypeAlias = str | Path | Pretrained | PreTrainedModel | Callable[[], PreTrainedModel]


class LanguageModelModule(TrainingModule):
    """A LightningModule that starts from a causal language model.

    Args:
        source: name or path of a model, a `Pretrained`, a built model, or a function that builds one. Names,
            `Pretrained` and functions are loaded in `configure_model`, after all arguments have been checked.
        argument: what the algorithm calls it, for errors.
        tokenizer: needed with a built model that carries no name, otherwise found by the model's name.
        optimizer: see `TrainingModule`.
        scheduler: see `TrainingModule`.

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

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer as a Hugging Face folder."""

    def check_model(self) -> None:
        """Fail now, before data are read or weights loaded, where the model cannot be found."""
        source = self._source()
        if isinstance(source, Pretrained):
            source.check()

    def load_model(self) -> PreTrainedModel:
        """The causal language model to start from, with which the tokenizer has been seen to fit."""
        source = self._source()
        if isinstance(source, Pretrained):
            model = source.load()
        else:
            model = source if isinstance(source, PreTrainedModel) else source()
        check_tokenizer(self._own_tokenizer(), vocab_size=model.get_input_embeddings().weight.shape[0])
        return model
