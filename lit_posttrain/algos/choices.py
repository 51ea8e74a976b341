"""Named options, checked when a module is built and not when they are first used."""

from typing import Any, get_args

from lit_posttrain.functional import AdvantageScale, Aggregation, KLEstimator, KLGradient

CHOICES: dict[str, Any] = {
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
