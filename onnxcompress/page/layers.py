"""What the page shows of the noise around layers, and of what each loses alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from onnxcompress.base import Width
from onnxcompress.details import Noise
from onnxcompress.page.charts import Axis, Place, Point, lines, staircase
from onnxcompress.report import count_bytes, decibels
from onnxcompress.trials import Mixed

FEWEST = 50  # points of a curve that there may be always


class Curves(NamedTuple):
    """A plot of curves, and what it says."""

    drawing: str
    caption: str


class Trial(NamedTuple):
    """What a scheme does to a layer alone; `remark` says that the recipe has it, or why it can't."""

    layer: str
    scheme: str
    saved: str
    snr: str
    agreement: str
    remark: str


def noise_curves(rows: Sequence[Noise], most: int) -> Curves | None:
    """Return the signal-to-noise ratio around layers in the order of the model; None where there is none."""
    entering = [(place, _ratio(row.entering)) for place, row in enumerate(rows, 1) if row.entering]
    leaving = [(place, _ratio(row.leaving)) for place, row in enumerate(rows, 1) if row.leaving]
    caption = "Signal to noise around the layers in the order of the model, where there is noise."
    return _curves([entering, leaving], ["entering the layer", "leaving it"], "layer", caption, most)


def sensitivity_curves(mixed: Mixed, most: int) -> Curves | None:
    """Return for each scheme the signal-to-noise ratio of the outputs, the layer that hurts most first."""
    found: dict[str, list[float]] = {}
    for row in mixed.rows:
        if row.comparison is not None and math.isfinite(row.comparison.snr):
            found.setdefault(row.scheme, []).append(row.comparison.snr)
    series = [list(enumerate(sorted(values), 1)) for values in found.values()]
    caption = "Signal to noise of the outputs with one layer changed, the layer that hurts most first."
    return _curves(series, list(found), "layers", caption, most)


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


def trials(mixed: Mixed) -> list[Trial]:
    """Return what each scheme does to each layer, in the order of the model."""
    rows = []
    for row in mixed.rows:
        found, chosen = row.comparison, mixed.schemes.get(row.layer) == row.scheme
        agreement = "" if found is None or found.agreement is None else f"{found.agreement:.2%}"
        saved = f"{'-' if row.saved < 0 else ''}{count_bytes(abs(row.saved))}"
        snr = "" if found is None else decibels(found.snr)
        remark = "chosen" if chosen else row.what if found is None else ""
        rows.append(Trial(row.layer, row.scheme, saved, snr, agreement, remark))
    return rows


def ratio(noise: float | None) -> str:
    """Return a share of noise as a signal-to-noise ratio for people."""
    return "not known" if noise is None else decibels(_ratio(noise))


def _ratio(noise: float | None) -> float:
    return -10 * math.log10(noise) if noise else math.inf


def _curves(
    series: Sequence[Sequence[Place]], names: list[str], across: str, caption: str, most: int
) -> Curves | None:
    """Return curves of points, of each so many at most; None where there is none with two."""
    pairs = [(each, name) for each, name in zip(series, names, strict=True) if each]
    pairs = [(each[:: -(-len(each) // max(FEWEST, most))], name) for each, name in pairs]
    points = [point for each, _ in pairs for point in each]
    if len({x for x, _ in points}) < 2:
        return None
    horizontal = Axis.around(across, [x for x, _ in points])
    vertical = Axis.around("signal to noise, dB", [y for _, y in points])
    told = ", ".join(f"{number}: {name}" for number, (_, name) in enumerate(pairs, 1))
    return Curves(lines([each for each, _ in pairs], horizontal, vertical, caption), f"{caption} {told}.")
