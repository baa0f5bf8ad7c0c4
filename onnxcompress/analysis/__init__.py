"""What a model costs, node by node and in all: counts, memory, energy, and the time it takes at least."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxcompress
from onnxcompress.analysis.host import host
from onnxcompress.analysis.profile import profile
from onnxcompress.analysis.rows import Counter, Row, bytes_of, spend
from onnxcompress.analysis.settle import Settled, settle
from onnxcompress.crossbar import Crossbars
from onnxcompress.energy import Energy
from onnxcompress.liveness import Plan, plan
from onnxcompress.runtimes.onnxruntime import OnnxRuntime
from onnxcompress.target import Machine, find_target

SCHEMA = 1  # of the JSON document: docs/analysis.md
RATIOS = ("energy", "macs_per_parameter", "macs_per_activation", "intensity")


@dataclass(frozen=True)
class Memory:
    """Bytes that activations take at most: in the file's order, and in the best one found.

    `order` are the names of the nodes in that one and `live` the bytes in use while each runs; `file_live`
    are those in the file's order. Nodes that make views of what there is are in neither. `optimal` says that
    no order takes less. `unsized` values whose size isn't known are left out.
    """

    file_order: int
    best_order: int
    optimal: bool
    order: list[str]
    live: list[int]
    file_live: list[int]
    unsized: int = 0


@dataclass
class Analysis:
    """What a model costs for inputs of `shapes`; `total` has a weight that several nodes read once."""

    source: str
    version: str
    shapes: dict[str, tuple[int, ...]]
    target: str | None
    machine: Machine | None
    energy: Energy
    rows: list[Row]
    total: Row
    memory: Memory
    file_bytes: int
    notes: list[str] = field(default_factory=list)

    @property
    def footprint(self) -> int:
        """Bytes of memory to run it: its weights, and its activations in the best order."""
        return self.total.weight_bytes + self.memory.best_order

    def column(self, name: str) -> float | None:
        """Return the figure `name` of the whole model: one of :func:`columns`."""
        found = {"peak": self.memory.best_order, "footprint": self.footprint, "file_bytes": self.file_bytes}
        value: Any = found[name] if name in found else getattr(self.total, name)
        return value if value is None else float(value)

    def as_dict(self) -> dict[str, Any]:
        """Return the analysis as plain data; docs/analysis.md tells the fields."""
        return {
            **asdict(self),
            "energy": self.energy.numbers,
            "footprint": self.footprint,
            "rows": list(map(as_dict, self.rows)),
            "total": as_dict(self.total),
        }


def columns() -> list[str]:
    """Return the names of the figures that a whole model has."""
    kinds = {each.name: str(each.type) for each in fields(Row)}
    numbers = [name for name, kind in kinds.items() if kind.startswith(("int", "float")) and name != "bits"]
    return [*numbers, *RATIOS, "peak", "footprint", "file_bytes"]


def as_dict(row: Row) -> dict[str, Any]:
    """Return the figures of `row` by name, those that follow from others included."""
    found = asdict(row) | {name: getattr(row, name) for name in RATIOS}
    return found | {"crossbars": row.crossbars._asdict() if row.crossbars else None}


def as_csv(rows: Iterable[tuple[str, Row]]) -> str:
    """Return `rows`, each with the name of its model, as comma-separated values, empty where unknown."""
    text = io.StringIO()
    heads = ["model", *(name for name in as_dict(Row("", "")) if name != "crossbars")]
    heads += [f"crossbar_{name}" for name in Crossbars._fields]
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    for model, row in rows:
        data = {"model": model, **as_dict(row)}
        crossbars = data.pop("crossbars") or {}
        writer.writerow(data | {f"crossbar_{name}": value for name, value in crossbars.items()})
    return text.getvalue()


def analyze(
    source: str | Path | ir.Model,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    target: str | None = None,
    machine: Machine | None = None,
    energy: Energy = Energy(),  # noqa: B008  frozen
    crossbar: tuple[int, int] | None = None,
    measure: bool = False,
    threads: int = 0,
    seed: int = 0,
) -> Analysis:
    """Return what the model `source`, a path or in memory, costs for one inference.

    `shapes` gives inputs their shapes; dimensions left open are 1. `target` is a name that
    :mod:`onnxcompress.target` knows, whose roofline and memory on the chip count; "host" is measured, which
    takes a second. `machine` gives other figures. Without either, weights and activations all come from DRAM.
    With it, activations stay on the chip while those in use fit there, and weights where all of them fit
    beside the activations. `crossbar` is the size of ReRAM arrays. With `measure`, onnxruntime with so many
    `threads` (0: as it likes) times the nodes, on inputs drawn from `seed`.

    Raises UsageError where `shapes` contradict the model, CompressError where it can't be read.
    """
    machine = machine or find_machine(target, threads)
    settled = settle(source, shapes or {})
    graph = settled.model.graph
    counter = Counter(settled, crossbar)
    rows = list(counter.rows())
    layout = plan(graph, lambda value: bytes_of(value) or 0)
    memory = _memory(layout, settled)
    total = counter.total(rows)
    on_chip = machine.on_chip if machine is not None else 0
    spare = on_chip >= total.weight_bytes + memory.file_order
    for row, live in zip(rows, _live(layout, graph), strict=True):
        held = row.weight_bytes if row.moved_bytes else 0
        moved = (row.moved_bytes or 0) - held
        spend(row, energy, machine, (0 if spare else held) + (0 if live <= on_chip else moved))
    notes = [*settled.notes, *_notes(rows, memory)]
    if target is not None and machine is None:
        notes.append(f"{target} stands for many machines: no roofline, and everything comes from DRAM")
    if measure:
        notes += _measure(rows, settled, threads, seed)
    for name in ("compute_energy", "sram_energy", "dram_energy", "roofline_seconds", "seconds"):
        found = [value for row in rows if (value := getattr(row, name)) is not None]
        setattr(total, name, sum(found) if found else None)
    path = Path(source) if isinstance(source, str | Path) else None
    return Analysis(
        str(path or ""),
        onnxcompress.__version__,
        settled.shapes,
        target,
        machine,
        energy,
        rows,
        total,
        memory,
        settled.file_bytes,
        notes,
    )


def find_machine(target: str | None, threads: int = 0) -> Machine | None:
    """Return the processor of the kind `target`, measured with `threads` for "host"; UsageError for none."""
    if target == "host":
        return host(OnnxRuntime.make(threads=threads))
    return find_target(target).machine if target is not None else None


def _live(layout: Plan, graph: ir.Graph) -> list[int]:
    """Return the bytes of activations in use while each node runs, in the file's order; of views, 0."""
    live = dict(zip((step.node for step in layout.steps), layout.trace(), strict=True))
    return [live.get(node, 0) for node in graph]


def _memory(layout: Plan, settled: Settled) -> Memory:
    best = layout.best()
    values = [*settled.model.graph.inputs, *(each for node in settled.model.graph for each in node.outputs)]
    return Memory(
        layout.peak(),
        best.peak,
        best.optimal,
        [layout.steps[each].node.name or "" for each in best.steps],
        layout.trace(best.steps),
        layout.trace(),
        sum(bytes_of(value) is None for value in values if value.uses() or value.is_graph_output()),
    )


def _measure(rows: Iterable[Row], settled: Settled, threads: int, seed: int) -> Iterator[str]:
    """Fill in the seconds of `rows`, and yield what a user should know about them."""
    found = profile(settled.plain, settled.shapes, {row.name: row.macs or 0 for row in rows}, threads, seed)
    for row in rows:
        row.seconds = found.seconds.get(row.name)
        row.measured_with = found.groups.get(row.name)
    yield "times are of onnxruntime on random inputs, and of all nodes it made one with the node beside them"
    if found.added:
        yield f"{1e3 * found.added:.3g} ms more went to nodes that onnxruntime added, as for other layouts"


def _notes(rows: Iterable[Row], memory: Memory) -> Iterator[str]:
    """Yield what isn't counted."""
    reasons: dict[str, list[Row]] = {}
    for row in rows:
        if row.unknown:
            reasons.setdefault(row.unknown, []).append(row)
    for reason, found in reasons.items():
        names = ", ".join(f"{row.name} ({row.op})" for row in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        yield f"not counted, sums are without them: {names}{more}: {reason}"
    if memory.unsized:
        yield f"peaks are without {memory.unsized} values whose size is not known"
