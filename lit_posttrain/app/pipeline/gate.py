"""What a stage has to show before the next one begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_posttrain.app.options.hints import nearest

FIRST = "first"


@dataclass(frozen=True)
class Gate:
    """A metric of a stage's summary, at its end, and a threshold.

    Args:
        metric: the name of the metric.
        rule: `at_least` or `at_most`.
        threshold: a number, or "first" for the value before training.
    """

    metric: str
    rule: str
    threshold: float | str

    @classmethod
    def of(cls, stage: str, node: Mapping[str, Any] | None) -> Gate | None:
        """The gate that a configuration describes.

        Raises:
            ValueError: naming the option.
        """
        if node is None:
            return None
        where = f"pipeline.stages.{stage}.gate"
        if not isinstance(node, Mapping):
            raise ValueError(
                f"`{where}` must have `metric` and one of `at_least` and `at_most`, or be null, got {node}."
            )
        for key in node:
            if key not in ("metric", "at_least", "at_most"):
                raise ValueError(
                    f"there is no option `{where}.{key}`.{nearest(key, ['metric', 'at_least', 'at_most'])} "
                    "A gate has `metric` and one of `at_least` and `at_most`."
                )
        rules = [rule for rule in ("at_least", "at_most") if node.get(rule) is not None]
        if len(rules) != 1 or not isinstance(node.get("metric"), str):
            raise ValueError(f"`{where}` must have `metric` and one of `at_least` and `at_most`, got {dict(node)}.")
        threshold = node[rules[0]]
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and not math.isnan(threshold)
        if threshold != FIRST and not number:
            raise ValueError(f"`{where}.{rules[0]}` must be a number or `{FIRST}`, got `{threshold}`.")
        return cls(node["metric"], rules[0], threshold)

    def judge(self, metrics: Mapping[str, Mapping[str, float]]) -> Verdict:
        """Look at the metrics of a summary.

        Raises:
            KeyError: if the metric is not among them, with those there are.
        """
        if self.metric not in metrics:
            names = sorted(name for name in metrics if name.startswith("val/"))
            raise KeyError(
                f"it reports no `{self.metric}`.{nearest(self.metric, names)} There are: {', '.join(names) or 'none'}."
            )
        scores = metrics[self.metric]
        threshold = scores["first"] if self.threshold == FIRST else float(self.threshold)
        value = scores["last"]
        passed = value >= threshold if self.rule == "at_least" else value <= threshold
        return Verdict(self.metric, self.rule, threshold, value, passed)


@dataclass(frozen=True)
class Verdict:
    """What a gate says of a stage.

    Args:
        metric: the name of the metric.
        rule: `at_least` or `at_most`.
        threshold: what was asked for.
        value: what there is.
        passed: whether the next stage may begin.
    """

    metric: str
    rule: str
    threshold: float
    value: float
    passed: bool

    def __str__(self) -> str:
        return f"{self.metric} is {self.value:.4g}, {self.rule.replace('_', ' ')} {self.threshold:.4g} is asked for"
