"""Small charts as SVG elements that take their colours from the page.

What a chart shows, a table beside it or its text alternative says, too. Series differ by shape or dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from onnxcompress.details import Values

WIDTH, HEIGHT = 360, 240  # of a plot; a phone shows it at about this size
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40  # room for the axes
SMALL = (160, 44)  # of a histogram
NEAR = 14  # pixels: points as close as this share a label
Place = tuple[float, float]
_DASHES = ("none", "6 3", "2 3", "8 3 2 3")


class Point(NamedTuple):
    """A point of a plot; one that no other beats in both axes, or that was chosen, is `best`."""

    label: str
    x: float
    y: float
    best: bool = False
    interval: tuple[float, float] | None = None  # of y


class Axis(NamedTuple):
    """What an axis shows, and its ends."""

    title: str
    low: float
    high: float

    @staticmethod
    def around(title: str, values: Sequence[float], zero: bool = False) -> Axis:
        """Return an axis that holds `values`, and with `zero` zero."""
        low, high = min([*values, *([0.0] if zero else [])]), max(values)
        room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return Axis(title, 0.0 if zero and low == 0 else low - room, high + room)

    @staticmethod
    def above(title: str, values: Sequence[float]) -> Axis:
        """Return an axis from zero on that holds `values`, none of them negative."""
        return Axis(title, 0.0, 1.06 * max(values) or 1.0)

    def share(self, value: float) -> float:
        """Return the place of `value` between the ends, 0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield three to six round numbers in the axis as they are written."""
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            yield number * step, f"{number * step:.{places}f}"


def scatter(points: Sequence[Point], across: Axis, up: Axis, summary: str) -> str:
    """Return a scatter plot; the best points are filled and joined by a line, close ones share a label.

    Points without a label are dots.
    """
    drawing = _plot(across, up, summary)
    best = sorted((point for point in points if point.best), key=lambda point: point.x)
    if len(best) > 1:
        path = _path(_place(across, up, point.x, point.y) for point in best)
        _add(drawing, "polyline", {"class": "front", "points": path})
    dots = [_place(across, up, point.x, point.y) for point in points if not point.label]
    path = "".join(dict.fromkeys(f"M{_f(x)} {_f(y)}h0" for x, y in dots))
    _add(drawing, "path", {"class": "dots", "d": path})
    labels: list[tuple[float, float, list[str]]] = []
    named = (point for point in points if point.label)
    for point in sorted(named, key=lambda point: point.best):  # the best are drawn last, above the others
        x, y = _place(across, up, point.x, point.y)
        _add(
            drawing,
            "circle",
            {"class": "best" if point.best else "point", "cx": _f(x), "cy": _f(y), "r": "5"},
        )
        near = [texts for left, top, texts in labels if abs(left - x) < NEAR and abs(top - y) < NEAR]
        if near:
            near[0].append(point.label)
        else:
            labels.append((x, y, [point.label]))
    for x, y, texts in labels:
        shift, anchor = (8, "start") if x < (LEFT + WIDTH) / 2 else (-8, "end")
        _write(drawing, ", ".join(texts), x + shift, y - 5, "mark", anchor)
    return _text(drawing)


def lines(series: Sequence[Sequence[Place]], across: Axis, up: Axis, summary: str) -> str:
    """Return curves through points; where there are several, each has its own dash and number."""
    drawing = _plot(across, up, summary)
    for number, values in enumerate(series, 1):
        places = [_place(across, up, x, y) for x, y in values]
        dash = _DASHES[(number - 1) % len(_DASHES)]
        _add(drawing, "polyline", {"class": "curve", "stroke-dasharray": dash, "points": _path(places)})
        end, anchor = (places[-1], "end") if number % 2 else (places[0], "start")
        if len(series) > 1:
            _write(drawing, str(number), end[0], end[1] - 5, "mark", anchor)
    return _text(drawing)


def columns(values: Sequence[float], across: str, up: Axis, summary: str) -> str:
    """Return a column for each of `values`, the first being number 1; `up` begins at zero."""
    axis = Axis(across, 0.5, len(values) + 0.5)
    drawing = _plot(axis, up, summary)
    parts = []
    for place, value in enumerate(values, 1):
        if value:
            left, floor = _place(axis, up, place - 0.45, 0.0)
            right, top = _place(axis, up, place + 0.45, value)
            parts.append(f"M{_f(left)} {_f(floor)}V{_f(top)}H{_f(right)}V{_f(floor)}Z")
    _add(drawing, "path", {"class": "column", "d": "".join(parts)})
    return _text(drawing)


def staircase(points: Sequence[Point], across: Axis, up: Axis, summary: str) -> str:
    """Return points with their intervals, joined by a line from left to right; the best one is filled."""
    drawing = _plot(across, up, summary)
    ordered = sorted(points, key=lambda point: point.x)
    path = _path(_place(across, up, point.x, point.y) for point in ordered)
    _add(drawing, "polyline", {"class": "curve", "points": path})
    for point in ordered:
        if point.interval is not None:
            _line(drawing, "interval", *(_place(across, up, point.x, y) for y in point.interval))
        x, y = _place(across, up, point.x, point.y)
        name = "best" if point.best else "point"
        _add(drawing, "circle", {"class": name, "cx": _f(x), "cy": _f(y), "r": "5" if point.best else "3"})
        if point.label:
            _write(drawing, point.label, x - 8, y - 6, "mark", "end")
    return _text(drawing)


def grouped(values: Sequence[float], most: int, together: Callable[[Sequence[float]], float]) -> list[float]:
    """Return at most `most` numbers: what `together` makes of each run of equally many of `values`."""
    size = max(1, -(-len(values) // most))
    return [together(values[start : start + size]) for start in range(0, len(values), size)]


def histogram(before: Values | None, after: Values | None, summary: str) -> str:
    """Return how values are spread before, as an outline, and after, filled."""
    width, height = SMALL
    drawing = _drawing(width, height, summary, "spread")
    known = [each for each in (before, after) if each is not None and any(each.counts)]
    low = min((each.low for each in known), default=-1.0)
    high = max((each.low + each.width * len(each.counts) for each in known), default=1.0)
    tallest = max((max(each.counts) / each.width for each in known), default=1.0)
    for values, name in ((after, "after"), (before, "before")):
        if values in known and values is not None:
            path = _outline(values, low, width / (high - low), (height - 2) / tallest, height - 1)
            _add(drawing, "path", {"class": name, "d": path})
    zero = -low / (high - low) * width
    _line(drawing, "zero", (zero, 0), (zero, height))
    return _text(drawing)


def _outline(values: Values, low: float, wide: float, tall: float, floor: float) -> str:
    """Return the path of a histogram's steps, densities being `tall` a unit."""
    parts = [f"M{_f((values.low - low) * wide)} {_f(floor)}"]
    for place, count in enumerate(values.counts):
        right = (values.low + (place + 1) * values.width - low) * wide
        parts.append(f"V{_f(floor - count / values.width * tall)}H{_f(right)}")
    return "".join([*parts, f"V{_f(floor)}"])


def _plot(across: Axis, up: Axis, summary: str) -> ElementTree.Element:
    drawing = _drawing(WIDTH, HEIGHT, summary, "plot")
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    grid = _add(drawing, "path", {"class": "grid"})
    path = []
    for value, text in across.ticks():
        x, _ = _place(across, up, value, up.low)
        path.append(f"M{_f(x)} {TOP}V{bottom}")
        _write(drawing, text, x, bottom + 15, "tick")
    for value, text in up.ticks():
        _, y = _place(across, up, across.low, value)
        path.append(f"M{LEFT} {_f(y)}H{right}")
        _write(drawing, text, LEFT - 6, y + 4, "side")
    grid.set("d", "".join(path))
    _write(drawing, across.title, (LEFT + right) / 2, HEIGHT - 6, "axis")
    title = _write(drawing, up.title, 0, 0, "axis")
    title.set("transform", f"translate(12 {(TOP + bottom) / 2}) rotate(-90)")
    return drawing


def _place(across: Axis, up: Axis, x: float, y: float) -> tuple[float, float]:
    """Return where in a plot a point is, in pixels from its left and top."""
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return LEFT + across.share(x) * wide, HEIGHT - BOTTOM - up.share(y) * tall


def _drawing(width: int, height: int, summary: str, name: str) -> ElementTree.Element:
    shape = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
    return ElementTree.Element("svg", {**shape, "class": name, "role": "img", "aria-label": summary})


def _add(parent: ElementTree.Element, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _line(parent: ElementTree.Element, name: str, start: Place, end: Place) -> None:
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    _add(parent, "line", {"class": name, **{key: _f(value) for key, value in ends.items()}})


def _write(
    parent: ElementTree.Element, text: str, x: float, y: float, name: str, anchor: str | None = None
) -> ElementTree.Element:
    """Add text; where no `anchor` is given, the style of the page has one for its class `name`."""
    label = _add(parent, "text", {"class": name, "x": _f(x), "y": _f(y)})
    if anchor is not None:
        label.set("text-anchor", anchor)
    label.text = text
    return label


def _path(places: Iterable[Place]) -> str:
    return " ".join(f"{_f(x)},{_f(y)}" for x, y in places)


def _f(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(drawing: ElementTree.Element) -> str:
    """Return the element as HTML, its text escaped."""
    return ElementTree.tostring(drawing, encoding="unicode", method="html")


def best(points: Iterable[tuple[float, float]]) -> list[bool]:
    """Return which of `points` no other one beats, less being better in both numbers."""
    given, front, least = list(points), set(), math.inf
    for x, y in sorted(given):
        if y < least or (x, y) in front:
            front.add((x, y))
            least = y
    return [each in front for each in given]
