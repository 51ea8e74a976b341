"""The base of the algorithms that learn from given rows: demonstrations, preferences."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.batching import PassLoader, ReplayedPasses, StepPart
from lit_posttrain.data.loaders import FixedLoader, StepLoader
from lit_posttrain.data.supervised import SupervisedDataModule
from lit_posttrain.models.source import ModelSource
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler, PostTrainingModule
from lit_posttrain.rollout.engine import LocalEngine
from lit_posttrain.rollout.evaluator import PromptEvaluator
from lit_posttrain.rollout.options import Sampling, Validation, as_mapping, options


class OfflineModule(PostTrainingModule):
    """Learns from rows, validates on rows that were held out, and on completions of prompts where there are some.

    Args:
        source: the causal language model to start from.
        optimizer: makes the optimiser from the parameters; None = the algorithm's default.
        scheduler: makes the schedule from the optimiser; None = the algorithm's default.
    """

    progress_bar: tuple[str, ...] = ("train/loss",)

    def __init__(
        self, source: ModelSource, *, optimizer: MakeOptimizer | None, scheduler: MakeScheduler | None
    ) -> None:
        super().__init__(source, optimizer=optimizer, scheduler=scheduler)
        self.save_hyperparameters(ignore=[*self.unsaved, "source", "sampling", "validation"])

    def judge_completions(
        self, sampling: Sampling | Mapping[str, Any] | None, validation: Validation | Mapping[str, Any] | None
    ) -> None:
        """Validate on completions too, where the DataModule has prompts for it (`val_prompts`).

        Args:
            sampling: how completions are drawn.
            validation: how they are judged.
        """
        drawn = options(Sampling, sampling, argument="sampling")
        judged = options(Validation, validation, argument="validation")
        self.save_hyperparameters({"sampling": as_mapping(drawn), "validation": as_mapping(judged)})
        self.evaluator = PromptEvaluator(LocalEngine(self), None, sampling=drawn, validation=judged)

    # What an algorithm is, beside its loss.

    @property
    @abstractmethod
    def batch_kind(self) -> type:
        """What a micro-batch has to be."""

    @property
    @abstractmethod
    def rows_needed(self) -> str:
        """The rows that it is made of, as the beginning of an error."""

    @abstractmethod
    def validate_rows(self, part: StepPart[Any]) -> None:
        """Look at held-out rows."""

    @abstractmethod
    def row_metrics(self) -> dict[str, Tensor]:
        """Give the metrics of all rows that were looked at, none if there were none; collection begins anew."""

    # Rows.

    def setup(self, stage: str) -> None:
        """Refuse rows of another kind before weights are loaded.

        Raises:
            TypeError: naming both kinds.
        """
        super().setup(stage)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, SupervisedDataModule):
            self._check_kind(datamodule.batch_kind)

    def make_training_loader(self, loader: Any) -> PassLoader:
        """Make of a loader the micro-batches that it gives, in passes that can be gone on with anywhere.

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

    def check_part(self, part: Any) -> None:
        """Refuse a micro-batch of rows of another kind.

        Raises:
            TypeError: naming both kinds.
        """
        self._check_kind(type(part.batch) if isinstance(part, StepPart) else type(part))

    def _check_kind(self, kind: type) -> None:
        if not issubclass(kind, self.batch_kind):
            raise TypeError(
                f"{self.rows_needed}, one {self.batch_kind.__name__} in each `StepPart`; the data make "
                f"{kind.__name__}es. Give it other data, or choose another algorithm or loss."
            )

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at rows or complete prompts: what the dataloader gives."""
        if isinstance(batch, list):
            super().validation_step(batch, batch_idx)
            return
        self.check_part(batch)
        self.validate_rows(batch)

    def validation_metrics(self) -> dict[str, Tensor]:
        """Give those of the rows, and the scores of completions where there are prompts."""
        return super().validation_metrics() | self.row_metrics()

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Complete prompts.

        Raises:
            TypeError: if it is given rows to learn from, which have completions.
        """
        if isinstance(batch, StepPart):
            raise TypeError(
                "prediction completes prompts, and the data have rows to learn from: give it prompts, a "
                "`PromptDataModule`."
            )
        return super().predict_step(batch, batch_idx)
