"""How much of a metric a rewritten model lost, how surely that is known, and the bound on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from onnxcompress.base import Runnable
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.verify import METRICS, Comparison

Metric = str | Callable[[Runnable], float]


@dataclass(frozen=True)
class Drop:
    """What was lost of `metric`, in `points`: hundredths of what the first model has at most.

    Of ``top1`` points of accuracy, of ``agreement`` the percentage of predictions that changed, of ``cosine``
    100 times what is missing to 1, of ``snr`` the noise in percent of the signal (1 is 20 dB); of a function
    its value for the first model less that for the second, in its own unit. `error` is the standard error
    over samples like these, None where it isn't known.
    """

    metric: str
    points: float
    error: float | None = None

    def bound(self, confidence: float | None) -> float:
        """Return what the drop is at most: on these data, or with `confidence` (0.5 to 1) on others alike."""
        if confidence is None:
            return self.points
        if self.error is None:
            raise UsageError(f"confidence: the standard error of {self.metric} isn't known, expected none")
        return self.points + NormalDist().inv_cdf(confidence) * self.error

    def __str__(self) -> str:
        """Return the drop for people."""
        spread = "" if self.error is None else f" (standard error {self.error:.2f})"
        return f"{self.points:.3g}{' points' if self.metric in METRICS else ''}{spread}"


@dataclass(frozen=True)
class Limit:
    """The most that may be lost of a metric: its name, or a function of a model that is ready to run.

    With `confidence` the bound must hold for data like those it is measured on, with that probability.
    """

    metric: Metric
    most: float
    confidence: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.most < math.inf:
            raise UsageError(f"max-drop is {self.most:g}, expected 0 or more")
        if self.confidence is not None:
            if not 0.5 <= self.confidence < 1:
                raise UsageError(f"confidence is {self.confidence:g}, expected 0.5 to less than 1")
            if self.metric not in ("top1", "agreement"):
                raise UsageError(
                    f"confidence: {self.name} isn't counted in samples, expected top1 or agreement"
                )

    @property
    def name(self) -> str:
        """What the metric is called."""
        return self.metric if isinstance(self.metric, str) else metric_name(self.metric)

    def allows(self, drop: Drop, spare: float = 0.0) -> bool:
        """Return whether `drop` keeps this limit, with `spare` standard errors too; NaN does not."""
        spared = drop.points + spare * (drop.error or 0.0)
        return drop.bound(self.confidence) <= self.most and spared <= self.most

    def check(self, drop: Drop) -> None:
        """Raise BoundError where `drop` exceeds this limit."""
        if not self.allows(drop):
            surely = "" if self.confidence is None else f" at {self.confidence:g} confidence"
            raise BoundError(f"{self.name}: drops by {drop}, expected {self.most:g} at most{surely}")


def metric_name(metric: Callable[[Runnable], float]) -> str:
    """Return what the function `metric` is called."""
    return getattr(metric, "__name__", type(metric).__name__)


def measured(metric: Metric, before: Runnable, after: Runnable, comparison: Comparison | None) -> Drop:
    """Return what was lost of `metric` from model `before` to `after`, which compare as `comparison`.

    A metric that has a name needs the comparison.
    """
    if not isinstance(metric, str):
        return Drop(metric_name(metric), metric(before) - metric(after))
    if comparison is None:
        raise UsageError(f"{metric}: needs evaluation data, none was given")
    return drop(metric, comparison)


def drop(metric: str, comparison: Comparison) -> Drop:
    """Return what was lost of `metric`, one of METRICS, in models that compare as `comparison`.

    UsageError where the data have no labels or the outputs no classes, as the metric needs.
    """
    if metric == "snr":
        return Drop(metric, 100 * noise(comparison.snr))
    if metric == "cosine":
        return Drop(metric, 100 * (1 - comparison.cosine))
    if metric == "top1":
        if comparison.top1 is None or comparison.lost is None or comparison.gained is None:
            raise UsageError("top1: needs evaluation data with labels")
        lost, gained = comparison.lost, comparison.gained
    else:
        if comparison.changed_predictions is None:
            raise UsageError("agreement: no output has a class axis, expected one of shape [batch, classes]")
        lost, gained = comparison.changed_predictions, 0
    count = comparison.predictions or 0
    return Drop(metric, 100 * (lost - gained) / count, 100 * standard_error(lost, gained, count))


def noise(snr: float) -> float:
    """Return the power of the noise as a multiple of the signal's, for a ratio `snr` in dB."""
    return math.inf if snr == -math.inf else 10 ** (-snr / 10)


def standard_error(lost: int, gained: int, count: int) -> float:
    """Return the standard error of (lost - gained) / count, for `count` paired answers of two models.

    `lost` are those only the first has right, `gained` those only the second has. Half is added to every
    cell of the table of right and wrong, so that no change among few samples isn't taken for certainty.
    Source: Agresti and Min, Effects and non-effects of paired identical observations in comparing
    proportions with binary matched-pairs data, Statistics in Medicine 23, 2004.
    """
    b, c, n = lost + 0.5, gained + 0.5, count + 2
    return math.sqrt(b + c - (b - c) ** 2 / n) / n
