"""What the page of `analyze` shows: figures of models, their nodes, energy and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from onnxcompress.analysis import Analysis
from onnxcompress.analysis.rows import Row, spent_by_kind
from onnxcompress.analysis.tables import (
    COUNTS,
    MODEL_HEADS,
    PICOJOULES,
    SECONDS,
    Unit,
    cells,
    figures,
    heads,
    matters,
    model_cells,
    together,
    unit_of,
)
from onnxcompress.page import FEWEST, ROWS, render
from onnxcompress.page.charts import Axis, columns, grouped, lines
from onnxcompress.page.energies import Split, split
from onnxcompress.page.layers import Curves

SECTIONS = {
    "totals": "In all",
    "nodes": "Node by node",
    "energy": "Energy by kind of layer",
    "memory": "Memory of activations",
}
COLUMNS = 140  # of a chart: two pixels each
HELD = 10  # steps with the most memory that are listed
BYTES = (Unit("GB", 10**9), Unit("MB", 10**6), Unit("kB", 10**3), Unit("bytes", 1))
_CHARTS: tuple[tuple[str, Sequence[Unit], Callable[[Row], float | None]], ...] = (
    ("parameters", COUNTS, lambda row: row.parameters),
    ("MACs", COUNTS, lambda row: row.macs),
    ("activations written", COUNTS, lambda row: row.written),
    ("energy", PICOJOULES, lambda row: row.energy),
    ("roofline time", SECONDS, lambda row: row.roofline_seconds),
    ("measured time", SECONDS, lambda row: row.seconds),
)


class Line(NamedTuple):
    """A node in the table of all; `share` is the length of its bar."""

    number: str
    name: str
    kind: str
    cells: list[str]
    share: float


class Held(NamedTuple):
    """A node while which much memory is in use; `share` is that of the peak."""

    step: int
    name: str
    bytes: int
    share: float


class Model:
    """A model on the page; `id` begins all its anchors, `most` are the rows of a long table."""

    def __init__(self, id: str, analysis: Analysis, most: int) -> None:
        self.id, self.analysis, self.most = id, analysis, most
        self.title = analysis.source or "model in memory"

    @property
    def figures(self) -> list[tuple[str, str, str]]:
        """The figures of the whole model, each with a name."""
        found: list[tuple[str, str, str]] = []
        for what, value, remark in figures(self.analysis):
            found.append((what or found[-1][0], value, remark))
        return found

    @property
    def cells(self) -> list[str]:
        """Its figures beside those of other models."""
        return model_cells(self.analysis)

    @property
    def heads(self) -> list[str]:
        """The heads of the table of nodes."""
        return ["#no.", "node", "kind", *(f"#{head}" for head in heads(self.analysis))]

    @cached_property
    def _shown(self) -> list[Row]:
        """The nodes that have a line of their own, in the file's order."""
        found = [row for row in self.analysis.rows if matters(row)]
        most = sorted(found, key=lambda row: (row.energy or 0, row.parameters), reverse=True)[: self.most]
        names = {row.name for row in most}
        return [row for row in found if row.name in names]

    @property
    def lines(self) -> list[Line]:
        """The lines of the table of nodes, the last being the sum of all."""
        analysis = self.analysis
        total = analysis.total.energy or 1.0
        numbers = {row.name: number for number, row in enumerate(analysis.rows, 1)}
        found = [
            Line(
                str(numbers[row.name]), row.name, row.kind, cells(row, analysis), (row.energy or 0.0) / total
            )
            for row in self._shown
        ]
        shown = {row.name for row in self._shown}
        if others := [row for row in analysis.rows if row.name not in shown]:
            rest = together(others)
            name = f"({len(others)} others)"
            found.append(Line("", name, "", cells(rest, analysis), (rest.energy or 0.0) / total))
        return [*found, Line("", "all", "", cells(analysis.total, analysis), 0.0)]

    @property
    def charts(self) -> list[Curves]:
        """A chart of each figure that is known of nodes, by their numbers."""
        return [found for chart in _CHARTS if (found := self._chart(*chart)) is not None]

    def _chart(
        self, name: str, units: Sequence[Unit], figure: Callable[[Row], float | None]
    ) -> Curves | None:
        rows = self.analysis.rows
        values = [figure(row) or 0.0 for row in rows]
        if not any(values):
            return None
        shown = grouped(values, COLUMNS, sum)
        unit = unit_of(max(shown), units)
        most = max(range(len(values)), key=values.__getitem__)
        caption = (
            f"{name.capitalize() if name.islower() else name} by node in the file's order: "
            f"most, {values[most] / sum(values):.1%}, at {rows[most].name} (no. {most + 1})."
        )
        size = -(-len(values) // len(shown))
        across = "node" if size == 1 else f"nodes, {size} a column"
        if size > 1:
            caption += f" A column stands for {size} nodes."
        scaled = [value / unit.size for value in shown]
        up = Axis.above(f"{name}, {unit.name}" if unit.name else name, scaled)
        return Curves(columns(scaled, across, up, caption), caption)

    @property
    def energy(self) -> Split:
        """The energy by kind of layer."""
        found = spent_by_kind(self.analysis.rows)
        return split(found, max((each.total for each in found), default=0.0))

    @property
    def memory(self) -> Curves | None:
        """The memory in use over the nodes as they run; None where there are fewer than two."""
        memory = self.analysis.memory
        if len(memory.live) < 2:
            return None
        series = [memory.live] if memory.live == memory.file_live else [memory.live, memory.file_live]
        unit = unit_of(max(map(max, series)), BYTES)
        paths = [list(_steps([value / unit.size for value in each])) for each in series]
        names = "Bytes in use while each node runs, in the order that takes least"
        told = ", which is the file's." if len(series) == 1 else " (1) and in the file's (2)."
        across = Axis("nodes that have run", 0.0, float(len(memory.live)))
        up = Axis.above(f"activations, {unit.name}", [y for each in paths for _, y in each])
        return Curves(lines(paths, across, up, names + told), names + told)

    @property
    def held(self) -> list[Held]:
        """The nodes while which the most memory is in use, in the best order."""
        memory = self.analysis.memory
        steps = sorted(range(len(memory.live)), key=lambda step: -memory.live[step])[:HELD]
        peak = memory.best_order or 1
        return [
            Held(step + 1, memory.order[step], memory.live[step], memory.live[step] / peak) for step in steps
        ]


def analyses_page(analyses: Sequence[Analysis], told: Sequence[str] = ()) -> str:
    """Return the HTML page of what models cost; `told` are lines about them, such as correlations.

    Long tables are cut, the largest rows kept; the page says so. UsageError where jinja2 is not installed.
    """
    most = max(FEWEST, ROWS // len(analyses))
    models = [Model(f"model-{number}", each, most) for number, each in enumerate(analyses, 1)]
    title = models[0].title if len(models) == 1 else f"{len(models)} models"
    content = {
        "models": models,
        "model_sections": SECTIONS,
        "heads": ["model", *(f"#{head}" for head in MODEL_HEADS)],
        "told": told,
    }
    return render("analyses.html.jinja", f"Cost of {title}", content)


def _steps(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield the corners of steps as high as `values`, over their number."""
    found = grouped(values, COLUMNS, max)
    wide = len(values) / len(found)
    for place, value in enumerate(found):
        yield wide * place, value
        yield wide * (place + 1), value
