"""Named options, checked when a module is built and not when they are first used."""

import math
from typing import Any, Literal, get_args

from lit_posttrain.functional import AdvantageScale, Aggregation, KLEstimator, KLGradient

Ratio = Literal["token", "sequence"]
Clipping = Literal["surrogate", "weight"]
ScoreNormalization = Literal["none", "center", "standardize"]
RewardBaseline = Literal["none", "group"]
MissingEOS = Literal["replace", "subtract", "mask", "keep"]

CHOICES: dict[str, Any] = {
    "ratio": Ratio,
    "clipping": Clipping,
    "normalization": ScoreNormalization,
    "baseline": RewardBaseline,
    "missing_eos": MissingEOS,
    "kl_estimator": KLEstimator,
    "scale": AdvantageScale,
    "aggregation": Aggregation,
    "kl_value": KLEstimator,
    "kl_gradient": KLGradient,
}


def check_choices(**named: str) -> None:
    """Refuse a value that is none of its option's names.

    Raises:
        ValueError: listing the names there are.
    """
    for name, value in named.items():
        options = get_args(CHOICES[name])
        if value not in options:
            raise ValueError(f"`{name}` must be one of {', '.join(options)}, got `{value}`.")


def check_clip_range(clip_low: float, clip_high: float, *, dual_clip: float | None = None) -> None:
    """Refuse bounds that are no distances from a ratio of 1.

    Raises:
        ValueError: naming the bound.
    """
    for name, clip in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not 0 <= clip < 1:
            raise ValueError(
                f"`{name}` must be in [0, 1), got {clip}: the ratio is clipped to [1 - clip_low, 1 + clip_high]."
            )
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"`dual_clip` must be > 1 or None, got {dual_clip}: it bounds ratios above 1.")


def check_not_negative(**named: float) -> None:
    """Refuse numbers below 0, and those that are not finite.

    Raises:
        ValueError: naming the number.
    """
    for name, number in named.items():
        if not 0 <= number < math.inf:
            raise ValueError(f"`{name}` must be finite and >= 0, got {number}.")


def check_positive(**named: float | None) -> None:
    """Refuse bounds that are neither above 0 nor left out.

    Raises:
        ValueError: naming the bound.
    """
    for name, bound in named.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"`{name}` must be > 0 or None, got {bound}.")


def check_shares(**named: float | None) -> None:
    """Refuse what is neither in [0, 1] nor left out.

    Raises:
        ValueError: naming it.
    """
    for name, share in named.items():
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {share}: it weighs what comes later.")
