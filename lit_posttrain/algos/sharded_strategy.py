"""Which of Lightning's strategies deal weights out over processes, and which of those work here."""

from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh

WAY_OUT = (
    "use FSDP2: `trainer=fsdp`, in Python "
    "`Trainer(strategy=ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1))`"
)


def sharding_mesh(strategy: Strategy) -> DeviceMesh | None:
    """The processes that a strategy deals weights out to, None where each of them has all weights.

    Raises:
        ValueError: if the strategy is FSDP1, or splits layers.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "the strategy `fsdp` of Lightning is FSDP1, whose weights cannot be made whole while completions are "
            f"sampled: {WAY_OUT}."
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return None
    layers = strategy.device_mesh["tensor_parallel"].size()
    if layers > 1:
        raise ValueError(
            f"`ModelParallelStrategy` was given `tensor_parallel_size={layers}` (all devices of a node unless said "
            f"otherwise); splitting layers is not supported: {WAY_OUT}."
        )
    return strategy.device_mesh["data_parallel"]
