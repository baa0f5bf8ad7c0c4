"""Analyses as tables for a terminal, as files, and how figures of several models go together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onnxcompress.analysis import SCHEMA, Analysis, as_csv, columns
from onnxcompress.analysis.rows import Row
from onnxcompress.errors import UsageError, unknown
from onnxcompress.report import count_bytes, three_digits

if TYPE_CHECKING:
    from rich.console import RenderableType


MODEL_HEADS = ("params", "MACs", "written", "peak", "footprint", "MACs/P", "MACs/A", "energy")


class Unit(NamedTuple):
    """What figures are told in: its name, and how many of what is counted it is."""

    name: str
    size: float


COUNTS = (Unit("G", 10**9), Unit("M", 10**6), Unit("k", 10**3), Unit("", 1))
SECONDS = (Unit("s", 1), Unit("ms", 1e-3), Unit("us", 1e-6))
PICOJOULES = (Unit("J", 1e12), Unit("mJ", 1e9), Unit("uJ", 1e6), Unit("nJ", 1e3))


class Correlation(NamedTuple):
    """How two figures of several models go together: from -1 to 1; None where one is always the same."""

    first: str
    second: str
    coefficient: float | None

    def __str__(self) -> str:
        """Return it for people."""
        told = (
            "not defined, one is the same for all" if self.coefficient is None else f"{self.coefficient:+.2f}"
        )
        return f"PPMCC({self.first}, {self.second}): {told}"


class Fit(NamedTuple):
    """What a model needs of a memory of a microcontroller, in bytes, and what there is."""

    memory: str
    needed: int
    there: int

    @property
    def fits(self) -> bool:
        """Whether there is enough."""
        return self.needed <= self.there

    def __str__(self) -> str:
        """Return it for people."""
        over = f"{count_bytes(abs(self.there - self.needed))} {'free' if self.fits else 'too much'}"
        return f"{self.memory}: {count_bytes(self.needed)} of {count_bytes(self.there)}, {over}"


def correlate(analyses: Sequence[Analysis], pair: str) -> Correlation:
    """Return Pearson's product-moment correlation coefficient of two columns over three or more models.

    UsageError where `pair` isn't two of :func:`onnxcompress.analysis.columns` with a comma between them, for
    fewer models, and for a column that isn't known of every model.
    """
    if len(analyses) < 3:
        raise UsageError(f"correlate: {len(analyses)} models were given, expected three or more")
    names = [name.strip() for name in pair.split(",")]
    if len(names) != 2:
        raise UsageError(f"correlate: {pair!r} was given, expected two columns, such as macs,energy")
    values = []
    for name in names:
        if name not in columns():
            raise UsageError(unknown("column", name, columns()))
        found = [each.column(name) for each in analyses]
        values.append([value for value in found if value is not None])
        if len(values[-1]) < len(found):
            source = analyses[found.index(None)].source
            raise UsageError(f"correlate: {name} of {source} is not known, expected a number for every model")
    return Correlation(names[0], names[1], pearson(values[0], values[1]))


def pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return sum (x - mean)(y - mean) / sqrt(sum (x - mean)^2 * sum (y - mean)^2); None for 0 / 0."""
    mean_x, mean_y = math.fsum(first) / len(first), math.fsum(second) / len(second)
    x, y = [each - mean_x for each in first], [each - mean_y for each in second]
    scale = math.sqrt(math.fsum(each * each for each in x)) * math.sqrt(math.fsum(each * each for each in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / scale if scale else None


def fits(analysis: Analysis, flash: int | None, sram: int | None) -> list[Fit]:
    """Return how the file fits into `flash` and activations in the best order into `sram`, where given."""
    found = []
    if flash is not None:
        found.append(Fit("flash", analysis.file_bytes, flash))
    if sram is not None:
        found.append(Fit("SRAM", analysis.memory.best_order, sram))
    return found


def document(analyses: Iterable[Analysis], correlations: Iterable[Correlation] = ()) -> str:
    """Return analyses as one JSON document; docs/analysis.md has its schema."""
    data = {
        "schema": SCHEMA,
        "models": [each.as_dict() for each in analyses],
        "correlations": [each._asdict() for each in correlations],
    }
    return json.dumps(data, indent=2) + "\n"


def spreadsheet(analyses: Iterable[Analysis]) -> str:
    """Return a line for each node of each model, and one for the whole of it, as comma-separated values."""
    return as_csv((each.source, row) for each in analyses for row in (*each.rows, each.total))


def model_tables(analysis: Analysis) -> Iterator[RenderableType]:
    """Yield what `analyze` prints of one model: its figures, and its nodes."""
    from rich.table import Table
    from rich.text import Text

    summary = Table("", "", "", title=Text(analysis.source), title_justify="left", show_header=False)
    for figure in figures(analysis):
        summary.add_row(*map(Text, figure))
    yield summary
    table = Table(box=None, pad_edge=False)
    table.add_column("node", overflow="fold", min_width=14)
    for head in heads(analysis):
        table.add_column(head, justify="right", no_wrap=True)
    for row in filter(matters, analysis.rows):
        table.add_row(Text(f"{row.name} {row.kind}"), *cells(row, analysis))
    if others := [row for row in analysis.rows if not matters(row)]:
        table.add_row(f"{len(others)} others", *cells(together(others), analysis))
    table.add_row("all", *cells(analysis.total, analysis))
    yield table


def matters(row: Row) -> bool:
    """Return whether a node has a line of its own: it holds weights, multiplies, or isn't counted."""
    return bool(row.parameters or row.macs or row.unknown)


def together(rows: Iterable[Row]) -> Row:
    """Return the sums of what is known of `rows` as one."""
    rows = list(rows)
    found = Row("", "", macs=0)
    for name in (
        "parameters",
        "macs",
        "written",
        "moved_bytes",
        "compute_energy",
        "sram_energy",
        "dram_energy",
        "roofline_seconds",
    ):
        setattr(found, name, sum(getattr(row, name) or 0 for row in rows))
    found.seconds = sum(row.seconds or 0 for row in rows)
    return found


def heads(analysis: Analysis) -> list[str]:
    """Return the heads of the figures that nodes of `analysis` have."""
    timed = zip(("roofline", "measured"), _timed(analysis), strict=True)
    return ["params", "MACs", "written", "MACs/B", "energy", *(head for head, known in timed if known)]


def _timed(analysis: Analysis) -> tuple[bool, bool]:
    """Return whether there is a roofline, and whether nodes were timed."""
    return analysis.machine is not None, analysis.total.seconds is not None


def cells(row: Row, analysis: Analysis) -> list[str]:
    """Return the figures of a line of the table of nodes, one under each of the :func:`heads`."""
    timed, found = _timed(analysis), [short(row.parameters)]
    if row.unknown and row.macs is None:
        return [*found, "?", "?", "?", "?", *("?" for known in timed if known)]
    intensity = three_digits(row.intensity) if row.intensity else ""
    found += [short(row.macs or 0), short(row.written or 0), intensity, joules(row.energy or 0)]
    bound = f" {row.bound[0].upper()}" if row.bound else ""
    measured = "" if row.measured_with or row.seconds is None else duration(row.seconds)
    both = (duration(row.roofline_seconds or 0) + bound, measured)
    return found + [cell for cell, known in zip(both, timed, strict=True) if known]


def figures(analysis: Analysis) -> Iterator[tuple[str, str, str]]:
    """Yield the figures of a whole model: what, how much, and a remark."""
    total, memory = analysis.total, analysis.memory
    shapes = "; ".join(f"{name} {'x'.join(map(str, dims))}" for name, dims in analysis.shapes.items())
    yield "inputs", "", shapes
    part = f"{total.nonzeros / total.parameters:.1%} non-zero" if total.parameters else ""
    yield "parameters", f"{total.parameters:,}", part
    yield "file", count_bytes(analysis.file_bytes), f"{count_bytes(total.stored_bytes)} of weights"
    macs = total.macs or 0
    sums = [total.unknown] if total.unknown else []
    effective = [f"{total.effective_macs:,} with weights that aren't zero"] * (total.effective_macs != macs)
    yield "MACs", f"{macs:,}", ", ".join(effective + sums)
    yield "activations", f"{total.written or 0:,}", ", ".join(["elements written", *sums])
    best = "no order takes less" if memory.optimal else "the best order found"
    yield "peak activations", count_bytes(memory.best_order), best
    yield "", count_bytes(memory.file_order), "in the file's order"
    yield "footprint", count_bytes(analysis.footprint), f"{count_bytes(total.weight_bytes)} of it weights"
    for name, value in (
        ("MACs/parameter", total.macs_per_parameter),
        ("MACs/activation", total.macs_per_activation),
        ("MACs/byte", total.intensity),
    ):
        yield name, "" if value is None else three_digits(value), ""
    parts = (("compute", total.compute_energy), ("SRAM", total.sram_energy), ("DRAM", total.dram_energy))
    yield (
        "energy",
        joules(total.energy or 0),
        ", ".join(f"{name} {joules(part or 0)}" for name, part in parts),
    )
    if analysis.machine is not None:
        machine = f"{analysis.target}: {analysis.machine.what}"
        yield "roofline", duration(total.roofline_seconds or 0), f"{machine}; C: compute, M: memory"
    if total.seconds is not None:
        yield "time measured", duration(total.seconds), "the sum of the nodes below"
    if total.crossbars is not None:
        kept = f"{total.crossbars.kept_arrays:,} without rows and columns of zeros"
        yield "crossbars", f"{total.crossbars.arrays:,}", kept


def models_table(analyses: Iterable[Analysis]) -> RenderableType:
    """Return what `analyze` prints of several models: a line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for head in MODEL_HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for each in analyses:
        table.add_row(Text(Path(each.source).name), *model_cells(each))
    return table


def model_cells(analysis: Analysis) -> list[str]:
    """Return the figures of a whole model, one under each of MODEL_HEADS."""
    total = analysis.total
    ratios = (total.macs_per_parameter, total.macs_per_activation)
    return [
        short(total.parameters),
        short(total.macs or 0),
        short(total.written or 0),
        count_bytes(analysis.memory.best_order),
        count_bytes(analysis.footprint),
        *("" if ratio is None else three_digits(ratio) for ratio in ratios),
        joules(total.energy or 0),
    ]


def unit_of(value: float, units: Sequence[Unit]) -> Unit:
    """Return the largest of `units`, given from large to small, that `value` has one of; else the last."""
    return next((unit for unit in units if value >= unit.size), units[-1])


def short(count: int) -> str:
    """Return a count for people, with three digits: 788, 1.24k, 349M, 3.08G."""
    unit = unit_of(count, COUNTS)
    return f"{three_digits(count / unit.size)}{unit.name}" if unit.name else str(count)


def duration(seconds: float) -> str:
    """Return a time for people, in us, ms or s."""
    return _told(seconds, SECONDS)


def joules(picojoules: float) -> str:
    """Return an energy for people, in nJ, uJ, mJ or J."""
    return _told(picojoules, PICOJOULES)


def _told(value: float, units: Sequence[Unit]) -> str:
    unit = unit_of(value, units)
    return f"{three_digits(value / unit.size)} {unit.name}" if value else "0"
