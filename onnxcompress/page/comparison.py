"""What the page shows of several runs side by side: a table, and plots of what a byte costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from onnxcompress.page.charts import Axis, Point, best, scatter
from onnxcompress.page.run import Run
from onnxcompress.report import Report, count_bytes, decibels, share
from onnxcompress.verify import Comparison


class Line(NamedTuple):
    """One run in the table of all."""

    number: str
    id: str
    title: str
    recipe: str
    size: str
    share: str
    cells: list[str]


class Plot(NamedTuple):
    """A plot and what it says."""

    drawing: str
    caption: str


@dataclass
class Compared:
    """The table of all runs, the plots, and why there are no more of them."""

    heads: list[str]
    rows: list[Line]
    plots: list[Plot] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measure:
    """A figure of a run: how it is read, what the model had before, how it is written, if less is better."""

    name: str
    unit: str
    value: Callable[[Report], float | None]
    start: Callable[[Report], float | None]
    text: Callable[[float], str]
    less: bool = False


def _likeness(report: Report) -> Comparison | None:
    return report.evaluation or report.comparison


def _top1(report: Report) -> float | None:
    found = _likeness(report)
    return 100 * found.top1[1] if found and found.top1 else None


def _top1_before(report: Report) -> float | None:
    found = _likeness(report)
    return 100 * found.top1[0] if found and found.top1 else None


def _agreement(report: Report) -> float | None:
    found = _likeness(report)
    return 100 * found.agreement if found and found.agreement is not None else None


def _snr(report: Report) -> float | None:
    found = _likeness(report)
    return found.snr if found else None


def _latency(report: Report) -> float | None:
    return report.latency.ratio if report.latency else None


QUALITIES = (
    Measure("top-1 accuracy", "%", _top1, _top1_before, lambda value: f"{value:.2f}%"),
    Measure("same predictions", "%", _agreement, lambda report: 100.0, lambda value: f"{value:.2f}%"),
    Measure("signal to noise", "dB", _snr, lambda report: None, decibels),
)
LATENCY = Measure(
    "latency", "share of before", _latency, lambda report: 1.0, lambda value: f"{value:.2f}x", less=True
)


def compared(runs: Sequence[Run]) -> Compared:
    """Return what there is to see of several runs."""
    measures = [each for each in (*QUALITIES, LATENCY) if any(_known(each, run) is not None for run in runs)]
    found = Compared([f"#{each.name}" for each in measures], [])
    quality = next((each for each in QUALITIES if all(_plotted(each, run) for run in runs)), None)
    if quality is None:
        found.missing.append(
            "No measure of accuracy is known of all runs, so there is no plot of it by size."
        )
    if not all(_plotted(LATENCY, run) for run in runs):
        found.missing.append("Latency was not measured in all runs, so there is no plot of it by size.")
    for measure in (quality, LATENCY):
        if measure is not None and all(_plotted(measure, run) for run in runs):
            found.plots.append(_plot(measure, runs))
    for number, run in enumerate(runs, 1):
        before, after = run.report.before, run.report.after
        size = (count_bytes(after.bytes), share(after.bytes, before.bytes)) if after else ("", "")
        values = [_known(each, run) for each in measures]
        cells = [
            "" if value is None else each.text(value) for each, value in zip(measures, values, strict=True)
        ]
        found.rows.append(Line(str(number), run.id, run.title, run.report.recipe, *size, cells))
    return found


def _known(measure: Measure, run: Run) -> float | None:
    return measure.value(run.report)


def _plotted(measure: Measure, run: Run) -> bool:
    """Return whether a run has a place in the plot of `measure`."""
    value = _known(measure, run)
    return value is not None and math.isfinite(value) and run.report.after is not None


def _plot(measure: Measure, runs: Sequence[Run]) -> Plot:
    places = [
        (str(number), run.report.after.bytes if run.report.after else 0, _known(measure, run) or 0.0)
        for number, run in enumerate(runs, 1)
    ]
    starts = {(run.report.before.bytes, measure.start(run.report)) for run in runs}
    (size, start), *others = starts
    if not others and start is not None:
        places.insert(0, ("before", size, start))
    divisor, unit = (10**6, "MB") if max(size for _, size, _ in places) >= 10**7 else (1000, "kB")
    front = best((size, value if measure.less else -value) for _, size, value in places)
    points = [
        Point(label, size / divisor, value, good)
        for (label, size, value), good in zip(places, front, strict=True)
    ]
    chosen = ", ".join(point.label for point in sorted(points, key=lambda point: point.x) if point.best)
    caption = (
        f"Size and {measure.name}. Filled, on the line: what nothing else beats in both, "
        f"from the smallest on {chosen}."
    )
    across = Axis.around(f"size, {unit}", [point.x for point in points], zero=True)
    up = Axis.around(f"{measure.name}, {measure.unit}", [point.y for point in points])
    return Plot(scatter(points, across, up, caption), caption)
