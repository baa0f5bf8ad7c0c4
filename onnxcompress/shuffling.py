"""Nodes that permute channels: put into a graph as places to do so, then written out or taken away.

Source for the shuffle: Zhang et al., ShuffleNet, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.edit import Edit, replace_uses
from onnxcompress.grouping import dealt
from onnxcompress.layers import constant
from onnxcompress.linear import follower

_EACH = ("BatchNormalization", "Clip", "Elu", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid")
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")


def stand_in(edit: Edit, node: ir.Node) -> ir.Value:
    """Put an Identity before `node`, on its first input alone, and return what it makes."""
    given, graph = node.inputs[0], node.graph
    assert given is not None
    assert isinstance(graph, ir.Graph)
    made = edit.node("Identity", [given], f"{node.name or node.op_type}_shuffled", dtype=given.dtype)
    made.outputs[0].shape = given.shape
    graph.insert_before(node, made)
    node.replace_input_with(0, made.outputs[0])
    return made.outputs[0]


def stand_behind(edit: Edit, node: ir.Node, context: Context, exclude: str) -> ir.Value:
    """Put an Identity behind `node`, for all that read its output, and return what it makes.

    A BatchNormalization that alone reads it comes before, so that engines can still fold that, if it doesn't
    match a pattern of `context` or `exclude`.
    """
    reader = follower(node)
    if reader is not None and reader.op_type == "BatchNormalization" and len(reader.outputs) == 1:
        last = reader.outputs[0].is_graph_output()
        node = node if last or context.excludes(reader.name or "", exclude) else reader
    output = node.outputs[0]
    made = edit.node("Identity", [output], f"{node.name or node.op_type}_unshuffled", dtype=output.dtype)
    made.outputs[0].shape = output.shape
    replace_uses(output, made.outputs[0], keep=[made])
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_after(node, made)
    return made.outputs[0]


def entrance(
    node: ir.Node, exits: Collection[ir.Node | None], context: Context, exclude: str
) -> ir.Node | None:
    """Return the node before which ShuffleNet would shuffle what `node` reads, None where it wouldn't.

    That is behind one of `exits`, the ends of grouped convolutions, and the normalisation and activation
    there, if nothing but depthwise convolutions and pooling follows up to `node`, with theirs. None of what
    lies behind the shuffle is read by other nodes, or matches a pattern of `context` or `exclude`.
    """
    reader, found, free = node, node, True
    while True:
        value = reader.inputs[0]
        maker = None if value is None else value.producer()
        if value is None or maker is None or maker.graph is not node.graph:
            return None
        if maker in exits:
            return found
        each = maker.op_type in _EACH
        if not (each or maker.op_type in _POOLS or _depthwise(maker)) or len(maker.outputs) != 1:
            return None
        alone = len(value.uses()) == 1 and not value.is_graph_output()
        free = free and alone and not context.excludes(maker.name or value.name or "", exclude)
        if free and not each:
            found = maker
        reader = maker


def _depthwise(node: ir.Node) -> bool:
    """Return whether the Conv `node` makes one output of each input by itself."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    groups = node.attributes.get_int("group", 1)
    return weight is not None and groups > 1 and tuple(weight.shape.numpy()[:2]) == (groups, 1)


class Writer:
    """Writes permutations in the place of Identity nodes; those of one value that are alike become one."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self._made: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def write(self, value: ir.Value, places: np.ndarray) -> str:
        """Let `value`, made by an Identity, have the channels at `places` [channels] of what that reads.

        Returns what does it: "nothing" where they stay in order, "shuffle" for Reshape, Transpose and
        Reshape, or "gather".
        """
        node = value.producer()
        assert node is not None
        assert isinstance(node.graph, ir.Graph)
        given = node.inputs[0]
        assert given is not None
        if np.array_equal(places, np.arange(len(places))):
            result, what = given, "nothing"
        else:
            groups = _groups(places) if _sized(given) else None
            what = "gather" if groups is None else "shuffle"
            key = given, places.tobytes()
            if key not in self._made:
                nodes = self._gather(node, places) if groups is None else self._shuffle(node, groups)
                node.graph.insert_before(node, nodes)
                self._made[key] = nodes[-1].outputs[0]
            result = self._made[key]
        replace_uses(value, result)
        node.graph.remove(node, safe=True)
        return what

    def _gather(self, node: ir.Node, places: np.ndarray) -> list[ir.Node]:
        given, graph, name = node.inputs[0], node.graph, f"{node.name}_gather"
        assert given is not None
        assert isinstance(graph, ir.Graph)
        indices = self.edit.constant(graph, f"{name}_places", places.astype(np.int64))
        made = self.edit.node("Gather", [given, indices], name, {"axis": 1}, dtype=given.dtype)
        made.outputs[0].shape = given.shape
        return [made]

    def _shuffle(self, node: ir.Node, groups: int) -> list[ir.Node]:
        given, graph, name = node.inputs[0], node.graph, str(node.name)
        assert given is not None
        assert given.shape is not None
        assert isinstance(graph, ir.Graph)
        batch, channels, *sizes = given.shape
        assert isinstance(channels, int)
        rows = [groups, channels // groups]
        order = [0, 2, 1, *range(3, 3 + len(sizes))]
        shapes = [[batch, *rows, *sizes], [batch, *rows[::-1], *sizes], [batch, channels, *sizes]]
        apart, back = (
            self.edit.constant(graph, f"{name}_shape", np.array([0, *shape[1:]], np.int64))
            for shape in (shapes[0], shapes[2])
        )
        first = self.edit.node("Reshape", [given, apart], f"{name}_rows", dtype=given.dtype)
        turned = self.edit.node(
            "Transpose", [first.outputs[0]], f"{name}_turned", {"perm": order}, dtype=given.dtype
        )
        last = self.edit.node("Reshape", [turned.outputs[0], back], f"{name}_joined", dtype=given.dtype)
        for made, shape in zip((first, turned, last), shapes, strict=True):
            made.outputs[0].shape = ir.Shape(shape)
        return [first, turned, last]


def _groups(places: np.ndarray) -> int | None:
    """Return of how many groups the shuffle is that takes `places`, or None."""
    channels = len(places)
    size = int(places[1])  # the first of the second group comes second
    if size < 1 or channels % size:
        return None
    groups = channels // size
    return groups if np.array_equal(places, dealt(channels, groups)) else None


def _sized(value: ir.Value) -> bool:
    """Return whether all sizes of `value` but the first are known."""
    return value.shape is not None and all(isinstance(size, int) for size in list(value.shape)[1:])
