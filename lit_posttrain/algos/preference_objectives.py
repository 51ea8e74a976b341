"""What DPO can descend: losses of preferences by name, each with what it needs to be computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_posttrain.batching import PreferenceBatch, SupervisedBatch, TwinBatch, UnpairedBatch
from lit_posttrain.data.hints import did_you_mean
from lit_posttrain.functional import (
    apo_down_loss,
    apo_zero_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    nca_loss,
    odds_ratio_loss,
    robust_dpo_loss,
    simpo_loss,
    sppo_loss,
)

DEFAULT_NUMBERS = {"label_smoothing": 0.0, "margin": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
"""What a loss may ask for beside `beta`."""


@dataclass(frozen=True)
class Sides:
    """The completions that should be likely and those that should not, (R,) each."""

    chosen: Tensor
    chosen_mask: Tensor
    rejected: Tensor
    rejected_mask: Tensor


@dataclass(frozen=True)
class PreferenceObjective(ABC):
    """A loss of preferences, and what it needs.

    Its values are log-ratios to the reference, or log-probs where there is none: sums over tokens, or means of them.

    Args:
        function: the loss of each row, (B,), of the values; the subclasses say how it is called.
        numbers: the names of the numbers that it takes beside `beta`.
        needs_reference: whether the values are log-ratios.
        length_normalized: whether they are means per token unless told otherwise.
        takes_sums: whether it can do with sums.

    Attributes:
        batch_kind: the batches that it takes.
        rows: what these are made of, for an error.
        uses_mismatches: whether it has a reference point, estimated with mismatched completions.
    """

    function: Callable[..., Tensor]
    numbers: tuple[str, ...] = ()
    needs_reference: bool = True
    length_normalized: bool = False
    takes_sums: bool = True
    batch_kind: ClassVar[Any]
    rows: ClassVar[str]
    uses_mismatches: ClassVar[bool]

    @abstractmethod
    def sequences(self, batch: TwinBatch) -> SupervisedBatch:
        """What goes through the model with a gradient: (S, ...)."""

    @abstractmethod
    def losses(self, batch: TwinBatch, values: Tensor, kl: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """The loss of each row: (B,).

        Args:
            batch: B rows.
            values: of the sequences, (S,), nats.
            kl: the mean value of mismatched completions, (); 0 where there is no reference point.
            numbers: `beta` and what `numbers` names.
        """

    @abstractmethod
    def sides(self, batch: TwinBatch, values: Tensor) -> Sides:
        """The values of the sequences, (S,), by which side they are on."""

    @abstractmethod
    def correct(self, batch: TwinBatch, values: Tensor, kl: Tensor) -> Tensor:
        """Which rows are told rightly, (B,) bool; arguments as in `losses`."""


class PairObjective(PreferenceObjective):
    """A loss of pairs: `function(chosen, rejected, beta=..., <numbers>)`, (B,) each."""

    batch_kind = PreferenceBatch
    rows = "pairs (`chosen` and `rejected`)"
    uses_mismatches = False

    def sequences(self, batch: TwinBatch) -> SupervisedBatch:
        """The chosen and the rejected ones together."""
        return batch.sequences

    def losses(self, batch: TwinBatch, values: Tensor, kl: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """See `PreferenceObjective`."""
        return self.function(*batch.halves(values), **numbers)

    def sides(self, batch: TwinBatch, values: Tensor) -> Sides:
        """See `PreferenceObjective`."""
        chosen, rejected = batch.halves(values)
        return Sides(chosen, batch.row_mask, rejected, batch.row_mask)

    def correct(self, batch: TwinBatch, values: Tensor, kl: Tensor) -> Tensor:
        """Pairs whose chosen completion has the larger value; equal values, as those before training, are not."""
        chosen, rejected = batch.halves(values)
        return chosen > rejected


class JudgedObjective(PreferenceObjective):
    """A loss of completions that are desirable or not, against a reference point that the whole step shares.

    `function(values, desirable, kl, beta=..., <numbers>)`, the first two (B,), `kl` ().
    """

    batch_kind = UnpairedBatch
    rows = "unpaired rows (`completion` and `label`)"
    uses_mismatches = True

    def sequences(self, batch: TwinBatch) -> SupervisedBatch:
        """The judged completions; the mismatched ones have no gradient and are looked at once a step."""
        return batch.half(second=False)

    def losses(self, batch: TwinBatch, values: Tensor, kl: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """See `PreferenceObjective`."""
        return self.function(values, _labels(batch), kl, **numbers)

    def sides(self, batch: TwinBatch, values: Tensor) -> Sides:
        """See `PreferenceObjective`."""
        labels = _labels(batch)
        return Sides(values, batch.row_mask & labels, values, batch.row_mask & ~labels)

    def correct(self, batch: TwinBatch, values: Tensor, kl: Tensor) -> Tensor:
        """Desirable completions above the reference point, the others below."""
        ahead = values - kl.clamp(min=0)
        return torch.where(_labels(batch), ahead > 0, ahead < 0)


def orpo_loss(chosen_mean_logprob: Tensor, rejected_mean_logprob: Tensor, *, beta: float) -> Tensor:
    """Likelihood and odds: -l_w + beta * odds_ratio_loss(l_w, l_l).

    ORPO (arXiv:2403.07691, eq. 6; lambda there is `beta` here). The likelihood is that of the chosen completion, its
    mean per token; that of the prompt is left out.

    Args:
        chosen_mean_logprob: l_w, shape (B,), nats per token.
        rejected_mean_logprob: l_l, shape (B,), nats per token.
        beta: weight of the second term; 0.1 in the paper.

    Returns:
        Shape (B,), nats.

    Example:
        >>> orpo_loss(torch.tensor([-2.0]), torch.tensor([-1.5]), beta=0.1)
        tensor([2.1042])
    """
    if not beta > 0:
        raise ValueError(f"`beta` must be > 0, got {beta}: it weighs the odds ratio against the likelihood.")
    return -chosen_mean_logprob + beta * odds_ratio_loss(chosen_mean_logprob, rejected_mean_logprob)


OBJECTIVES: dict[str, PreferenceObjective] = {
    "sigmoid": PairObjective(dpo_loss, numbers=("label_smoothing",)),
    "robust": PairObjective(robust_dpo_loss, numbers=("label_smoothing",)),
    "hinge": PairObjective(hinge_loss),
    "ipo": PairObjective(ipo_loss, length_normalized=True),
    "apo_zero": PairObjective(apo_zero_loss),
    "apo_down": PairObjective(apo_down_loss),
    "nca": PairObjective(nca_loss),
    "sppo": PairObjective(sppo_loss),
    "simpo": PairObjective(
        simpo_loss, numbers=("margin",), needs_reference=False, length_normalized=True, takes_sums=False
    ),
    "orpo": PairObjective(orpo_loss, needs_reference=False, length_normalized=True, takes_sums=False),
    "kto": JudgedObjective(kto_loss, numbers=("desirable_weight", "undesirable_weight")),
}


def find_objective(loss: str | PreferenceObjective) -> PreferenceObjective:
    """The objective of that name; one that is no name is taken as it is.

    Raises:
        ValueError: if there is none, with the nearest name.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in OBJECTIVES:
        hint = did_you_mean(loss, OBJECTIVES)
        raise ValueError(f"`loss` must be one of {', '.join(OBJECTIVES)}, got `{loss}`.{hint}")
    return OBJECTIVES[loss]


def used_numbers(
    objective: PreferenceObjective, name: str, beta: float, given: Mapping[str, float]
) -> dict[str, float]:
    """`beta` and those numbers that a loss asks for, found good by the loss itself.

    Args:
        objective: the loss.
        name: what to call it in an error.
        beta: reward per nat.
        given: every number there is, by name.

    Raises:
        ValueError: if one is out of its range, or is given to a loss that does not look at it.
    """
    for number, value in given.items():
        if number not in objective.numbers and value != DEFAULT_NUMBERS[number]:
            users = ", ".join(name for name, other in OBJECTIVES.items() if number in other.numbers)
            raise ValueError(
                f"`{number}` means nothing to the loss `{name}`, got {value}: it belongs to {users}. Leave it at "
                f"{DEFAULT_NUMBERS[number]}, or choose another `loss`."
            )
    numbers = {"beta": beta, **{number: given[number] for number in objective.numbers}}
    batch = objective.batch_kind.collate([], pad_id=0)
    values = torch.full((len(objective.sequences(batch)),), -1.0)
    objective.losses(batch, values, torch.zeros(()), numbers)  # every loss checks its own numbers
    return numbers


def _labels(batch: TwinBatch) -> Tensor:
    assert isinstance(batch, UnpairedBatch)
    return batch.labels
