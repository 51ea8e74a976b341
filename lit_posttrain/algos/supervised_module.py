"""What every module shares that teaches a policy from given rows."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_posttrain.algos.completing_module import CompletingModule
from lit_posttrain.algos.policy_module import PolicySource
from lit_posttrain.algos.training_module import MakeOptimizer, MakeScheduler
from lit_posttrain.batching import StepPart
from lit_posttrain.data.supervised import SupervisedDataModule
from lit_posttrain.rollout.experience import PromptRow
from lit_posttrain.rollout.sampling import Sampling


class SupervisedModule(CompletingModule):
    """Validates on rows that were held out and, where the DataModule has `val_prompts`, on completions of prompts.

    Args:
        policy: see `CompletingModule`.
        tokenizer: see `CompletingModule`.
        scores: see `CompletingModule`.
        sampling: see `CompletingModule`.
        generation_batch_size: see `CompletingModule`.
        val_samples: see `CompletingModule`.
        optimizer: see `CompletingModule`.
        scheduler: see `CompletingModule`.
        logits_chunk_size: see `CompletingModule`.
    """

    progress_bar = ("train/loss",)

    def __init__(
        self,
        policy: PolicySource,
        *,
        tokenizer: PreTrainedTokenizerBase | None,
        scores: Mapping[str, Callable[..., Any]] | None,
        sampling: Sampling | Mapping[str, Any] | None,
        generation_batch_size: int | None,
        val_samples: int,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
        logits_chunk_size: int,
    ) -> None:
        super().__init__(
            policy,
            None,
            tokenizer=tokenizer,
            scores=scores,
            sampling=sampling,
            generation_batch_size=generation_batch_size,
            val_samples=val_samples,
            optimizer=optimizer,
            scheduler=scheduler,
            logits_chunk_size=logits_chunk_size,
        )

    @property
    @abstractmethod
    def batch_kind(self) -> type:
        """What a micro-batch has to be."""

    @property
    @abstractmethod
    def rows_needed(self) -> str:
        """The rows that it is made of, as the beginning of an error."""

    def setup(self, stage: str) -> None:
        """Refuse rows of another kind before weights are loaded.

        Raises:
            TypeError: naming both kinds.
        """
        super().setup(stage)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, SupervisedDataModule):
            self._check_kind(datamodule.batch_kind)

    def check_batch(self, batch: Any) -> None:
        """Refuse a batch of another kind.

        Raises:
            TypeError: naming both kinds.
        """
        self._check_kind(type(batch))

    def _check_kind(self, kind: type) -> None:
        if not issubclass(kind, self.batch_kind):
            raise TypeError(
                f"{self.rows_needed}, one {self.batch_kind.__name__} after the other; the data make "
                f"{kind.__name__}es. Give it other data, or choose another algorithm or loss."
            )

    @abstractmethod
    def validate_rows(self, part: StepPart[Any]) -> None:
        """Look at held-out rows."""

    @abstractmethod
    def row_metrics(self) -> dict[str, Tensor]:
        """The metrics of all rows that were looked at, none if there were none; collection begins anew."""

    def validation_step(self, batch: StepPart[Any] | list[PromptRow], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at rows or complete prompts: what the dataloader gives."""
        if isinstance(batch, StepPart):
            self.validate_rows(batch)
        else:
            super().validation_step(batch, batch_idx)

    def predict_step(self, batch: StepPart[Any] | list[PromptRow], batch_idx: int) -> list[dict[str, Any]]:
        """Complete prompts.

        Raises:
            TypeError: if it is given rows to learn from, which have completions.
        """
        if isinstance(batch, StepPart):
            raise TypeError(
                "prediction completes prompts, and the data have rows to learn from: give it prompts, as "
                "`data=prompts data.path=prompts.jsonl` or `data=gridworld`, a `PromptDataModule`."
            )
        return super().predict_step(batch, batch_idx)

    def validation_metrics(self) -> dict[str, Tensor]:
        """Those of the rows, and the scores of completions where there are prompts."""
        scores = super().validation_metrics() if self._scores is not None else {}
        return scores | self.row_metrics()
