"""What every module that trains a language model shares: loading it, its tokenizer and export."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_posttrain.algos.training_module import MakeOptimizer, MakeScheduler, TrainingModule
from lit_posttrain.models.loading import Pretrained, as_pretrained
from lit_posttrain.models.policy import Policy
from lit_posttrain.models.tokenizers import check_tokenizer

PolicySource: TypeAlias = str | Path | Pretrained | PreTrainedModel | Callable[[], PreTrainedModel]


class PolicyModule(TrainingModule):
    """A LightningModule around one policy.

    Args:
        policy: name or path of a model, a `Pretrained`, a built model, or a function that builds one. Names,
            `Pretrained` and functions are loaded in `configure_model`, after all arguments have been checked.
        tokenizer: needed with a built model that carries no name, otherwise found by the policy's name.
        optimizer: see `TrainingModule`.
        scheduler: see `TrainingModule`.
        logits_chunk_size: positions whose logits exist at the same time; bounds memory, does not change the result.
    """

    def __init__(
        self,
        policy: PolicySource,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        logits_chunk_size: int = 512,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if logits_chunk_size < 1:
            raise ValueError(f"`logits_chunk_size` must be >= 1, got {logits_chunk_size}: it counts positions.")
        source = as_pretrained(policy)
        if not (isinstance(source, Pretrained | PreTrainedModel) or callable(source)):
            raise TypeError(
                "`policy` must be the name or path of a model, a `Pretrained`, a transformers model or a function that "
                f"builds one, got {type(policy).__name__}."
            )
        # held in a function, since a module among the attributes would be registered before `configure_model`
        self._policy_source = lambda: source
        self._given_tokenizer = tokenizer
        self._logits_chunk_size = logits_chunk_size
        self.policy: Policy | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use.

        Raises:
            ValueError: if none was given and the policy has no name to find one by.
        """
        if self._given_tokenizer is None:
            source = self._policy_source()
            if isinstance(source, PreTrainedModel) and source.name_or_path:
                source = Pretrained(source.name_or_path)
            if not isinstance(source, Pretrained):
                raise ValueError(
                    "`tokenizer` is needed: the policy was given as an object that has no name to load it by."
                )
            self._given_tokenizer = source.load_tokenizer()
        return self._given_tokenizer

    @property
    def language_model(self) -> PreTrainedModel:
        """The transformers model inside the policy; there once `configure_model` has run."""
        if self.policy is None:
            raise RuntimeError("the policy is not loaded yet: `configure_model` builds it when the Trainer starts.")
        return self.policy.model

    def check_policy(self) -> None:
        """Fail now, before data are read or weights loaded, where the policy cannot be found."""
        source = self._policy_source()
        if isinstance(source, Pretrained):
            source.check()

    def configure_model(self) -> None:
        """Load the policy; Lightning calls this once for every fit, validate or predict."""
        if self.policy is not None:
            return
        source = self._policy_source()
        if isinstance(source, Pretrained):
            model = source.load()
        else:
            model = source if isinstance(source, PreTrainedModel) else source()
        check_tokenizer(self.tokenizer, vocab_size=model.get_input_embeddings().weight.shape[0])
        self.policy = Policy(model, chunk_size=self._logits_chunk_size).train()  # for gradient checkpointing

    def save_pretrained(self, folder: str | Path) -> None:
        """Write policy and tokenizer as a Hugging Face folder that `AutoModelForCausalLM` loads."""
        self.language_model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
