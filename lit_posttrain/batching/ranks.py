"""Sums over micro-batches, batches and ranks, so that no metric depends on how the data were cut up."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_posttrain.functional import whiten
from lit_posttrain.functional.random import accumulation_dtype


class Ranks:
    """The processes that a LightningModule trains on, and what they do together.

    All of them have to call a method together. Without a Trainer there is one process.

    Args:
        module: whose Trainer and device they are; both are looked up when a method is called.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def place(self) -> tuple[int, int]:
        """Which of the processes this one is, from 0, and how many there are."""
        alone = self._module._trainer is None
        return (0, 1) if alone else (self._module.trainer.global_rank, self._module.trainer.world_size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor of any shape, on the module's device."""
        return self._reduce(tensor, "sum")

    def max(self, tensor: Tensor) -> Tensor:
        """Find the largest of each element, on the module's device."""
        return self._reduce(tensor, "max")

    def any(self, flag: bool) -> bool:
        """Find out whether something holds on one of them."""
        return flag if self.place == (0, 1) else self._module.trainer.strategy.reduce_boolean_decision(flag, all=False)

    def gather(self, thing: Any) -> list[Any]:
        """Collect a picklable thing of each, on all of them."""
        gathered: list[Any] = [thing] * self.place[1]
        if len(gathered) > 1:
            dist.all_gather_object(gathered, thing)
        return gathered

    def whiten(self, values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
        """Scale to variance 1, and to mean 0 if asked for, over what counts on all of them (`functional.whiten`).

        Args:
            values: (B, C).
            mask: (B, C), True where they count.
            shift_mean: move the mean to 0.
        """
        return whiten(values, mask, shift_mean=shift_mean, sum_over_ranks=self.sum, max_over_ranks=self.max)

    def _reduce(self, tensor: Tensor, operation: str) -> Tensor:
        device = self._module.device
        if tensor.dtype == torch.float64:  # not every device has such numbers
            tensor = tensor.to(accumulation_dtype(device))
        tensor = tensor.to(device)
        return tensor if self.place == (0, 1) else self._module.trainer.strategy.reduce(tensor, reduce_op=operation)


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

    def pop(self, ranks: Ranks) -> dict[str, Tensor]:
        """Give the totals of all ranks; collection begins anew. One all-reduce for the sums, one for the maxima."""
        totals: dict[str, Tensor] = {}
        for values, reduce in ((self._sums, ranks.sum), (self._maxima, ranks.max)):
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
