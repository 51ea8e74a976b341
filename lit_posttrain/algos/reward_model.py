"""Reward models: a score for every completion, learnt from which of two is preferred."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lit_posttrain.algos.choices import ScoreNormalization, check_choices, check_not_negative
from lit_posttrain.batching import PreferenceBatch, StepPart
from lit_posttrain.data.loaders import StepLoader
from lit_posttrain.functional import bradley_terry_loss, calibration_error, correlation, pair_accuracy
from lit_posttrain.models.export import export_folder
from lit_posttrain.models.networks.policy import evaluation_mode
from lit_posttrain.models.networks.reward import RewardNetwork, classifier_config
from lit_posttrain.models.sharding import full_state_dict
from lit_posttrain.models.source import UNAVERAGED, Model, ModelSource
from lit_posttrain.models.tokenizers import with_own_pad_token
from lit_posttrain.modules.defaults import cosine_to_zero, offline_adamw
from lit_posttrain.modules.offline import OfflineModule
from lit_posttrain.modules.post_training import MakeOptimizer, MakeScheduler


class RewardModel(OfflineModule):
    r"""A scalar head on a language model, trained on preference pairs by the model of Bradley and Terry.

    The loss of a pair is :math:`-\log\sigma(r_c - r_r - \lambda m) + \eta (r_c + r_r)^2` with the scores :math:`r` of
    the chosen and the rejected sequence, each read at its end, and the margin :math:`m` of the data where it has one.
    It is the mean over the pairs of an optimiser step on all ranks, however the step is cut up. Both sequences of a
    pair go through the model in one forward.

    Preferences leave a constant of the scores open. With the last step, and at every validation in training, mean and
    standard deviation of the scores of training sequences are measured and kept beside the weights: in checkpoints, in
    the config.json of an export, and applied by the reward `lit_posttrain.rewards.model`. The export itself gives raw
    scores to `AutoModelForSequenceClassification`.

    Args:
        model: the causal language model to start from: a name or path, a `Pretrained`, a `BuiltModel`, a built model,
            or a function that builds one. A tokenizer without a pad token of its own gets one.
        centering: :math:`\eta`, weight of the term that draws scores to 0; 0.01 in arXiv:2312.09244.
        margin_scale: :math:`\lambda`, units of score that a unit of the data's margin asks for; 0 leaves margins out.
        score_before_eos: whether the score is read at the token before the EOS. The EOS is where it is read as a rule;
            a model of few layers learns faster at the token at which it decides to stop.
        normalization: what is kept of the scores of training sequences: "center" their mean, "standardize" their mean
            and standard deviation, "none" nothing.
        normalization_pairs: pairs that they are measured on, in whole optimiser steps.
        optimizer: makes the optimiser; None = AdamW with lr 5e-6, betas 0.9 and 0.95, no weight decay.
        scheduler: makes the schedule; None = cosine to 0 after a warm-up over 3 % of the steps.

    Raises:
        ValueError: if a number is out of its range, `normalization` is unknown, or an adapter is to be exported alone.
    """

    progress_bar: tuple[str, ...] = ("train/loss", "rewards/margin")

    def __init__(
        self,
        model: Model,
        *,
        centering: float = 0.0,
        margin_scale: float = 1.0,
        score_before_eos: bool = False,
        normalization: ScoreNormalization = "center",
        normalization_pairs: int = 256,
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
    ) -> None:
        super().__init__(ModelSource(model, argument="model"), optimizer=optimizer, scheduler=scheduler)
        check_choices(normalization=normalization)
        check_not_negative(centering=centering, margin_scale=margin_scale)
        if normalization_pairs < 1:
            raise ValueError(
                f"`normalization_pairs` must be >= 1, got {normalization_pairs}: pairs to measure scores on."
            )
        if self.source.exports_adapter:
            raise ValueError(
                '`export="adapter"` does not go with a reward model, whose head is no part of the adapter: use '
                '`Lora(export="merged")`.'
            )
        self.centering = centering
        self.margin_scale = margin_scale
        self.score_before_eos = score_before_eos
        self.normalization = normalization
        self.normalization_pairs = normalization_pairs
        self.network: RewardNetwork | None = None
        self._padding_tokenizer: PreTrainedTokenizerBase | None = None
        self._validated: list[Tensor] = []

    def default_optimizer(self) -> MakeOptimizer:
        """Give AdamW with lr 5e-6, betas 0.9 and 0.95, no weight decay."""
        return offline_adamw(5e-6)

    def default_scheduler(self) -> MakeScheduler:
        """Give a cosine to 0 over the steps of the Trainer, after a warm-up over 3 % of them."""
        return cosine_to_zero(self)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the model, with a pad token that is not the EOS."""
        if self._padding_tokenizer is None:
            self._padding_tokenizer = with_own_pad_token(self.source.tokenizer)
        return self._padding_tokenizer

    @property
    def main_network(self) -> RewardNetwork:
        """Trunk and head; there once `configure_model` has run."""
        if self.network is None:
            raise RuntimeError("the model is not loaded yet: `configure_model` builds it when the Trainer starts.")
        return self.network

    @property
    def batch_kind(self) -> type[PreferenceBatch]:
        """Pairs."""
        return PreferenceBatch

    @property
    def rows_needed(self) -> str:
        """What they are made of."""
        return "a reward model learns from pairs of completions (`chosen` and `rejected`)"

    def export_config(self) -> PreTrainedConfig:
        """That of a sequence classifier.

        Raises:
            ValueError: if transformers has none of the architecture.
        """
        return classifier_config(super().export_config())

    def check_model(self) -> None:
        """Fail now, before data are read or weights loaded, where no reward model can be made of the model."""
        super().check_model()
        if self.source.is_named:
            self.export_config()

    def build_networks(self) -> None:
        """Load the language model and put the head on it."""
        if self.network is not None:
            return
        model = self.source.load()
        if self.source.adapter is not None:
            raise ValueError(
                "a reward model starts from a whole model, got one with an adapter in it: give "
                "`Pretrained(path, lora=Lora(adapter=folder))`, or merge it first with `merge_and_unload`."
            )
        network = RewardNetwork.from_causal_lm(
            model,
            pad_id=self.tokenizer.pad_token_id,
            vocab_size=len(self.tokenizer),
            score_before_eos=self.score_before_eos,
        )
        self.source.attach_adapter(network.model)
        network.model.score.requires_grad_(True)  # new, so that it is trained beside an adapter, too
        self.network = network.train()  # for gradient checkpointing

    def loss(self, batch: StepPart[PreferenceBatch]) -> Tensor:
        """Compute this micro-batch's share of the optimiser step's loss: ()."""
        self.check_part(batch)
        pairs = batch.batch
        chosen, rejected = pairs.halves(self._scores(pairs))
        losses = bradley_terry_loss(
            chosen, rejected, margin=self.margin_scale * pairs.margins, centering=self.centering
        ).masked_fill(~pairs.row_mask, 0)
        loss = losses.sum() / batch.normalizer
        self.statistics.add("pairs", pairs.row_mask)
        self.statistics.add("chosen", chosen, pairs.row_mask)
        self.statistics.add("rejected", rejected, pairs.row_mask)
        return loss

    def step_metrics(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss, and the mean raw scores of the step's pairs."""
        chosen, rejected = (totals[name] / totals["pairs"].clamp(min=1) for name in ("chosen", "rejected"))
        return {
            "train/loss": totals["loss"],
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margin": chosen - rejected,
        }

    def validate_rows(self, part: StepPart[PreferenceBatch]) -> None:
        """Score pairs."""
        pairs = part.batch
        lengths = pairs.sequences.completion_mask.sum(1)
        columns = [*pairs.halves(self._scores(pairs)), pairs.margins, *pairs.halves(lengths)]
        self._validated.append(torch.stack([column.cpu().double() for column in columns])[:, pairs.row_mask.cpu()])

    def row_metrics(self) -> dict[str, Tensor]:
        """Judge all pairs of the set, on all ranks, by their raw scores."""
        validated, self._validated = self._validated, []
        ranks = self.ranks.gather(torch.cat(validated, dim=1) if validated else torch.zeros(5, 0).double())
        chosen, rejected, margins, *lengths = torch.cat(ranks, dim=1)
        if len(chosen) == 0:
            return {}
        losses = bradley_terry_loss(chosen, rejected, margin=self.margin_scale * margins, centering=self.centering)
        metrics = {
            "val/loss": losses.mean(),
            "val/accuracy": pair_accuracy(chosen, rejected),
            "val/margin": (chosen - rejected).mean(),
            "val/calibration_error": calibration_error(chosen, rejected),
            "val/length_correlation": correlation(torch.cat([chosen, rejected]), torch.cat(lengths)),
        }
        return {name: value.float().to(self.device) for name, value in metrics.items()}

    def on_validation_epoch_start(self) -> None:
        """Measure the scores too, so that the checkpoint that a validation leads to can be exported.

        At the start, when a callback that averages weights has put the average in their place.
        """
        super().on_validation_epoch_start()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self._measure_scores()

    def on_train_end(self) -> None:
        """Measure the scores of the weights that training ends with."""
        self._measure_scores()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Measure the scores for the checkpoint of the last step: a run that goes on from it has nothing to train."""
        super().on_save_checkpoint(checkpoint)
        if self.trainer.training and self.trainer.global_step >= self.trainer.estimated_stepping_batches:
            network, stored = self.main_network, checkpoint["state_dict"]
            with _weights(self, stored) if UNAVERAGED in checkpoint else nullcontext():
                self._measure_scores()
                for name in ("score_mean", "score_scale"):
                    if (kept := stored.get(f"network.{name}")) is not None:  # on the CPU where it is an average
                        stored[f"network.{name}"] = getattr(network, name).to(kept.device, copy=True)

    def predict_step(self, batch: StepPart[PreferenceBatch], batch_idx: int) -> list[dict[str, Any]]:
        """Give the pairs of a batch as text, with their normalized scores."""
        self.check_part(batch)
        pairs, network = batch.batch, self.main_network
        scores = pairs.halves(network.normalized(self._scores(pairs)))
        rows = []
        for index in pairs.row_mask.nonzero().flatten().tolist():
            row: dict[str, Any] = {}
            for side, name in enumerate(("chosen", "rejected")):
                place = index + side * len(pairs)
                row["prompt"] = self._text(pairs.sequences.prompt_ids[place], pairs.sequences.prompt_mask[place])
                row[name] = self._text(pairs.sequences.completion_ids[place], pairs.sequences.completion_mask[place])
                row[f"{name}_score"] = scores[side][index].item()
            rows.append(row)
        return rows

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer as a folder that `AutoModelForSequenceClassification` loads.

        It gives raw scores of right-padded sequences that end with the EOS, or with `score_before_eos` that lack it. To
        normalise them subtract `score_mean` of its config.json and divide by `score_scale`. The first of several
        processes writes; all call it where weights are sharded.
        """
        self.check_weights("in the export")
        model = self.source.merged(self.language_model)
        weights = full_state_dict(model)
        if self.global_rank == 0:
            with export_folder(folder) as draft:
                self.main_network.save_pretrained(draft, model, weights=weights)
                self.tokenizer.save_pretrained(draft)

    def _scores(self, pairs: PreferenceBatch) -> Tensor:
        """Compute raw scores of the chosen sequences and then of the rejected ones: (2B,)."""
        return self.main_network(pairs.sequences)

    def _text(self, ids: Tensor, mask: Tensor) -> str:
        return self.tokenizer.decode(ids[mask], skip_special_tokens=True)

    def _measure_scores(self) -> None:
        """Take mean and standard deviation of the scores of training sequences, the same ones at every call."""
        if self.normalization == "none":
            return
        loader, network = self.trainer.train_dataloader, self.main_network
        if not isinstance(loader, StepLoader) or loader.plan is None:
            return  # somebody else's: reading it again might not be for free, or not start at its beginning
        steps = math.ceil(self.normalization_pairs / loader.plan.batch_size)
        totals = torch.zeros(3, dtype=torch.float64)
        with evaluation_mode(network), self.forward_context():
            for part in islice(loader.plan.parts(0), steps * loader.plan.micro_batches):
                pairs = part.batch.to(self.device)
                scores = self._scores(pairs)[pairs.row_mask.repeat(2)].cpu().double()
                totals += torch.stack([torch.tensor(len(scores)).double(), scores.sum(), scores.square().sum()])
        count, total, squares = self.ranks.sum(totals).cpu()
        mean = total / count
        network.score_mean.copy_(mean)
        if self.normalization == "standardize":
            network.score_scale.copy_((squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1e-6))


@contextmanager
def _weights(module: RewardModel, weights: dict[str, Any]) -> Iterator[None]:
    """Within, a module has other weights: those that are averaged, which a checkpoint stores in its own ones' place."""
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_state_dict(weights)
    try:
        yield
    finally:
        module.load_state_dict(own)
