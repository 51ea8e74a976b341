"""Every row of a stock DataLoader once, on any number of ranks."""

from typing import Any

from torch.utils.data import DistributedSampler


def without_repeats(loader: Any) -> Any:
    """Take the repeated rows out of a `DistributedSampler`, such as Lightning puts into every `DataLoader`.

    It deals some rows out twice, so that all ranks get as many: a mean over validation prompts would depend on the
    number of ranks, and a training prompt come twice in an epoch. Here ranks may have unequal shares. With fewer rows
    than ranks the repeats stay, since Lightning does not start where a rank has no row at all.

    Args:
        loader: anything; what has no such sampler stays as it is.

    Returns:
        The loader.
    """
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler) and not sampler.drop_last:
        rows = len(sampler.dataset)  # type: ignore[arg-type]
        if rows >= sampler.num_replicas:
            sampler.total_size = rows
            sampler.num_samples = len(range(sampler.rank, rows, sampler.num_replicas))
    return loader
