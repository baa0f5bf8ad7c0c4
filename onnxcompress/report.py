"""What a run did: plain data, as JSON and as tables for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcompress.base import Number, Record, Width, tally
from onnxcompress.details import Details, Origin
from onnxcompress.drop import Drop
from onnxcompress.layerwise import Passage, worst
from onnxcompress.measure import Latency
from onnxcompress.trials import Mixed
from onnxcompress.trials import Row as Loss
from onnxcompress.typed import plain
from onnxcompress.verify import Comparison

if TYPE_CHECKING:
    from rich.console import RenderableType

    from onnxcompress.channels import Span
    from onnxcompress.formats.unpack import Row

SCHEMA = 2
WORST = 3  # layers marked in the list of all


@dataclass(frozen=True)
class Size:
    """What a model weighs: bytes of its file (of its tensors, where there is none), parameters, non-zeros."""

    bytes: int
    parameters: int
    nonzeros: int


@dataclass
class Step:
    """One pass of a run; `comparison` is with the model the pass was given.

    `numbers` are what the pass found out about the model as a whole. `bytes` is what the file would take if
    this pass were the last; where weights take more than 500 MB, of the rest of it nothing counts as changed.
    `widths` are what it timed with fewer channels, the whole model first.
    """

    recipe: str
    effect: str
    seconds: float
    records: list[Record]
    comparison: Comparison | None = None
    numbers: dict[str, Number] = field(default_factory=dict)
    bytes: int | None = None
    widths: list[Width] = field(default_factory=list)


@dataclass
class Report:
    """What a run of the pipeline did.

    `decoded` are the bytes of the model before the first pass, more than those of `before` where weights were
    encoded. They, those after each pass, `details` and `origin` are told where the report goes to a file.
    """

    version: str
    recipe: str
    verify: str
    source: str
    before: Size
    after: Size | None = None
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # warnings a user must see
    comparison: Comparison | None = None  # the whole recipe: last model against the first
    evaluation: Comparison | None = None  # the same on evaluation data
    metric: str | None = None
    drop: Drop | None = None  # what was lost of the metric, where that is bounded
    mixed: Mixed | None = None  # how the recipe was chosen, where there was a choice
    target: str | None = None  # the machine compiled for
    latency: Latency | None = None
    output: str | None = None
    decoded: int | None = None
    details: Details | None = None
    origin: Origin | None = None

    def as_json(self) -> str:
        """Return the report as a JSON document, see docs/report.md; figures that are infinite are null."""
        return json.dumps({"schema": SCHEMA, **plain(self)}, indent=2)


def figures(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the summary: what, before, after, how they compare."""
    before, after = report.before, report.after
    if after is not None:
        yield "size", count_bytes(before.bytes), count_bytes(after.bytes), share(after.bytes, before.bytes)
        yield (
            "parameters",
            f"{before.parameters:,}",
            f"{after.parameters:,}",
            share(after.parameters, before.parameters),
        )
        yield (
            "non-zeros",
            f"{before.nonzeros:,}",
            f"{after.nonzeros:,}",
            share(after.nonzeros, before.nonzeros),
        )
    for name, comparison, metric in (
        ("outputs", report.comparison, None),
        ("evaluation", report.evaluation, report.metric),
    ):
        if comparison is not None:
            data = f"random {name}" if comparison.random else name
            for row_metric, *row in _likeness_rows(comparison, data):
                if metric in (None, row_metric):
                    yield row[0], row[1], row[2], row[3]
    if report.drop is not None:
        yield f"drop of {report.drop.metric}", "", f"{report.drop.points:.3g}", _error(report.drop)
    if report.latency is not None:
        each = report.latency
        yield "latency", milliseconds(each.seconds / each.ratio), milliseconds(each.seconds), spread(each)


def _likeness_rows(comparison: Comparison, data: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the rows that say how outputs compare, each after the metric it shows."""
    if comparison.top1 is not None:
        first, second = comparison.top1
        change = f"{100 * (second - first):+.2f} points"
        yield "top1", "top-1 accuracy", f"{first:.2%}", f"{second:.2%}", change
    if comparison.agreement is not None:
        share = f"{comparison.agreement:.2%}"
        yield "agreement", f"same prediction ({data})", "", share, f"of {comparison.predictions:,}"
    yield "snr", f"SNR ({data})", "", decibels(comparison.snr), ""
    yield "cosine", f"cosine ({data})", "", f"{comparison.cosine:.6f}", ""


def _error(drop: Drop) -> str:
    return "" if drop.error is None else f"standard error {drop.error:.2f}"


def tables(report: Report) -> Iterator[RenderableType]:
    """Yield the tables that the compress command prints at its end."""
    from rich.table import Table
    from rich.text import Text

    summary = Table(
        "", "before", "after", "", title=Text(report.output or report.source), title_justify="left"
    )
    for column in summary.columns[1:3]:
        column.justify = "right"
    for row in figures(report):
        summary.add_row(*map(Text, row))
    yield summary
    passes = Table(
        "pass",
        "effect",
        "did",
        "left",
        "outputs",
        title=Text(f"recipe {report.recipe}"),
        title_justify="left",
    )
    for step in report.steps:
        passes.add_row(
            Text(step.recipe),
            step.effect,
            Text("\n".join(step_lines(step))),
            Text(_listed(tally(step.records, False))),
            likeness(step.comparison),
        )
    yield passes


def step_lines(step: Step) -> list[str]:
    """Return what a pass did, and what it found out about the model, a line each."""
    return [_listed(tally(step.records, True)) or "nothing", *_named(step.numbers)]


def comparison_table(comparison: Comparison, metric: str | None = None) -> RenderableType:
    """Return what `compare` prints: every figure, or the one called `metric`."""
    from rich.table import Table

    table = Table(show_header=False)
    rows = {
        "top1": comparison.top1 and " -> ".join(f"{each:.2%}" for each in comparison.top1),
        "agreement": None if comparison.agreement is None else f"{comparison.agreement:.2%}",
        "snr": decibels(comparison.snr),
        "cosine": f"{comparison.cosine:.6f}",
        "largest difference": f"{comparison.largest_difference:.3g}",
        "outputs": likeness(comparison),
        "samples": f"{comparison.samples}{' (random)' if comparison.random else ''}",
    }
    for name, text in rows.items():
        if text and metric in (None, name):
            table.add_row(name, text)
    return table


def latency_table(rows: Sequence[tuple[str, Latency]]) -> RenderableType:
    """Return what `bench` prints: each model's median latency and its ratio to the first model's."""
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "latency", "ratio (95 % interval)")
    for name, latency in rows:
        table.add_row(Text(name), milliseconds(latency.seconds), spread(latency))
    return table


def sensitivity_table(rows: Iterable[Loss], metric: str | None = None) -> RenderableType:
    """Return what `sensitivity` prints: schemes by layer, all figures or those of `metric`."""
    from rich.table import Table
    from rich.text import Text

    shown = [(name, title) for name, title in _LOSSES.items() if metric in (None, name)]
    table = Table("layer", "scheme", "saves", *(title for _, title in shown))
    for column in table.columns[:2]:
        column.overflow = "fold"
    for column in table.columns[2:]:
        column.justify, column.no_wrap = "right", True
    last = None
    for row in rows:
        if last not in (None, row.layer):
            table.add_section()
        name, last = row.layer if row.layer != last else "", row.layer
        found = dict(_losses(row.comparison)) if row.comparison else {}
        figures = [found.get(each, "") for each, _ in shown]
        scheme = row.scheme if row.comparison else f"{row.scheme}: {row.what}"
        table.add_row(Text(name), Text(scheme), _saved(row.saved), *figures)
    return table


_LOSSES = {"snr": "SNR", "cosine": "cosine", "agreement": "same class", "top1": "top-1"}


def _losses(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield what each metric says of the loss."""
    yield "snr", decibels(comparison.snr)
    yield "cosine", f"{comparison.cosine:.6f}"
    if comparison.agreement is not None:
        yield "agreement", f"{comparison.agreement:.2%}"
    if comparison.top1 is not None:
        yield "top1", f"{100 * (comparison.top1[1] - comparison.top1[0]):+.2f}"


def _saved(count: int) -> str:
    return f"-{count_bytes(-count)}" if count < 0 else count_bytes(count)


def passages_table(rows: Sequence[Passage]) -> RenderableType:
    """Return what `compare --layers` prints: the error around every layer, the worst ones marked."""
    from rich.table import Table
    from rich.text import Text

    marked = {each.layer for each in worst(rows, WORST)}
    table = Table("layer", "entering", "leaving", "", title="signal to noise, layer by layer")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in rows:
        ratios = ["" if each is None else decibels(each) for each in (row.entering, row.leaving)]
        said = "adds most" if row.layer in marked else ""
        if row.entering is None or row.leaving is None:
            said = "not matched: renamed, fused, gone or in a body"
        table.add_row(Text(row.layer), *ratios, said)
    return table


def ledger_table(rows: Sequence[Row]) -> RenderableType:
    """Return what `inspect` prints: the bytes of each part of a file; they add up to the file's size."""
    from rich.table import Table
    from rich.text import Text

    table = Table("part", "stored as", "bytes", "share")
    for column in table.columns[2:]:
        column.justify = "right"
    total = sum(row.bytes for row in rows)
    for row in sorted(rows, key=lambda row: -row.bytes):
        table.add_row(Text(row.name), Text(row.format), f"{row.bytes:,}", f"{row.bytes / total:.1%}")
    table.add_section()
    table.add_row("all", "", f"{total:,}", "")
    return table


def channels_table(rows: Iterable[Span], hidden: int) -> RenderableType:
    """Return what `channels` prints: units by the layers they span; `hidden` layers are out of reach."""
    from rich.table import Table
    from rich.text import Text

    table = Table("made by", "read by", "units", "channels", "stays because")
    for column in table.columns[:2]:
        column.overflow = "fold"
    for column in table.columns[2:4]:
        column.justify = "right"
    for row in rows:
        made, read = ("\n".join(names) for names in (row.made_by, row.read_by))
        table.add_row(Text(made), Text(read), f"{row.units:,}", f"{row.channels:,}", Text(row.reason or ""))
    if hidden:
        table.add_section()
        table.add_row(f"{hidden} layers", "", "", "", "inside a body or a function")
    return table


def likeness(comparison: Comparison | None) -> str:
    """Return in a few words how the outputs of two models compare."""
    if comparison is None:
        return "not checked"
    if comparison.exact:
        return "agree" if comparison.largest_difference else "equal"
    same = "" if comparison.agreement is None else f", {comparison.agreement:.1%} same prediction"
    return f"{decibels(comparison.snr)}{same}"


def _listed(counts: dict[str, int]) -> str:
    return "\n".join(f"{count} {what}" for what, count in counts.items())


def _named(numbers: Mapping[str, Number]) -> Iterator[str]:
    """Yield what a pass found out about the model, a line each."""
    for name, value in numbers.items():
        yield f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def count_bytes(count: int) -> str:
    """Return a number of bytes for people: 1,234 B, 56.7 kB, 8.90 MB, 1.23 GB (powers of 1,000)."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{three_digits(count / size)} {unit}"
    return f"{count} B"


def three_digits(value: float) -> str:
    """Return a positive number with at least three digits that mean something: 0.0526, 5.26, 526, 5,260."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, places)}f}"


def share(after: int, before: int) -> str:
    """Return `after` as a multiple of `before`."""
    return f"{after / before:.3f}x" if before else ""


def decibels(value: float) -> str:
    """Return a signal-to-noise ratio for people."""
    return "equal" if value == math.inf else f"{value:.1f} dB"


def milliseconds(seconds: float) -> str:
    """Return a latency for people."""
    return f"{three_digits(1000 * seconds)} ms"


def spread(latency: Latency) -> str:
    """Return a latency ratio with its 95 % interval."""
    return f"{latency.ratio:.2f}x ({latency.low:.2f} to {latency.high:.2f}, {latency.pairs} pairs)"
