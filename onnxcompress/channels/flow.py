"""Labels on their way through a graph: what belongs together, and what each weight has to do with it.

Every channel position of every activation gets a label. Operators that only move data are run on the label
arrays; operators that compute have a rule each (``rules.py``), which calls the methods of :class:`Flow`. The
same rules run a second time, on what is kept, to find the new sizes (``removal.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.example import Example
from onnxcompress.channels.labels import TangledError, aligned, compact, components, varying
from onnxcompress.evaluate import label

Rule = Callable[["Flow", ir.Node], None]
Pairs = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Ride:
    """The slices of a constant that belong to channels: input `place` of `node`, along `axes`.

    `labels` has one axis for each of `axes`. `role` says what removing a slice does: it is a layer's own
    output ("out"), how a layer reads a channel ("in"), or something that goes along ("with").
    """

    node: ir.Node
    place: int
    axes: tuple[int, ...]
    labels: np.ndarray
    role: str


@dataclass(frozen=True)
class Blocks:
    """Groups that must keep equal counts: `labels` [positions] and the block each position lies in.

    `order` says that the blocks also decide where a position lies after a shuffle ("rows"), that a reader
    takes them apart ("parts", of any counts; block 0 is what it doesn't take), or that both counts and places
    matter ("groups").
    """

    labels: np.ndarray
    block: np.ndarray
    order: str
    node: ir.Node


@dataclass
class Source:
    """Labels `start` up to `stop` begin at output channels of `node`."""

    node: ir.Node
    start: int
    stop: int


@dataclass
class Flow:
    """Labels of every value of a graph, and all that was found out on the way."""

    example: Example
    refusals: Mapping[ir.Node, str] = field(default_factory=dict)
    arrays: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    rides: dict[tuple[ir.Node, int, tuple[int, ...]], Ride] = field(default_factory=dict)
    blocks: list[Blocks] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    frozen: list[tuple[np.ndarray, str]] = field(default_factory=list)
    causes: set[int] = field(default_factory=set)  # labels that stand for what can't go
    ties: dict[ir.Node, list[Pairs]] = field(default_factory=dict)
    summed: list[tuple[ir.Node, int]] = field(default_factory=list)  # inputs summed over without weights
    unions: list[Pairs] = field(default_factory=list)
    count: int = 0

    # What rules ask

    def labels(self, value: ir.Value | None) -> np.ndarray:
        """Return the labels of `value`; those of one that nothing is known of can't go."""
        assert value is not None
        if value not in self.arrays:
            self.keep(value, f"{value.name} is no channel of a layer")
        return self.arrays[value]

    def before(self, value: ir.Value | None) -> np.ndarray:
        """Return the labels that `value` has in the unchanged model."""
        return self.labels(value)

    def varies(self, value: ir.Value | None, axis: int | None = None) -> bool:
        """Return whether the labels of `value` differ along `axis`, or along any axis."""
        found = varying(self.before(value))
        return bool(found) if axis is None else axis in found

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the shape of `value` on the example."""
        return None if value is None else self.example.shape(value)

    def vector(self, node: ir.Node, place: int, axis: int) -> np.ndarray | None:
        """Return the labels of an input along `axis`; None, with all of them frozen, where others differ."""
        value = node.inputs[place]
        found = varying(self.before(value))
        rank = self.before(value).ndim
        if any(each != axis % max(rank, 1) for each in found):
            self.freeze(self.labels(value), node, "reads channels along several axes")
            return None
        return self.labels(value).reshape(-1)

    # What rules say

    def put(self, value: ir.Value, labels: np.ndarray) -> None:
        """Say that `value` has `labels`."""
        self.arrays[value] = compact(labels)

    def fresh(self, node: ir.Node, count: int) -> np.ndarray:
        """Return `count` new labels for output channels that begin at `node`."""
        self.sources.append(Source(node, self.count, self.count + count))
        self.count += count
        return np.arange(self.count - count, self.count)

    def keep(self, value: ir.Value, reason: str) -> None:
        """Say that nothing of `value` can go, for `reason`: it has one label that stands for that."""
        self.arrays[value] = np.full((1,) * len(self.shape(value) or ()), self.count)
        self.causes.add(self.count)
        self.frozen.append((self.arrays[value].ravel(), reason))
        self.count += 1

    def tie(self, node: ir.Node, first: np.ndarray, second: np.ndarray) -> None:
        """Say that two label arrays, broadcast to each other, live or die together, entry by entry."""
        one, other = np.broadcast_arrays(first, second)
        apart = one != other
        if apart.any():
            self.ties.setdefault(node, []).append((one[apart], other[apart]))

    def unite(self, labels: np.ndarray) -> None:
        """Say that of `labels` [sets, members] those of each set live or die together."""
        if labels.shape[1] > 1:
            pairs = np.broadcast_arrays(labels[:, :1], labels[:, 1:])
            self.unions.append((pairs[0].ravel(), pairs[1].ravel()))

    def freeze(self, labels: np.ndarray, node: ir.Node | None, reason: str) -> None:
        """Say that `labels` can't go because of `node`."""
        where = "" if node is None else f" at {label(node)}"
        self.frozen.append((np.unique(labels), reason + where))

    def ride(
        self, node: ir.Node, place: int, axes: Sequence[int], labels: np.ndarray, role: str = "with"
    ) -> None:
        """Say that the constant input `place` has slices along `axes` that go with `labels`."""
        if place < len(node.inputs) and node.inputs[place] is not None:
            self.rides[node, place, tuple(axes)] = Ride(node, place, tuple(axes), labels, role)

    def divide(self, node: ir.Node, labels: np.ndarray, block: np.ndarray, order: str) -> None:
        """Say that of `labels` [positions] each block, `block` [positions], must keep as many as the others.

        `order` is that of :class:`Blocks`.
        """
        self.blocks.append(Blocks(labels.ravel(), block.ravel(), order, node))

    def select(self, value: ir.Value, axis: int, places: np.ndarray) -> np.ndarray:
        """Return the `places` along `axis` of `value` that are left of those given."""
        return places

    def spell(self, node: ir.Node, where: int | str, values: Iterable[int]) -> None:
        """Say which numbers input or attribute `where` of `node` must hold; before a removal it does."""

    def spell_one(self, node: ir.Node, where: tuple[str, int], index: int, value: int) -> None:
        """Say which number attribute or input `where` of `node` must hold at `index`."""

    def target(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return the shape `value` is to have."""
        return self.shape(value)

    # What comes of it

    def walk(self, nodes: Iterable[ir.Node], rules: Mapping[str, Rule], otherwise: Rule) -> None:
        """Apply to each of `nodes` that isn't constant the rule for its operator."""
        for node in nodes:
            if node.outputs and (all(map(self.example.fixed, node.outputs)) or self._known(node)):
                continue
            standard = node.domain in ("", "ai.onnx")
            try:
                (rules.get(node.op_type, otherwise) if standard else otherwise)(self, node)
            except TangledError as error:
                raise TangledError(str(error), node) from error

    def _known(self, node: ir.Node) -> bool:
        return all(self.example.known(value) is not None for value in node.outputs)

    def unknown(self, node: ir.Node, reason: str) -> None:
        """Freeze all that reaches `node`, and take its outputs as no channels."""
        for value in node.inputs:
            if value is not None and not self.example.fixed(value) and self.varies(value):
                self.freeze(self.labels(value), node, reason)
        for value in node.outputs:
            self.keep(value, f"{reason} at {label(node)}")

    def merge(self, node: ir.Node, values: Sequence[ir.Value], rank: int) -> np.ndarray:
        """Return the labels of what combines `values` entry by entry, of `rank` axes; ties are noted.

        An input of size 1 along an axis says nothing about it: it is repeated there.
        """
        before = [aligned(self.before(value), rank) for value in values]
        now = [aligned(self.labels(value), rank) for value in values]
        base = max(range(len(values)), key=lambda each: (len(varying(before[each])), -each))
        axes = varying(before[base])
        result = now[base]
        for each, value in enumerate(values):
            if each == base:
                continue
            dims = self.sizes(value, rank)
            if any(axis not in axes for axis in varying(before[each])):
                self.freeze(now[each], node, "is combined along another axis")
            elif any(dims[axis] != 1 for axis in axes):
                self.tie(node, result, now[each])
        return result

    def sizes(self, value: ir.Value, rank: int) -> tuple[int, ...]:
        """Return the sizes of `value` for `rank` axes; 2, which is more than one, where they are unknown."""
        shape = self.shape(value)
        return (2,) * rank if shape is None else (1,) * (rank - len(shape)) + tuple(shape)

    def roots(self) -> np.ndarray:
        """Return for each label the smallest label that it lives or dies with."""
        pairs = [*self.unions, *(pair for found in self.ties.values() for pair in found)]
        if not pairs:
            return np.arange(self.count)
        first, second = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        return components(self.count, first, second)


def inner(node: ir.Node) -> list[ir.Graph]:
    """Return the bodies of `node`, and the bodies of the nodes in those."""
    bodies = [each.as_graph() for each in node.attributes.values() if each.type == ir.AttributeType.GRAPH]
    return [each for body in bodies for each in (body, *body.subgraphs())]


def captured(node: ir.Node) -> set[ir.Value]:
    """Return the values that the nodes in the bodies of `node`, and in the bodies in those, read."""
    graphs = inner(node)
    read = {value for graph in graphs for each in graph for value in each.inputs if value is not None}
    return read.union(*(graph.outputs for graph in graphs))
