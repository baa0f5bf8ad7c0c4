"""Statistics of activations, streamed: which range every value stays in on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.edit import Edit
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.histogram import Histogram, entropy_range, error_range, percentile_range
from onnxcompress.model import clone
from onnxcompress.observing import by_name, never_negative, pooled, reduced, watched

if TYPE_CHECKING:
    from onnxcompress.data import Data

_BY_ENDS = ("min-max", "average")
METHODS = (*_BY_ENDS, "percentile", "entropy", "mse")
Range = tuple[float, float]


@dataclass
class Statistics:
    """What values hold on calibration data, by name: ranges, and float64 [channels] of their channels."""

    ranges: dict[str, Range]
    maxima: dict[str, np.ndarray]
    means: dict[str, np.ndarray]


def calibrate(
    model: ir.Model,
    names: Sequence[str],
    data: Data,
    runtime: Runtime,
    method: str = "min-max",
    *,
    percentile: float = 99.999,
    maxima: Sequence[str] = (),
    means: Sequence[str] = (),
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Statistics:
    """Return the lowest and highest number that matter of each value of `names` when `model` runs on `data`.

    `names` are float values of the main graph. Ranges hold zero. "min-max" takes all numbers, "average" the
    mean over the runs of each run's lowest and highest, "percentile" leaves out ``100 - percentile`` percent,
    half at either end, "entropy" takes the range whose 256 levels keep most information, "mse" the one whose
    256 levels are off least in the mean square. Of the channels of `maxima` the largest number is found,
    or zero, of those of `means` the mean: they lie along the second axis where a convolution reads the value,
    else along the last.
    No activation outlives its run. UsageError where there are no data; CompressError where a value gets
    infinite.
    """
    observed = clone(model)
    edit = Edit(observed)
    known = by_name(observed.graph)
    tops = {name: pooled(edit, known[name], "Max") for name in maxima}
    levels = {name: pooled(edit, known[name], "Average") for name in means}
    images = {name for name, output in {**tops, **levels}.items() if output != name}
    ends = method in _BY_ENDS
    spans = _Ends(edit, [known[name] for name in names]) if ends else _Spreads(names)
    outputs = list(dict.fromkeys([*spans.outputs, *tops.values(), *levels.values()]))
    found, runs = Statistics({}, {}, {}), 0
    for runs, arrays in enumerate(watched(observed, outputs, data, runtime, apart=not ends), 1):
        for name, output in tops.items():
            found.maxima[name] = np.maximum(
                found.maxima.get(name, 0.0), _rows(arrays[output], name in images).max(axis=0)
            )
        for name, output in levels.items():
            mean = _rows(arrays[output], name in images).mean(axis=0, dtype=np.float64)
            if not np.isfinite(mean).all():
                raise CompressError(_endless(name))
            found.means[name] = found.means.get(name, 0.0) + mean
        spans.add(arrays)
        if progress:
            progress(runs, data.count, "calibrating")
    if not runs:
        raise UsageError("calibration: there are no data, expected at least one sample")
    found.means = {name: total / runs for name, total in found.means.items()}
    found.ranges = spans.ranges(method, percentile)
    return found


class _Spreads:
    """Histograms of the values called `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        self.outputs = names
        self._histograms = {name: Histogram() for name in names}

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Count the numbers of one run, which are given up."""
        for name, histogram in self._histograms.items():
            try:
                histogram.add(arrays.pop(name))
            except ValueError:
                raise CompressError(_endless(name)) from None

    def ranges(self, method: str, percentile: float) -> dict[str, Range]:
        """Return the ranges that are best by `method`."""
        found = {name: (each.counts, each.width) for name, each in self._histograms.items()}
        if method == "percentile":
            return {name: percentile_range(*each, percentile) for name, each in found.items()}
        best = entropy_range if method == "entropy" else error_range
        return {name: best(*each) for name, each in found.items()}


class _Ends:
    """The lowest and highest number of each of `values` in each run, or zero."""

    def __init__(self, edit: Edit, values: Sequence[ir.Value]) -> None:
        self._names = [value.name or "" for value in values]
        signed = [value for value in values if not never_negative(value)]
        self._highest = {value.name or "": reduced(edit, value, "ReduceMax") for value in values}
        self._lowest = {value.name or "": reduced(edit, value, "ReduceMin") for value in signed}
        self.outputs: Sequence[str] = [*self._highest.values(), *self._lowest.values()]
        self._most, self._sum = np.zeros((2, len(self.outputs)))
        self._runs = 0

    def add(self, arrays: dict[str, np.ndarray]) -> None:
        """Take in the ends of one run."""
        found = np.array([arrays[name].reshape(()) for name in self.outputs], np.float64)
        if not np.isfinite(found).all():
            worst = int(np.flatnonzero(~np.isfinite(found))[0])
            raise CompressError(_endless([*self._highest, *self._lowest][worst]))
        found = np.where(np.arange(len(found)) < len(self._highest), found.clip(min=0), found.clip(max=0))
        self._most = np.where(np.abs(found) > np.abs(self._most), found, self._most)
        self._sum, self._runs = self._sum + found, self._runs + 1

    def ranges(self, method: str, _percentile: float) -> dict[str, Range]:
        """Return the ranges of all runs together, or by "average" of one run, averaged over them."""
        ends = self._sum / self._runs if method == "average" else self._most
        of = dict(zip(self.outputs, ends.tolist(), strict=True))
        return {
            name: (of.get(self._lowest.get(name, ""), 0.0), of[self._highest[name]]) for name in self._names
        }


def _rows(array: np.ndarray, image: bool) -> np.ndarray:
    """Return `array`, a pooled image [samples, channels, 1, ...] or [..., channels], as [any, channels]."""
    return array.reshape(array.shape[:2]) if image else array.reshape(-1, array.shape[-1])


def _endless(name: str) -> str:
    return f"calibration: {name} holds NaN or infinity on the calibration data, expected finite numbers"
