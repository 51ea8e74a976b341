"""The coefficient of a KL penalty that is steered towards a target."""

MAX_ERROR = 0.2


def adapted_kl_coef(kl_coef: float, *, kl: float, target: float, horizon: int, num_sequences: int) -> float:
    """The next coefficient of Ziegler et al. (arXiv:1909.08593, section 2.2): proportional control of its logarithm.

    kl_coef (1 + clip(kl / target - 1, -0.2, 0.2) num_sequences / horizon).

    Args:
        kl_coef: the current coefficient.
        kl: measured from the reference, mean over sequences of the sum over tokens, nats.
        target: what it should be, nats per sequence.
        horizon: sequences after which an error at the clip has changed the coefficient by about a fifth.
        num_sequences: sequences since the last change.

    Raises:
        ValueError: if `target` or `horizon` is not positive, or `num_sequences` is above `horizon` times 5, where the
            coefficient could reach 0.

    Example:
        >>> round(adapted_kl_coef(0.15, kl=7.0, target=6.0, horizon=10_000, num_sequences=512), 6)
        0.15128
    """
    if not target > 0:
        raise ValueError(f"`target` must be > 0, got {target}: nats per sequence.")
    if horizon < 1:
        raise ValueError(f"`horizon` must be >= 1, got {horizon}: it counts sequences.")
    if num_sequences * MAX_ERROR >= horizon:
        raise ValueError(
            f"`horizon` must be above {MAX_ERROR:.1f} x the sequences of a rollout, got {horizon} for {num_sequences}: "
            "the coefficient could reach 0 at once. Raise it; 10000 is common."
        )
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return kl_coef * (1 + error * num_sequences / horizon)
