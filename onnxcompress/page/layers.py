"""What the page shows of the noise around layers, and of what each loses alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from onnxcompress.base import Width
from onnxcompress.details import Noise
from onnxcompress.page.charts import Axis, Place, Point, lines, staircase
from onnxcompress.report import count_bytes, decibels
from onnxcompress.trials import Row
from onnxcompress.verify import Comparison

FEWEST = 50  # points of a curve that there may be always


class Curves(NamedTuple):
    """A plot of curves, and what it says."""

    drawing: str
    caption: str


class Trial(NamedTuple):
    """What a scheme does to a layer alone; `remark` says that the recipe has it, or why it can't."""

    number: int
    layer: str
    scheme: str
    saved: str
    snr: str
    agreement: str
    top1: str
    remark: str


def noise_curves(rows: Sequence[Noise], most: int) -> Curves | None:
    """Return the signal-to-noise ratio around layers in the order of the model; None where there is none."""
    entering = [(place, _ratio(row.entering)) for place, row in enumerate(rows, 1) if row.entering]
    leaving = [(place, _ratio(row.leaving)) for place, row in enumerate(rows, 1) if row.leaving]
    caption = "Signal to noise around the layers in the order of the model, where there is noise."
    return _curves([entering, leaving], ["entering the layer", "leaving it"], "layer", caption, most)


def sensitivity_curves(rows: Sequence[Row], most: int) -> Curves | None:
    """Return for each scheme the signal-to-noise ratio of the outputs, the layer that hurts most first."""
    found = _by_scheme(rows, _snr)
    series = [list(enumerate(sorted(value for _, value in points), 1)) for points in found.values()]
    caption = "Signal to noise of the outputs with one layer changed, the layer that hurts most first."
    return _curves(series, list(found), "layers", caption, most)


def layer_curves(rows: Sequence[Row], most: int) -> list[Curves]:
    """Return for each scheme what outputs lose by each layer alone, in the order of the model."""
    told = " with one layer changed, in the order of the model."
    plots = (
        (_snr, f"Signal to noise of the outputs{told}", "signal to noise, dB"),
        (_agreement, f"Same predictions{told}", "same predictions, %"),
        (_top1, f"Top-1 accuracy, the change{told}", "top-1, points"),
    )
    found = []
    for figure, caption, title in plots:
        points = _by_scheme(rows, figure)
        found.append(_curves(list(points.values()), list(points), "layer no.", caption, most, title))
    return [each for each in found if each is not None]


def _by_scheme(
    rows: Sequence[Row], figure: Callable[[Comparison], float | None]
) -> dict[str, list[tuple[float, float]]]:
    """Return by scheme the numbers of layers, the first being 1, with the `figure` of each that has one."""
    numbers = numbered(rows)
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        value = None if row.comparison is None else figure(row.comparison)
        if value is not None and math.isfinite(value):
            found.setdefault(row.scheme, []).append((numbers[row.layer], value))
    return found


def _snr(found: Comparison) -> float | None:
    return found.snr


def _agreement(found: Comparison) -> float | None:
    return None if found.agreement is None else 100 * found.agreement


def _top1(found: Comparison) -> float | None:
    return None if found.top1 is None else 100 * (found.top1[1] - found.top1[0])


def numbered(rows: Sequence[Row]) -> dict[str, int]:
    """Return the numbers of layers in the order of the model, the first being 1."""
    return {layer: number for number, layer in enumerate(dict.fromkeys(row.layer for row in rows), 1)}


def climb(widths: Sequence[Width]) -> Curves:
    """Return the latency of models by the channels they keep, with its 95 % interval."""
    points = [Point("", widths[0].channels, 1.0)]
    for each in widths[1:]:
        label, interval = "chosen" if each.chosen else "", (each.low, each.high)
        points.append(Point(label, each.channels, each.ratio, each.chosen, interval))
    caption = (
        "Latency of models that keep so many channels, as a share of the whole one's, with its 95 % interval."
    )
    across = Axis.around("channels kept", [each.channels for each in widths])
    up = Axis.above("latency, share", [each.high for each in widths])
    return Curves(staircase(points, across, up, caption), caption)


def trials(rows: Sequence[Row], schemes: Mapping[str, str]) -> list[Trial]:
    """Return what each scheme does to each layer, in the order of the model; `schemes` were chosen."""
    trials, numbers = [], numbered(rows)
    for row in rows:
        found, chosen = row.comparison, schemes.get(row.layer) == row.scheme
        agreement = "" if found is None or found.agreement is None else f"{found.agreement:.2%}"
        saved = f"{'-' if row.saved < 0 else ''}{count_bytes(abs(row.saved))}"
        snr = "" if found is None else decibels(found.snr)
        remark = "chosen" if chosen else row.what if found is None else ""
        top1 = None if found is None else _top1(found)
        points = "" if top1 is None else f"{top1:+.2f}"
        number = numbers[row.layer]
        trials.append(Trial(number, row.layer, row.scheme, saved, snr, agreement, points, remark))
    return trials


def ratio(noise: float | None) -> str:
    """Return a share of noise as a signal-to-noise ratio for people."""
    return "not known" if noise is None else decibels(_ratio(noise))


def _ratio(noise: float | None) -> float:
    return -10 * math.log10(noise) if noise else math.inf


def _curves(
    series: Sequence[Sequence[Place]],
    names: list[str],
    across: str,
    caption: str,
    most: int,
    up: str = "signal to noise, dB",
) -> Curves | None:
    """Return curves of points, of each so many at most; None where there is none with two."""
    pairs = [(each, name) for each, name in zip(series, names, strict=True) if each]
    pairs = [(each[:: -(-len(each) // max(FEWEST, most))], name) for each, name in pairs]
    points = [point for each, _ in pairs for point in each]
    if len({x for x, _ in points}) < 2:
        return None
    horizontal = Axis.around(across, [x for x, _ in points])
    vertical = Axis.around(up, [y for _, y in points])
    told = ", ".join(f"{number}: {name}" for number, (_, name) in enumerate(pairs, 1))
    return Curves(lines([each for each, _ in pairs], horizontal, vertical, caption), f"{caption} {told}.")
