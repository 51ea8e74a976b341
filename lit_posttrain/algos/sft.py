"""Supervised fine-tuning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_posttrain.batching import Means, StepPart, SupervisedBatch
from lit_posttrain.functional import aggregate
from lit_posttrain.models.source import Model, ModelSource
from lit_posttrain.modules.defaults import cosine_to_zero, offline_adamw
from lit_posttrain.modules.offline import OfflineModule
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler
from lit_posttrain.rollout.options import Sampling, Validation


class SFT(OfflineModule):
    r"""Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens of an optimiser step.

    Which tokens are supervised is the data's to say (`InstructDataModule`: completions, their EOS included). With label
    smoothing :math:`\epsilon` a token's loss is :math:`-(1 - \epsilon) \log\pi(y_t) - \epsilon\,\mathrm{mean}_v
    \log\pi(v)`. The mean is over all supervised tokens of the step on all ranks, however it is cut up; a mean of the
    means of micro-batches, as it is often computed, would weigh tokens by how many others their micro-batch has.

    Where the DataModule has prompts to complete in validation (`val_prompts`), completions of them are scored as in the
    online algorithms.

    Args:
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one.
        label_smoothing: :math:`\epsilon`, in [0, 1).
        sampling: how completions are drawn in validation.
        validation: how completions are judged in validation.
        optimizer: makes the optimiser; None = AdamW with lr 2e-5, betas 0.9 and 0.95, no weight decay.
        scheduler: makes the schedule; None = cosine to 0 after a warm-up over 3 % of the steps.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        policy: Model,
        *,
        label_smoothing: float = 0.0,
        sampling: Sampling | Mapping[str, Any] | None = None,
        validation: Validation | Mapping[str, Any] | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(ModelSource(policy, argument="policy"), optimizer=optimizer, scheduler=scheduler)
        self.judge_completions(sampling, validation)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {label_smoothing}: it is a share.")
        self.label_smoothing = label_smoothing
        self._means = Means(("loss", "token_accuracy"))

    @property
    def batch_kind(self) -> type[SupervisedBatch]:
        """Demonstrations."""
        return SupervisedBatch

    @property
    def rows_needed(self) -> str:
        """What they are made of."""
        return "supervised fine-tuning learns from demonstrations (`prompt` and `completion`, or text)"

    def default_optimizer(self) -> MakeOptimizer:
        """AdamW with lr 2e-5, betas 0.9 and 0.95, no weight decay."""
        return offline_adamw(2e-5)

    def default_scheduler(self) -> MakeScheduler:
        """Cosine to 0 over the steps of the Trainer, after a warm-up."""
        return cosine_to_zero(self)

    def loss(self, batch: StepPart[SupervisedBatch]) -> Tensor:
        """Compute this micro-batch's share of the optimiser step's loss: ()."""
        assert self.policy is not None
        self.check_part(batch)
        mask = batch.batch.loss_mask
        statistics = self.policy(batch.batch, supervised=True)
        token_loss = -statistics.logprobs
        if self.label_smoothing > 0:
            token_loss = (1 - self.label_smoothing) * token_loss - self.label_smoothing * statistics.mean_logprobs
        loss = aggregate(token_loss, mask, "token", normalizer=batch.normalizer)
        self.statistics.add("tokens", mask)
        self.statistics.add("entropy", statistics.entropy, mask)
        return loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, and the mean entropy over the step's tokens."""
        return {"train/loss": totals["loss"], "policy/entropy": totals["entropy"] / totals["tokens"].clamp(min=1)}

    def validate_rows(self, part: StepPart[SupervisedBatch]) -> None:
        """Likelihood of demonstrations."""
        assert self.policy is not None
        mask = part.batch.loss_mask
        statistics = self.policy(part.batch, supervised=True)
        self._means.update("loss", -statistics.logprobs[mask])
        self._means.update("token_accuracy", statistics.hits[mask].float())

    def row_metrics(self) -> dict[str, Tensor]:
        """Means over the supervised tokens of the whole set."""
        if self._means.is_empty:
            return {}
        means = self._means.pop(self.ranks.sum)
        return {
            "val/loss": means["loss"],
            "val/perplexity": means["loss"].exp(),
            "val/token_accuracy": means["token_accuracy"],
        }
