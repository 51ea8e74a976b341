"""Sums over micro-batches, batches and ranks, so that no metric depends on how the data were cut up."""

from collections.abc import Callable, Iterable

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


class Means:
    """Means of numbers that come in batches, by name, in float32.

    Not an `nn.Module`: the Trainer gives its precision to all modules, and in bfloat16 a sum stands still once what is
    added is less than a 256th of it.

    Args:
        names: what there are means of.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._begin()

    def _begin(self) -> None:
        self._sums = {name: torch.zeros((), dtype=torch.float32) for name in self._names}
        self._counts = dict.fromkeys(self._names, 0)
        self._begun = False

    @property
    def is_empty(self) -> bool:
        """Whether there has been no batch since the last `pop`: the same on all ranks, unlike the count of numbers."""
        return not self._begun

    def update(self, name: str, values: Tensor) -> None:
        """Add the numbers of a batch, of any shape, perhaps none."""
        self._begun = True
        total = values.detach().sum(dtype=torch.float32)
        self._sums[name] = self._sums[name].to(total.device) + total
        self._counts[name] += values.numel()

    def pop(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The means over all ranks, NaN of nothing, fp32 scalars; collection begins anew."""
        if not self._names:
            return {}
        device = self._sums[self._names[0]].device
        sums = torch.stack([total.to(device) for total in self._sums.values()])
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=device)
        totals, numbers = sum_over_ranks(torch.stack([sums, counts]))
        self._begin()
        return dict(zip(self._names, totals / numbers, strict=True))
