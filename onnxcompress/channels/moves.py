"""Operators that only move data, run on label arrays. Source: the ONNX operator specification."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.flow import Flow, Rule
from onnxcompress.channels.labels import TangledError, aligned, reshaped, varying
from onnxcompress.evaluate import label


def reshape(flow: Flow, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the labels in another shape; new slices keep equal counts."""
    value, output = node.inputs[0], node.outputs[0]
    assert value is not None
    given, wanted = flow.target(value), flow.target(output)
    if given is None or wanted is None:
        flow.unknown(node, "the shape it gives is not known")
        return
    labels = flow.labels(value)
    if labels.ndim != len(given):
        flow.keep(output, f"{value.name} has an unknown shape")
        return
    old = flow.before(value), flow.shape(value) or (), flow.shape(output) or ()
    made = reshaped(labels, given, wanted, old)
    flow.put(output, made)
    if node.op_type == "Reshape" and flow.varies(value):
        flow.spell(node, 1, wanted)
    rows(flow, node, output)


def rows(flow: Flow, node: ir.Node, value: ir.Value) -> None:
    """Say that slices of `value` keep equal counts where its channels differ along several axes."""
    axes = varying(flow.before(value))
    if len(axes) < 2:
        return
    labels = flow.labels(value)
    table = labels.reshape([labels.shape[axis] for axis in axes])
    for depth in range(1, table.ndim):
        block = np.arange(int(np.prod(table.shape[:depth]))).reshape(
            *table.shape[:depth], *(1,) * (table.ndim - depth)
        )
        flow.divide(node, table, np.broadcast_to(block, table.shape), "rows")


def transpose(flow: Flow, node: ir.Node) -> None:
    """Transpose the labels."""
    labels = flow.labels(node.inputs[0])
    order = node.attributes.get_ints("perm", range(labels.ndim)[::-1])
    flow.put(node.outputs[0], labels.transpose(list(order)) if labels.ndim else labels)


def concat(flow: Flow, node: ir.Node) -> None:
    """Put labels side by side; along the other axes they merge."""
    values = [value for value in node.inputs if value is not None]
    shapes = [flow.target(value) for value in values]
    active = [value for value in values if not flow.example.fixed(value)]
    rank = max(flow.before(value).ndim for value in active)
    axis = node.attributes.get_int("axis", 1) % max(rank, 1)
    found = {each for value in active for each in varying(flow.before(value))}
    if not found <= {axis}:
        _beside(flow, node, values, axis, found)
        return
    if any(shape is None for shape in shapes):
        flow.unknown(node, "joins values of unknown shape")
        return
    for value in values:
        if flow.example.fixed(value):
            flow.labels(value)  # a constant is no channel
    parts = [
        np.broadcast_to(flow.labels(value), [*(1,) * axis, shape[axis], *(1,) * (rank - axis - 1)])
        for value, shape in zip(values, shapes, strict=True)
        if shape is not None
    ]
    flow.put(node.outputs[0], np.concatenate(parts, axis))


def _beside(flow: Flow, node: ir.Node, values: Sequence[ir.Value], axis: int, found: set[int]) -> None:
    """Join along an axis without channels values whose channels are the same along others."""
    if axis in found or any(flow.example.fixed(value) for value in values):
        flow.unknown(node, "joins channels along several axes")
        return
    rank = flow.before(values[0]).ndim
    flow.put(node.outputs[0], flow.merge(node, values, rank))


def split(flow: Flow, node: ir.Node) -> None:
    """Cut the labels into parts."""
    value = node.inputs[0]
    assert value is not None
    axis = node.attributes.get_int("axis", 0) % max(flow.before(value).ndim, 1)
    shapes = [flow.shape(output) for output in node.outputs]
    if not flow.varies(value, axis):
        for output in node.outputs:
            flow.put(output, flow.labels(value))
        return
    if any(shape is None for shape in shapes):
        flow.unknown(node, "it cuts parts of unknown size")
        return
    sizes = [shape[axis] for shape in shapes if shape is not None]
    bounds = np.cumsum([0, *sizes])
    parts = [np.sort(flow.select(value, axis, np.arange(*ends))) for ends in pairwise(bounds)]
    if not np.array_equal(np.concatenate(parts), np.arange(flow.labels(value).shape[axis])):
        raise TangledError("parts would not lie one after another")
    _parts(flow, node, axis, np.repeat(np.arange(len(sizes)), sizes) + 1)
    for output, part in zip(node.outputs, parts, strict=True):
        flow.put(output, flow.labels(value).take(part, axis))
    now = [len(part) for part in parts]
    if "split" in node.attributes:
        flow.spell(node, "split", now)
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        flow.spell(node, 1, now)
    elif now != sizes and len(set(now)) > 1:
        flow.spell(node, "sizes", now)


def _parts(flow: Flow, node: ir.Node, axis: int, block: np.ndarray) -> None:
    """Note that `node` takes its input apart along `axis`; `block` [size of the axis] tells how."""
    labels = flow.before(node.inputs[0])
    spread = block.reshape([-1 if each == axis else 1 for each in range(labels.ndim)])
    flow.divide(node, labels, np.broadcast_to(spread, labels.shape), "parts")


def slicing(flow: Flow, node: ir.Node) -> None:
    """Slice the labels; along channels only what stays in one piece."""
    value = node.inputs[0]
    assert value is not None
    before, shape = flow.before(value), flow.shape(value)
    listed = _bounds(flow, node)
    if listed is None or shape is None:
        if flow.varies(value):
            flow.unknown(node, "it slices by computed bounds")
        else:
            flow.put(node.outputs[0], flow.labels(value))
        return
    starts, ends, axes, steps = listed
    computed = not all(map(flow.example.fixed, node.inputs[1:3]))
    result = flow.labels(value)
    for place, (start, end, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        axis %= before.ndim
        if axis not in varying(before):
            continue
        if step != 1:
            flow.unknown(node, "it takes every other channel")
            return
        taken = np.arange(shape[axis])[start:end]
        places = np.sort(flow.select(value, axis, taken))
        _parts(flow, node, axis, np.isin(np.arange(shape[axis]), taken).astype(np.int64))
        if not len(places) or places[-1] - places[0] != len(places) - 1:
            raise TangledError("a slice would not be in one piece")
        result = result.take(places, axis)
        now = np.arange(flow.labels(value).shape[axis])
        if computed or not np.array_equal(now[start:end], places):
            flow.spell_one(node, ("starts", 1), place, int(places[0]))
            flow.spell_one(node, ("ends", 2), place, int(places[-1]) + 1)
    flow.put(node.outputs[0], result)


def _bounds(flow: Flow, node: ir.Node) -> list[list[int]] | None:
    """Return starts, ends, axes and steps of a Slice, or None where they are computed."""
    if "starts" in node.attributes:
        starts, ends = (list(node.attributes.get_ints(name, ())) for name in ("starts", "ends"))
        axes = list(node.attributes.get_ints("axes", range(len(starts))))
        return [starts, ends, axes, [1] * len(starts)]
    found = [flow.example.known(value) for value in node.inputs[1:]]
    given = [value is not None for value in node.inputs[1:]]
    if any(each is None and there for each, there in zip(found, given, strict=True)):
        return None
    lists = [None if each is None else [int(number) for number in each] for each in found]
    starts, ends = lists[0] or [], lists[1] or []
    axes = (lists[2] if len(lists) > 2 else None) or list(range(len(starts)))
    steps = (lists[3] if len(lists) > 3 else None) or [1] * len(starts)
    return [starts, ends, axes, steps]


def gather(flow: Flow, node: ir.Node) -> None:
    """Take labels by constant indices; rows of a constant table have channels of their own."""
    table, indices = node.inputs[0], node.inputs[1]
    axis = node.attributes.get_int("axis", 0)
    if flow.example.fixed(table):
        _look_up(flow, node, axis)
        return
    assert table is not None
    before, now = flow.before(table), flow.labels(table)
    axis %= max(before.ndim, 1)
    shape = flow.shape(indices)
    if shape is None:
        flow.unknown(node, "takes channels by indices of unknown shape")
        return
    dims = [*now.shape[:axis], *[1] * len(shape), *now.shape[axis + 1 :]]
    if not flow.varies(table, axis):
        flow.put(node.outputs[0], now.reshape(dims))
        return
    wanted = flow.example.known(indices) if flow.example.fixed(indices) else None
    if wanted is None or wanted.ndim > 1:
        flow.unknown(node, "takes channels by computed indices")
        return
    size = before.shape[axis]
    old = wanted.reshape(-1) % size
    places = flow.select(table, axis, old)
    _parts(flow, node, axis, np.isin(np.arange(size), old).astype(np.int64))
    made = now.take(places, axis)
    flow.put(node.outputs[0], made if wanted.ndim else made.squeeze(axis))
    if wanted.ndim or len(places):
        flow.spell(node, 1, places if wanted.ndim else places[0])


def _look_up(flow: Flow, node: ir.Node, axis: int) -> None:
    """Give what an embedding looks up new channels."""
    shapes = [flow.shape(value) for value in node.inputs]
    table, indices = shapes
    if axis != 0 or table is None or len(table) != 2 or indices is None or node in flow.refusals:
        reason = flow.refusals.get(node, "looks up constants")
        flow.keep(node.outputs[0], f"{reason}: {label(node)}")
        return
    made = flow.fresh(node, table[1])
    flow.ride(node, 0, (1,), made, "out")
    flow.put(node.outputs[0], made.reshape(*[1] * len(indices), -1))


def pad(flow: Flow, node: ir.Node) -> None:
    """Pad: borders along channels are channels of their own, of which as many are added as are needed."""
    value, output = node.inputs[0], node.outputs[0]
    before, labels = flow.before(value), flow.labels(value)
    sizes = flow.example.known(node.inputs[1]) if len(node.inputs) > 1 else None
    if sizes is None:
        sizes = np.array(node.attributes.get_ints("pads", ()))
    axes = list(range(before.ndim))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        known = flow.example.known(node.inputs[3])
        axes = [] if known is None else [int(axis) % before.ndim for axis in known]
    if len(sizes) != 2 * len(axes):
        flow.unknown(node, "pads by a computed size")
        return
    for place, axis in enumerate(axes):
        borders = [int(sizes[place]), int(sizes[place + len(axes)])]
        if axis not in varying(before) or not any(borders):
            continue
        plain = node.attributes.get_string("mode", "constant") == "constant"
        if varying(before) != [axis] or min(borders) < 0 or not plain:
            flow.unknown(node, "pads channels in a way of its own")
            return
        ends = [flow.fresh(node, count) for count in borders]
        sides = [each.reshape([-1 if a == axis else 1 for a in range(labels.ndim)]) for each in ends]
        labels = np.concatenate([sides[0], labels, sides[1]], axis)
        for offset, end in zip((place, place + len(axes)), ends, strict=True):
            flow.spell_one(node, ("pads", 1), offset, len(end))
    flow.put(output, labels)


def expand(flow: Flow, node: ir.Node) -> None:
    """Expand: an axis that becomes longer has new channels where there were none."""
    value, output = node.inputs[0], node.outputs[0]
    shape, wanted = flow.shape(value), flow.shape(output)
    if shape is None or wanted is None:
        flow.unknown(node, "expands to a shape that is not known")
        return
    before, labels = flow.before(value), flow.labels(value)
    shape = (1,) * (len(wanted) - len(shape)) + shape
    grown = [axis for axis, sizes in enumerate(zip(shape, wanted, strict=True)) if sizes[0] != sizes[1]]
    spelled = flow.example.known(node.inputs[1]) is not None and len(grown) == 1
    if varying(before) or not spelled:
        flow.put(output, aligned(labels, len(wanted)))
        if varying(before):
            target = flow.target(output)
            assert target is not None
            flow.spell(node, 1, target)
        return
    made = flow.fresh(node, wanted[grown[0]])
    flow.put(output, made.reshape([-1 if axis == grown[0] else 1 for axis in range(len(wanted))]))
    target = flow.target(output)
    assert target is not None
    flow.spell(node, 1, target)


def tile(flow: Flow, node: ir.Node) -> None:
    """Tile: copies of channels live and die with them."""
    value = node.inputs[0]
    repeats = flow.example.known(node.inputs[1])
    before, labels = flow.before(value), flow.labels(value)
    if repeats is None or len(repeats) != before.ndim:
        flow.unknown(node, "repeats a computed number of times")
        return
    own = [int(count) if axis in varying(before) else 1 for axis, count in enumerate(repeats)]
    flow.put(node.outputs[0], np.tile(labels, own))


def blocks(flow: Flow, node: ir.Node) -> None:
    """DepthToSpace and SpaceToDepth: what comes to lie in one channel lives or dies together."""
    value, output = node.inputs[0], node.outputs[0]
    given = flow.vector(node, 0, 1)
    size = node.attributes.get_int("blocksize", 1) ** 2
    if given is None:
        flow.unknown(node, "moves places along the axes of channels")
        return
    if not flow.varies(value):
        flow.put(output, flow.labels(value))
        return
    if node.op_type == "SpaceToDepth":
        flow.put(output, np.tile(given, size).reshape(1, -1, 1, 1))
        return
    columns = node.attributes.get_string("mode", "DCR") == "CRD"
    table = given.reshape(-1, size) if columns else given.reshape(size, -1).T
    flow.unite(table)
    flow.put(output, table[:, 0].reshape(1, -1, 1, 1))


MOVES: dict[str, Rule] = {
    "Concat": concat,
    "DepthToSpace": blocks,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slicing,
    "SpaceToDepth": blocks,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
