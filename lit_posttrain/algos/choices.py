"""Named options, checked when a module is built and not when they are first used."""

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


def check_clip_range(clip_low: float, clip_high: float) -> None:
    """Refuse bounds that are no distances from a ratio of 1.

    Raises:
        ValueError: naming the bound.
    """
    for name, clip in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not 0 <= clip < 1:
            raise ValueError(
                f"`{name}` must be in [0, 1), got {clip}: the ratio is clipped to [1 - clip_low, 1 + clip_high]."
            )
