"""The page of a run over many models: plots, a line for each job, and why some failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from onnxcompress.base import Number
from onnxcompress.page import render
from onnxcompress.page.charts import Axis, Point, best, scatter
from onnxcompress.page.layers import Curves
from onnxcompress.zoo.figures import figure_cells, tally
from onnxcompress.zoo.jobs import DONE, Outcome

LINES = 1000  # of a table
NAMED = 12  # points that all have their numbers beside them
Figures = Mapping[str, Number]


class Line(NamedTuple):
    """A job in the table of all; `link` leads to its page, where it is done."""

    number: int
    outcome: Outcome
    link: str | None
    cells: list[str]


class Measure(NamedTuple):
    """A figure of a job that is plotted over size: how it is read, and whether less is better."""

    name: str
    unit: str
    value: Callable[[Figures], float | None]
    less: bool = False


def _top1(figures: Figures) -> float | None:
    return (
        100 * (_of(figures, "top1_after") - _of(figures, "top1_before")) if "top1_after" in figures else None
    )


def _agreement(figures: Figures) -> float | None:
    return 100 * _of(figures, "agreement") if "agreement" in figures else None


def _snr(figures: Figures) -> float | None:
    return _of(figures, "snr") if "snr" in figures else None


def _latency(figures: Figures) -> float | None:
    return _of(figures, "latency_ratio") if "latency_ratio" in figures else None


def _of(figures: Figures, name: str) -> float:
    return float(figures[name])


MEASURES = (
    Measure("change of top-1 accuracy", "points", _top1),
    Measure("same predictions", "%", _agreement),
    Measure("signal to noise", "dB", _snr),
    Measure("latency", "share of before", _latency, less=True),
)


def zoo_page(outcomes: Sequence[Outcome]) -> str:
    """Return the HTML page of how jobs ended; its links are relative to the folder of the results.

    Tables are cut after 1,000 lines; the page says so. UsageError where jinja2 is not installed.
    """
    lines = [_line(number, each) for number, each in enumerate(outcomes, 1)]
    missed = [each for each in lines if each.link is None]
    plots = [plot for measure in MEASURES if (plot := _plot(measure, lines)) is not None]
    content = {
        "tally": tally(outcomes),
        "lines": lines[:LINES],
        "missed": missed[:LINES],
        "most": LINES,
        "counts": (len(lines), len(missed)),
        "plots": plots,
        "recipes": {each.job.recipe: each.job.passes for each in outcomes[:LINES]},
    }
    return render("zoo.html.jinja", f"Zoo: {tally(outcomes)}", content)


def _line(number: int, outcome: Outcome) -> Line:
    link = quote(f"{outcome.job.label}.html") if outcome.status == DONE else None
    return Line(number, outcome, link, [*figure_cells(outcome), f"{outcome.seconds:.1f}"])


def _plot(measure: Measure, lines: Sequence[Line]) -> Curves | None:
    """Return `measure` over the share of size that is left; None where fewer than two jobs have it."""
    found = []
    for line in lines:
        figures = line.outcome.figures
        value = measure.value(figures)
        if value is not None and math.isfinite(value) and "bytes_after" in figures:
            size = float(figures["bytes_after"]) / max(1.0, float(figures["bytes_before"]))
            found.append((line.number, size, value))
    if len(found) < 2:
        return None
    front = best((size, value if measure.less else -value) for _, size, value in found)
    points = [
        Point(str(number) if good or len(found) <= NAMED else "", size, value, good)
        for (number, size, value), good in zip(found, front, strict=True)
    ]
    winners = ", ".join(each.label for each in sorted(points, key=lambda point: point.x) if each.best)
    caption = (
        f"Size and {measure.name} of the {len(found)} jobs that tell both. Filled, on the line: what nothing "
        f"else beats in both, from the smallest on no. {winners}."
    )
    across = Axis.around("size, share of before", [each.x for each in points], zero=True)
    up = Axis.around(f"{measure.name}, {measure.unit}", [each.y for each in points])
    return Curves(scatter(points, across, up, caption), caption)
