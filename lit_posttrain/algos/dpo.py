"""Direct preference optimisation and its relatives."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_posttrain.algos.preference_objectives import PreferenceObjective, find_objective, used_numbers
from lit_posttrain.algos.reference_table import ReferenceTable
from lit_posttrain.batching import Means, StepPart, SupervisedBatch, TwinBatch
from lit_posttrain.functional import aggregate, sequence_logprobs
from lit_posttrain.models.source import Model, ModelSource
from lit_posttrain.modules.defaults import linear_to_zero, offline_adamw
from lit_posttrain.modules.offline import OfflineModule
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler
from lit_posttrain.rollout.options import Sampling, Validation


class DPO(OfflineModule):
    r"""Learns from preferences without a reward model: likelihoods of completions are their rewards.

    With :math:`h = \log\pi(y|x) - \log\pi_{ref}(y|x)`, the sum over the supervised tokens of a completion, and
    :math:`\Delta = h_w - h_l` of a pair, the loss `sigmoid` is :math:`-\log\sigma(\beta\Delta)` (arXiv:2305.18290). The
    others, by name:

    - `robust`, `hinge`, `ipo`, `apo_zero`, `apo_down`, `nca`, `sppo`: other functions of :math:`h_w` and :math:`h_l`;
    - `simpo`, `orpo`: of mean log-probs per token, without a reference;
    - `kto`: of unpaired completions that are desirable or not.

    Their formulas stand in `lit_posttrain.functional`. A loss is a mean over all pairs (or unpaired rows) of the
    optimiser step on all ranks, however it is cut up. Chosen and rejected completions go through the model in one
    forward. The reference is the policy as it is in the beginning.

    KTO's reference point, the mean log-ratio of mismatched completions, is that of the whole optimiser step on all
    ranks: it is measured without a gradient when the step begins. A prompt is mismatched with the completion of the
    next row of the step; in validation, of the batch.

    Watch `policy/chosen_logprob`: most of these losses see a difference alone, and fall too where the chosen
    completions become less likely and the rejected ones even less.

    Args:
        policy: the model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model, or a function
            that builds one.
        loss: a name, or a `PairObjective` of your own.
        beta: :math:`\beta`, reward per nat; of `orpo` the weight of the odds ratio.
        label_smoothing: of `sigmoid` (cDPO) and `robust`: the share of pairs whose label is taken to be wrong, in
            [0, 0.5).
        margin: of `simpo`: :math:`\gamma`, by how much the reward of the chosen one should lead.
        desirable_weight: of `kto`.
        undesirable_weight: of `kto`.
        length_normalized: compare means per token instead of sums; None = what the loss is published with: means for
            `ipo`, `simpo` and `orpo`, of which the last two can do with means alone.
        precompute_reference: compute the reference's log-probs of all rows once before training and keep them by row,
            instead of keeping a second model (with an adapter there is none; this saves its forward). In the first
            epoch they are those of the online reference to the bit.
        sampling: how completions are drawn in validation.
        validation: how completions are judged in validation.
        optimizer: makes the optimiser; None = AdamW with lr 1e-6, betas 0.9 and 0.95, no weight decay.
        scheduler: makes the schedule; None = linear to 0 after a warm-up over 10 % of the steps.

    Raises:
        ValueError: if there is no such loss, or a number is out of its range or means nothing to the loss.
    """

    unsaved = (*OfflineModule.unsaved, "loss")

    def __init__(
        self,
        policy: Model,
        loss: str | PreferenceObjective = "sigmoid",
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        margin: float = 0.0,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        length_normalized: bool | None = None,
        precompute_reference: bool = False,
        sampling: Sampling | Mapping[str, Any] | None = None,
        validation: Validation | Mapping[str, Any] | None = None,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(ModelSource(policy, argument="policy"), optimizer=optimizer, scheduler=scheduler)
        if isinstance(loss, str):
            self.save_hyperparameters({"loss": loss})
        self.judge_completions(sampling, validation)
        self.objective = find_objective(loss)
        self.loss_name = loss if isinstance(loss, str) else type(loss).__name__
        given = {
            "label_smoothing": label_smoothing,
            "margin": margin,
            "desirable_weight": desirable_weight,
            "undesirable_weight": undesirable_weight,
        }
        self.numbers = used_numbers(self.objective, self.loss_name, beta, given)
        self.beta = beta
        self.length_normalized = self._normalizes(length_normalized)
        self.precompute_reference = precompute_reference
        if precompute_reference and self.objective.uses_mismatches:
            raise ValueError(
                f"`precompute_reference` does not go with `loss={self.loss_name}`: which prompts and completions are "
                "mismatched differs from epoch to epoch. Leave it off."
            )
        self._table = ReferenceTable()
        if precompute_reference and self.objective.needs_reference:
            self.states["reference_logprobs"] = self._table  # the weights that they are computed with will be gone
        self._kl = torch.zeros(())
        self._means = Means(("loss", "accuracy", "chosen", "rejected", "logp_w", "logp_l"))

    @property
    def batch_kind(self) -> type[TwinBatch]:
        """The batches that the loss takes."""
        return self.objective.batch_kind

    @property
    def rows_needed(self) -> str:
        """What they are made of."""
        return f"`loss={self.loss_name}` learns from {self.objective.rows}"

    def default_optimizer(self) -> MakeOptimizer:
        """Give AdamW with lr 1e-6, betas 0.9 and 0.95, no weight decay."""
        return offline_adamw(1e-6)

    def default_scheduler(self) -> MakeScheduler:
        """Give a line to 0 over the steps of the Trainer, after a warm-up over 10 % of them."""
        return linear_to_zero(self, warmup=0.1)

    @property
    def keeps_reference(self) -> bool:
        """Whether the initial policy is kept: not where all its log-probs are known beforehand."""
        return self.objective.needs_reference and not self.precompute_reference

    def on_fit_start(self) -> None:
        """Compute the reference's log-probs, while the policy is still as it was."""
        super().on_fit_start()
        self._precompute("train", "validation")

    def on_validation_start(self) -> None:
        """Get the reference ready where there is no fit."""
        super().on_validation_start()
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            if self.reference is not None:
                self.reference.to(self.device, self.convert)
            self._precompute("validation")

    def loss(self, batch: StepPart[TwinBatch]) -> Tensor:
        """Compute this micro-batch's share of the optimiser step's loss: ()."""
        self.check_part(batch)
        values, sums, entropy = self._values(batch, "train")
        losses = self.objective.losses(batch.batch, values, self._kl, self.numbers)
        loss = aggregate(losses[:, None], batch.batch.row_mask[:, None], "token", normalizer=batch.normalizer)
        mask = self.objective.sequences(batch.batch).loss_mask
        rewards, logprobs = (self.objective.sides(batch.batch, each) for each in (self.beta * values, sums))
        self.statistics.add("tokens", mask)
        self.statistics.add("entropy", entropy, mask)
        self.statistics.add("num_chosen", rewards.chosen_mask)
        self.statistics.add("num_rejected", rewards.rejected_mask)
        for name, sides in (("reward", rewards), ("logprob", logprobs)):
            self.statistics.add(f"chosen_{name}", sides.chosen, sides.chosen_mask)
            self.statistics.add(f"rejected_{name}", sides.rejected, sides.rejected_mask)
        return loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss, and means over the completions of each side."""
        chosen, rejected = totals["num_chosen"].clamp(min=1), totals["num_rejected"].clamp(min=1)
        rewards = totals["chosen_reward"] / chosen, totals["rejected_reward"] / rejected
        return {
            "train/loss": totals["loss"],
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margin": rewards[0] - rewards[1],
            "policy/chosen_logprob": totals["chosen_logprob"] / chosen,
            "policy/rejected_logprob": totals["rejected_logprob"] / rejected,
            "policy/entropy": totals["entropy"] / totals["tokens"].clamp(min=1),
        }

    def validate_rows(self, part: StepPart[TwinBatch]) -> None:
        """Look at loss, rewards and log-probs of held-out rows."""
        batch = part.batch
        values, sums, _ = self._values(part, "validation")
        mask = batch.row_mask
        self._means.update("loss", self.objective.losses(batch, values, self._kl, self.numbers)[mask])
        self._means.update("accuracy", self.objective.correct(batch, values, self._kl)[mask].float())
        rewards, logprobs = self.objective.sides(batch, self.beta * values), self.objective.sides(batch, sums)
        self._means.update("chosen", rewards.chosen[rewards.chosen_mask])
        self._means.update("rejected", rewards.rejected[rewards.rejected_mask])
        self._means.update("logp_w", logprobs.chosen[logprobs.chosen_mask])
        self._means.update("logp_l", logprobs.rejected[logprobs.rejected_mask])

    def row_metrics(self) -> dict[str, Tensor]:
        """Take means over all held-out rows."""
        if self._means.is_empty:
            return {}
        means = self._means.pop(self.ranks.sum)
        return {
            "val/loss": means["loss"],
            "val/accuracy": means["accuracy"],
            "val/margin": means["chosen"] - means["rejected"],
            "val/chosen_logprob": means["logp_w"],
            "val/rejected_logprob": means["logp_l"],
        }

    def _normalizes(self, given: bool | None) -> bool:
        if given is None:
            return self.objective.length_normalized
        if not given and not self.objective.takes_sums:
            raise ValueError(
                f"`length_normalized=False` does not go with `loss={self.loss_name}`: sums would make the longer "
                "completion the less likely one. Leave it out."
            )
        return given

    def _values(self, part: StepPart[TwinBatch], split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what the loss compares and the summed log-probs of sequences, (S,), and entropies, (S, C)."""
        if self.objective.uses_mismatches and len(part.whole_step) > 0:
            self._kl = self._step_kl(part)
        assert self.policy is not None
        sequences = self.objective.sequences(part.batch)
        statistics = self.policy(sequences)
        sums = sequence_logprobs(statistics.logprobs, sequences.loss_mask)
        if not self.objective.needs_reference:
            values = sums
        elif self.precompute_reference:
            values = sums - self._table.look_up(split, part)
        else:
            values = sums - self._reference_sums(sequences)
        return self._per_token(values, sequences), sums, statistics.entropy

    @torch.no_grad()
    def _step_kl(self, part: StepPart[TwinBatch]) -> Tensor:
        """Compute the mean log-ratio of the mismatched completions of the whole step on all ranks: ()."""
        total = torch.zeros((), device=self.device)
        for batch in part.whole_step:
            sequences = batch.half(second=True)
            log_ratios = self._policy_sums(sequences) - self._reference_sums(sequences)
            total = total + self._per_token(log_ratios, sequences)[batch.row_mask].sum()
        return self.ranks.sum(total) / part.normalizer

    def _per_token(self, sums: Tensor, sequences: SupervisedBatch) -> Tensor:
        return sums / sequences.loss_mask.sum(1).clamp(min=1) if self.length_normalized else sums

    def _policy_sums(self, sequences: SupervisedBatch) -> Tensor:
        assert self.policy is not None
        return sequence_logprobs(self.policy(sequences).logprobs, sequences.loss_mask)

    def _reference_sums(self, sequences: SupervisedBatch) -> Tensor:
        assert self.reference is not None
        logprobs = self.reference.logprobs(sequences)
        return sequence_logprobs(logprobs, sequences.loss_mask)

    @torch.no_grad()
    def _precompute(self, *splits: str) -> None:
        if not (self.precompute_reference and self.objective.needs_reference):
            return
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(datamodule, "every_row"):
            raise ValueError(
                f"`precompute_reference` needs a `PreferenceDataModule`, which can go through all rows beforehand, got "
                f"{type(datamodule).__name__}: use one, or leave it off."
            )
        for split in splits:
            if not datamodule.encoded(split):
                continue
            plan = datamodule.every_row(split)
            if split in self._table:
                self._table.check_size(split, plan.num_rows)
                continue
            with self.forward_context():
                self._table.fill(split, plan, lambda batch: self._policy_sums(batch.sequences), self.ranks, self.device)
