"""Removing channels: the rules once more, on the labels that are kept, give every new size and slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.example import Shape, measured
from onnxcompress.channels.flow import Blocks, Flow, Ride
from onnxcompress.channels.labels import TangledError, box, compact_like, matched, slabs, varying
from onnxcompress.evaluate import run_node

Spelling = tuple[ir.Node, "int | str"]


@dataclass
class Removal(Flow):
    """The flow of the labels that `kept` [labels, bool] keeps, in a graph whose whole flow is `old`."""

    old: Flow = field(kw_only=True)
    kept: np.ndarray = field(kw_only=True)
    spelled: dict[Spelling, list[int]] = field(default_factory=dict)
    _now: dict[ir.Value, np.ndarray | None] = field(default_factory=dict)
    _tied: dict[ir.Node, np.ndarray] = field(default_factory=dict)

    def labels(self, value: ir.Value | None) -> np.ndarray:
        """Return what is left of the labels of `value`."""
        found = self.arrays.get(value) if value is not None else None
        return self.old.labels(value) if found is None else found

    def before(self, value: ir.Value | None) -> np.ndarray:
        """Return the labels that `value` has in the unchanged model."""
        return self.old.labels(value)

    def put(self, value: ir.Value, labels: np.ndarray) -> None:
        """Say that `value` keeps `labels`."""
        self.arrays[value] = compact_like(labels, self.old.labels(value))

    def fresh(self, node: ir.Node, count: int) -> np.ndarray:
        """Return what is left of the labels that begin at `node`."""
        source = self.old.sources[len(self.sources)]
        assert source.node is node
        assert source.stop - source.start == count
        self.sources.append(source)
        return source.start + np.flatnonzero(self.kept[source.start : source.stop])

    def keep(self, value: ir.Value, reason: str) -> None:
        """Leave the one label that stands for what can't go."""
        self.arrays[value] = self.old.labels(value)

    def tie(self, node: ir.Node, first: np.ndarray, second: np.ndarray) -> None:
        """Check that what meets now has met before."""
        one, other = np.broadcast_arrays(first, second)
        apart = one != other
        if not apart.any():
            return
        known = self._tied.get(node)
        if known is None:
            pairs = self.old.ties.get(node, [])
            codes = [a * self.old.count + b for a, b in pairs] or [np.zeros(0, np.int64)]
            known = self._tied[node] = np.unique(np.concatenate(codes))
        if not np.isin(one[apart] * self.old.count + other[apart], known).all():
            raise TangledError("channels would meet that did not meet before")

    def freeze(self, labels: np.ndarray, node: ir.Node | None, reason: str) -> None:
        """Do nothing: what is frozen is kept."""

    def unite(self, labels: np.ndarray) -> None:
        """Do nothing: what belongs together is kept or goes together."""

    def divide(self, node: ir.Node, labels: np.ndarray, block: np.ndarray, order: str) -> None:
        """Check that no channel comes to lie in another block than before."""
        past = self.old.blocks[len(self.blocks)]
        self.blocks.append(past)
        if order == "parts":
            return
        now = Blocks(labels.ravel(), block.ravel(), order, node)
        came = past.block[matched(now.labels, past.labels)]
        pairs = np.unique(np.stack([now.block, came]), axis=1)
        if len(np.unique(pairs[0])) != pairs.shape[1] or len(np.unique(pairs[1])) != pairs.shape[1]:
            raise TangledError("channels would change their group")
        if order != "rows" and len(np.unique(now.block)) != len(np.unique(past.block)):
            raise TangledError("a group would lose all its channels")

    def select(self, value: ir.Value, axis: int, places: np.ndarray) -> np.ndarray:
        """Return where the old `places` along `axis` of `value` lie now, those that are left."""
        origin = slabs(self.labels(value), self.before(value), axis)
        now = np.full(self.before(value).shape[axis], -1)
        now[origin] = np.arange(len(origin))
        found = now[places]
        if not len(found := found[found >= 0]):
            raise TangledError("nothing would be left to take")
        return np.asarray(found)

    def spell(self, node: ir.Node, where: int | str, values: Iterable[int]) -> None:
        """Remember which numbers input or attribute `where` of `node` must hold."""
        self.spelled[node, where] = [int(each) for each in np.atleast_1d(np.asarray(values))]

    def spell_one(self, node: ir.Node, where: tuple[str, int], index: int, value: int) -> None:
        """Remember which number attribute or input `where` of `node` must hold at `index`."""
        attribute, place = where
        key: int | str = attribute if attribute in node.attributes else place
        if (node, key) not in self.spelled:
            known = self.example.known(node.inputs[place]) if key == place else None
            old = node.attributes.get_ints(attribute, ()) if known is None else known
            self.spelled[node, key] = [int(each) for each in old]
        self.spelled[node, key][index] = value

    def target(self, value: ir.Value) -> Shape | None:
        """Return the shape `value` will have."""
        shape, before = self.shape(value), self.before(value)
        axes = varying(before)
        if shape is None or not axes:
            return shape
        if value in self.arrays:
            sizes: Sequence[int] = [self.arrays[value].shape[axis] for axis in axes]
        else:
            sizes = box(self.kept[before].reshape([before.shape[axis] for axis in axes]))
        now = dict(zip(axes, sizes, strict=True))
        return tuple(now.get(axis, size) for axis, size in enumerate(shape))

    def content(self, value: ir.Value | None) -> np.ndarray | None:
        """Return what `value` would compute to by itself once channels are removed, where that is known."""
        if value is None or self.example.known(value) is None:
            return None
        if self.example.fixed(value):
            return self.example.known(value)
        if value not in self._now:
            self._now[value] = self._content(value)
        return self._now[value]

    def _content(self, value: ir.Value) -> np.ndarray | None:
        node = value.producer()
        assert node is not None
        if node.op_type in ("Shape", "Size"):
            assert node.inputs[0] is not None
            shape = self.target(node.inputs[0])
            return None if shape is None else measured(node, shape)
        inputs = [self.content(each) for each in node.inputs]
        if any(now is None and each is not None for now, each in zip(inputs, node.inputs, strict=True)):
            return None
        return run_node(node, inputs, self.example.version)[list(node.outputs).index(value)]


class Slices(NamedTuple):
    """How to slice a constant: `plain` takes places along single axes, then `rows` along one axis by row.

    `rows` is (axis, places [rows, n]); rows lie along axis 0, each for as many slices as there are of it.
    """

    plain: dict[int, np.ndarray]
    rows: list[tuple[int, np.ndarray]]
    table: tuple[tuple[int, ...], tuple[np.ndarray, ...]] | None = None

    def shape(self, old: Sequence[int]) -> Shape:
        """Return the shape that is left of `old`."""
        sizes = list(old)
        for axis, places in self.plain.items():
            sizes[axis] = len(places)
        for axis, places in self.rows:
            sizes[axis] = places.shape[1]
        if self.table is not None:
            for axis, size in zip(self.table[0], self.table[1][0].shape, strict=True):
                sizes[axis] = size
        return tuple(sizes)

    def take(self, array: np.ndarray) -> np.ndarray:
        """Return what is left of `array`."""
        for axis, places in self.plain.items():
            array = array.take(places, axis)
        for axis, places in self.rows:
            each = np.repeat(places, array.shape[0] // len(places), axis=0)
            dims = [1] * array.ndim
            dims[0], dims[axis] = each.shape
            array = np.take_along_axis(array, each.reshape(dims), axis)
        if self.table is not None:
            axes, table = self.table
            moved = np.moveaxis(array, axes, range(len(axes)))
            array = np.moveaxis(moved[table], range(len(axes)), axes)
        return array


def slices(rides: Sequence[tuple[Ride, Ride]], shape: Shape) -> Slices | None:
    """Return how to slice a constant of `shape` whose rides (old, new) are `rides`; None: not at all."""
    found = Slices({}, [])
    for old, new in rides:
        places = matched(new.labels, old.labels)
        if places.size == old.labels.size and np.array_equal(places.ravel(), np.arange(places.size)):
            continue
        if len(old.axes) == 1:
            found.plain[old.axes[0]] = places
            continue
        coordinates = np.unravel_index(places, old.labels.shape)
        if (old.axes[0] == 0 and old.role != "with") or old.node.op_type in ("LSTM", "GRU", "RNN"):
            if not (coordinates[0] == np.arange(len(places))[:, None]).all():
                raise TangledError("channels would change their group")
            found.rows.append((old.axes[1], coordinates[1]))
        else:
            return Slices(found.plain, found.rows, (old.axes, coordinates))
    return found if found.plain or found.rows else None


def plan(
    old: Flow, kept: np.ndarray, walk: Callable[[Flow], None]
) -> tuple[Removal, dict[tuple[ir.Node, int], Slices]]:
    """Return the flow of what is `kept` [labels, bool] and how to slice each constant, (node, place).

    `walk` applies the rules to a flow. TangledError, with the node in `node`, where that can't be arranged.
    """
    removal = Removal(old.example, old.refusals, old=old, kept=kept)
    return removal, arranged(removal, walk)


def arranged(removal: Removal, walk: Callable[[Flow], None]) -> dict[tuple[ir.Node, int], Slices]:
    """Let the fresh `removal` flow, and return how to slice each constant; as :func:`plan` does."""
    walk(removal)
    grouped: dict[tuple[ir.Node, int], list[tuple[Ride, Ride]]] = {}
    for key, ride in removal.old.rides.items():
        grouped.setdefault((ride.node, ride.place), []).append((ride, removal.rides[key]))
    found = {}
    for (node, place), rides in grouped.items():
        value = node.inputs[place]
        assert value is not None
        try:
            cut = slices(rides, removal.example.shape(value) or ())
        except TangledError as error:
            raise TangledError(str(error), node) from error
        if cut is not None and _in_blocks(removal.old, value):
            raise TangledError("its weight is quantized in blocks", node)
        if cut is not None:
            found[node, place] = cut
    return found


def _in_blocks(flow: Flow, value: ir.Value) -> bool:
    """Return whether `value` is dequantized by scales of its own for each block."""
    maker = value.producer()
    return (
        maker is not None
        and maker.op_type == "DequantizeLinear"
        and len(flow.example.shape(maker.inputs[1]) or ()) > 1  # type: ignore[arg-type]
    )
