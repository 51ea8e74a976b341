"""Log-probs under the reference that are computed once, before training, and kept by row."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_posttrain.batching import Ranks, StepPart, TwinBatch
from lit_posttrain.data.step_plan import StepPlan


class ReferenceTable:
    """The summed log-probs of both sequences of every row, by split.

    It goes into checkpoints: a run that resumes no longer has the weights that it was made with.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def __contains__(self, split: str) -> bool:
        return split in self._sums

    def fill(
        self,
        split: str,
        plan: StepPlan,
        logprob_sums: Callable[[TwinBatch], Tensor],
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        """Compute every row of a split.

        Args:
            split: its name.
            plan: comes to every row once, over all ranks.
            logprob_sums: of the 2B sequences of a batch, (2B,).
            ranks: the processes that share the rows out.
            device: where batches go.
        """
        sums: Tensor | None = None
        for part in plan.parts(0):
            moved = part.to(device)
            both = torch.stack(moved.batch.halves(logprob_sums(moved.batch)), dim=1)
            if sums is None:
                sums = both.new_zeros(plan.num_rows, 2)
            real = moved.batch.row_mask
            assert moved.numbers is not None
            sums[moved.numbers[real]] = both[real]
        assert sums is not None
        self._sums[split] = ranks.sum(sums)  # a row is one rank's, and 0 elsewhere

    def look_up(self, split: str, part: StepPart[TwinBatch]) -> Tensor:
        """The sums of the 2B sequences of a micro-batch, (2B,).

        Raises:
            ValueError: if the batch does not say which rows it has.
        """
        if part.numbers is None:
            raise ValueError(
                "`precompute_reference` keeps log-probs by row, and these batches do not say which rows they have: use "
                "a `PreferenceDataModule`, or leave it off."
            )
        sums = self._sums[split] = self._sums[split].to(part.numbers.device)
        return sums[part.numbers.clamp(min=0)].T.flatten()

    def check_size(self, split: str, num_rows: int) -> None:
        """Refuse a table that was made of other rows.

        Raises:
            ValueError: if their number differs.
        """
        if len(self._sums[split]) != num_rows:
            raise ValueError(
                f"the checkpoint holds the reference's log-probs of {len(self._sums[split])} {split} rows, the data "
                f"have {num_rows}: use the same data, or start from the run's export."
            )

    def state_dict(self) -> dict[str, Any]:
        """The sums by split."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take stored sums."""
        self._sums = dict(state)
