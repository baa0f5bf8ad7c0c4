"""What pages show of energy: a line for each kind of layer, its parts as shares of the largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnxcompress.analysis.tables import joules
from onnxcompress.energy import Spent


class Part(NamedTuple):
    """The energy of a kind of layers as text, and its parts as shares of the longest bar."""

    kind: str
    nodes: int
    cells: list[str]
    compute: float
    sram: float
    dram: float


class Split(NamedTuple):
    """The energy of a model by kinds of layers, and in all."""

    total: str
    rows: list[Part]


def split(spent: Sequence[Spent], longest: float) -> Split:
    """Return the lines of `spent`; a bar of full length stands for `longest` picojoules."""
    total = sum(each.total for each in spent)
    return Split(joules(total), [_part(each, total or 1.0, longest or 1.0) for each in spent])


def _part(each: Spent, total: float, longest: float) -> Part:
    parts = (each.compute, each.sram, each.dram)
    if None in parts:
        return Part(each.kind, each.nodes, ["?", "?", "?", "?", "not counted"], 0.0, 0.0, 0.0)
    known = [part or 0.0 for part in parts]
    cells = [*map(joules, known), joules(each.total), f"{each.total / total:.1%}"]
    return Part(each.kind, each.nodes, cells, *(part / longest for part in known))
