"""Means over the batches and ranks of a validation."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


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
