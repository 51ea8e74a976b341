"""Sums over the micro-batches and ranks of an optimiser step, so that no metric depends on how it was cut up."""

from collections.abc import Callable

import torch
from torch import Tensor


class StepStatistics:
    """Collects detached sums and maxima in `training_step`; made into means once per optimiser step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add up `values`, where `mask` is True if one is given."""
        values = values.detach() if mask is None else values.detach().masked_fill(~mask, 0)
        total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
        self._sums[name] = self._sums.get(name, 0) + total

    def maximum(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Keep the largest of `values` where `mask` is True, 0 where there is none."""
        largest = values.detach().masked_fill(~mask, 0).max().float()
        self._maxima[name] = torch.maximum(self._maxima.get(name, largest), largest)

    def pop(
        self, *, sum_over_ranks: Callable[[Tensor], Tensor], max_over_ranks: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """The totals of all ranks; collection begins anew. One all-reduce for the sums, one for the maxima."""
        totals: dict[str, Tensor] = {}
        for values, reduce in ((self._sums, sum_over_ranks), (self._maxima, max_over_ranks)):
            if values:
                reduced = reduce(torch.stack(list(values.values())))
                totals.update(zip(values, reduced.unbind(), strict=True))
        self._sums, self._maxima = {}, {}
        return totals
