"""What the page shows of one run: rows of its tables, with the lengths of bars as shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from onnxcompress.base import Width
from onnxcompress.details import Noise, Values, Weight
from onnxcompress.formats.unpack import Row
from onnxcompress.page.charts import histogram
from onnxcompress.page.energies import Split, split
from onnxcompress.page.layers import Curves, Trial, climb, noise_curves, ratio, sensitivity_curves, trials
from onnxcompress.report import Report, decibels, figures, milliseconds

SMALLEST = 0.001  # share of a file that has a line of its own


class Fall(NamedTuple):
    """The size of the file after a step; the last three are shares of the longest bar."""

    name: str
    bytes: int
    change: int | None
    stays: float
    gone: float
    more: float


class Part(NamedTuple):
    """A line of a ledger."""

    name: str
    format: str
    bytes: int
    share: float


class Quality(NamedTuple):
    """A figure of a model before or after; `share` is the length of its bar."""

    what: str
    when: str
    text: str
    remark: str
    share: float


class Change(NamedTuple):
    """How far a layer's weight is from what it was, the noise around it, and what passes say of its error."""

    layer: str
    error: float
    entering: str
    leaving: str
    said: str


class Spread(NamedTuple):
    """How the values of a layer's weight are spread before and after."""

    layer: str
    elements: str
    before: str
    after: str
    drawing: str


class Staircase(NamedTuple):
    """What a pass timed with fewer channels: a plot, and its figures."""

    step: str
    curve: Curves
    widths: list[Width]


class Left(NamedTuple):
    """What a pass left for one reason."""

    step: str
    reason: str
    names: list[str]


class Run:
    """A run on the page; `id` begins all its anchors, `most` are the rows of a long table."""

    def __init__(self, id: str, title: str, report: Report, most: int) -> None:
        self.id, self.title, self.report, self.most = id, title, report, most

    @property
    def figures(self) -> list[tuple[str, str, str, str]]:
        """The rows of the summary."""
        return list(figures(self.report))

    @property
    def falls(self) -> list[Fall]:
        """The size after each step, from the file that was read to the one that was written."""
        report = self.report
        sizes = [("as it was read", report.before.bytes)]
        if report.decoded is not None and report.decoded != report.before.bytes:
            sizes.append(("unpacked", report.decoded))
        for step in report.steps:
            if step.bytes is None:
                return []
            sizes.append((step.recipe, step.bytes))
        if report.after is not None and report.after.bytes != sizes[-1][1]:
            sizes.append(("as it was written", report.after.bytes))
        longest = max(size for _, size in sizes) or 1
        found = [Fall(sizes[0][0], sizes[0][1], None, sizes[0][1] / longest, 0.0, 0.0)]
        for (_, before), (name, after) in pairwise(sizes):
            gone, more = max(0, before - after) / longest, max(0, after - before) / longest
            found.append(Fall(name, after, after - before, min(before, after) / longest, gone, more))
        return found

    @property
    def ledgers(self) -> list[tuple[str, list[Part], int]]:
        """The caption, the rows and the bytes of the ledgers there are."""
        details = self.report.details
        if details is None:
            return []
        pairs = (("Before", details.before), ("After", details.after))
        return [(name, list(self._parts(rows)), _total(rows)) for name, rows in pairs if rows]

    def _parts(self, rows: list[Row]) -> Iterator[Part]:
        total = _total(rows) or 1
        ordered = sorted(rows, key=lambda row: -row.bytes)
        shown = [row for row in ordered[: self.most] if row.bytes >= SMALLEST * total]
        for row in shown:
            name = row.name or f"({row.format})"
            yield Part(name, row.format if row.name else "", row.bytes, row.bytes / total)
        if rest := ordered[len(shown) :]:
            yield Part(f"({len(rest)} smaller)", "", _total(rest), _total(rest) / total)

    @property
    def qualities(self) -> list[Quality]:
        """Figures of outputs and of time, before and after."""
        report = self.report
        rows: list[Quality] = []
        for name, found in (("outputs", report.comparison), ("evaluation", report.evaluation)):
            if found is None:
                continue
            remark = f"{found.samples:,} {'random ' if found.random else ''}samples ({name})"
            if found.top1 is not None:
                pairs = zip(("before", "after"), found.top1, strict=True)
                rows += [Quality("top-1 accuracy", when, f"{each:.2%}", remark, each) for when, each in pairs]
            if found.agreement is not None:
                text = f"{found.agreement:.2%}"
                rows.append(Quality("same prediction", "after", text, remark, found.agreement))
            rows.append(Quality("signal to noise", "after", decibels(found.snr), remark, 0.0))
        if report.latency is not None:
            time = report.latency
            before = time.seconds / time.ratio
            longest = max(before, time.seconds)
            remark = f"{time.pairs:,} runs of both in turns"
            ratio = f"{time.ratio:.2f}x, {time.low:.2f} to {time.high:.2f} in 95 %"
            rows.append(Quality("latency", "before", milliseconds(before), remark, before / longest))
            rows.append(
                Quality("latency", "after", milliseconds(time.seconds), ratio, time.seconds / longest)
            )
        return rows

    @cached_property
    def _weights(self) -> list[Weight]:
        return self.report.details.weights if self.report.details else []

    @property
    def staircases(self) -> list[Staircase]:
        """What passes timed with fewer channels."""
        steps = [step for step in self.report.steps if step.widths]
        return [Staircase(step.recipe, climb(step.widths), step.widths) for step in steps]

    @property
    def energies(self) -> list[tuple[str, Split]]:
        """The energy of an inference by kind of layer, before and after."""
        details = self.report.details
        if details is None or not (details.energy_before or details.energy_after):
            return []
        longest = max(each.total for each in (*details.energy_before, *details.energy_after))
        pairs = (("Before", details.energy_before), ("After", details.energy_after))
        return [(name, split(rows, longest)) for name, rows in pairs]

    @property
    def errors(self) -> list[Change]:
        """The layers whose weight changed most."""
        found = [(each.layer, each.error) for each in self._weights if each.error is not None]
        said: dict[str, list[str]] = {}
        for step in self.report.steps:
            for record in step.records:
                if isinstance(snr := record.numbers.get("snr"), float | int):
                    said.setdefault(record.layer, []).append(f"{step.recipe}: {decibels(snr)}")
        ordered = sorted(found, key=lambda each: -each[1])[: self.most]
        return [
            Change(layer, error, *self._around(layer), "; ".join(said.get(layer, [])))
            for layer, error in ordered
        ]

    @cached_property
    def _noise(self) -> dict[str, Noise]:
        return {each.layer: each for each in self.report.details.noise} if self.report.details else {}

    def _around(self, layer: str) -> tuple[str, str]:
        found = self._noise.get(layer)
        return (ratio(found.entering), ratio(found.leaving)) if found else ("", "")

    @property
    def noise(self) -> Curves | None:
        """The noise around layers."""
        return noise_curves(list(self._noise.values()), self.most)

    @property
    def sensitivity(self) -> Curves | None:
        """What layers lose alone, by scheme."""
        return sensitivity_curves(self.report.mixed.rows, self.most) if self.report.mixed else None

    @property
    def trials(self) -> list[Trial]:
        """What schemes do to layers alone."""
        mixed = self.report.mixed
        return trials(mixed.rows, mixed.schemes)[: self.most] if mixed else []

    @property
    def trials_cut(self) -> str:
        """What the caption says where rows are missing."""
        return cut(self.most, len(self.report.mixed.rows) if self.report.mixed else 0)

    @property
    def errors_cut(self) -> str:
        """What the caption says where rows are missing."""
        return cut(self.most, sum(each.error is not None for each in self._weights))

    @property
    def weights(self) -> list[Spread]:
        """The largest weights, in the order of the model."""
        largest = sorted(self._weights, key=lambda each: -_elements(each))[: self.most]
        return [_spread(each) for each in self._weights if each in largest]

    @property
    def weights_cut(self) -> str:
        """What the caption says where rows are missing."""
        return cut(self.most, len(self._weights))

    @property
    def left(self) -> list[Left]:
        """What each pass left, by its reason."""
        rows = []
        for step in self.report.steps:
            reasons: dict[str, list[str]] = {}
            for record in step.records:
                if not record.changed:
                    reasons.setdefault(record.what, []).append(record.layer or "(no name)")
            rows += [Left(step.recipe, reason, names) for reason, names in reasons.items()]
        return rows


def _total(rows: Iterable[Row]) -> int:
    return sum(row.bytes for row in rows)


def cut(most: int, count: int) -> str:
    """Return what a caption says where a table has the first `most` of `count` rows."""
    return f"; {most} of {count}, the rest is in the JSON report" if count > most else ""


def _elements(weight: Weight) -> int:
    return max(each.elements for each in (weight.before, weight.after) if each is not None)


def _spread(weight: Weight) -> Spread:
    before, after = _zero(weight.before), _zero(weight.after)
    summary = f"Values of {weight.layer}: {_range(weight.before)} before, {_range(weight.after)} after"
    drawing = histogram(weight.before, weight.after, summary)
    return Spread(weight.layer, f"{_elements(weight):,}", before, after, drawing)


def _zero(values: Values | None) -> str:
    return "not there" if values is None else f"{values.zeros / max(1, values.elements):.1%}"


def _range(values: Values | None) -> str:
    if values is None:
        return "not there"
    if not any(values.counts):
        return "all zero"
    return f"{values.low:.3g} to {values.low + values.width * len(values.counts):.3g}"
