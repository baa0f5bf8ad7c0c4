"""Where 8-bit integers go: which operators compute with them, and which values share a scale.

The model keeps its float operators; QuantizeLinear and DequantizeLinear around them say which values are
integers, and the engine puts its integer kernels there. In onnxruntime that pays only where every operator
between two convolutions is in it; this table holds those for which it has an integer kernel or which it
moves into the integer part.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxcompress.layers import Layer, constant


class How(enum.Enum):
    """How an operator quantizes."""

    WEIGHTED = "int8 weight, int32 bias; its output has a scale of its own"
    OWN = "integers in and out; its output has a scale of its own"
    TIED = "moves numbers about; its output has the scale of its inputs"
    BOUND = "only bounds its input; the range of the output does its work"


_FIRST, _ALL = slice(0, 1), slice(None)
TABLE: dict[str, tuple[How, slice]] = {  # operator: how, and which of its inputs are activations
    "Conv": (How.WEIGHTED, _FIRST),
    "Gemm": (How.WEIGHTED, _FIRST),
    "MatMul": (How.WEIGHTED, _FIRST),
    "Add": (How.OWN, _ALL),
    "Mul": (How.OWN, _ALL),
    "AveragePool": (How.OWN, _FIRST),
    "GlobalAveragePool": (How.OWN, _FIRST),
    "LeakyRelu": (How.OWN, _FIRST),
    "Sigmoid": (How.OWN, _FIRST),
    "Concat": (How.TIED, _ALL),
    "DepthToSpace": (How.TIED, _FIRST),
    "Flatten": (How.TIED, _FIRST),
    "Gather": (How.TIED, _FIRST),
    "Identity": (How.TIED, _FIRST),
    "MaxPool": (How.TIED, _FIRST),
    "Pad": (How.TIED, _FIRST),
    "Reshape": (How.TIED, _FIRST),
    "Resize": (How.TIED, _FIRST),
    "Slice": (How.TIED, _FIRST),
    "Split": (How.TIED, _FIRST),
    "Squeeze": (How.TIED, _FIRST),
    "Transpose": (How.TIED, _FIRST),
    "Unsqueeze": (How.TIED, _FIRST),
    "Clip": (How.BOUND, _FIRST),
    "Relu": (How.BOUND, _FIRST),
}
STATIC_OPSET = 13  # DequantizeLinear with a scale for each channel
Bounds = tuple[float, float]
_FREE: Bounds = (-float("inf"), float("inf"))


@dataclass
class Placement:
    """The operators of a main graph that compute with integers, and the values between them.

    `nodes` holds the operators with how they quantize, `values` the values to quantize (each with one Q/DQ
    pair), `native` those of them that an integer operator makes. `bounded` are Relu and Clip nodes whose
    work the range of their output does: they go, and their input takes the place of their output.
    """

    graph: ir.Graph
    nodes: dict[ir.Node, How] = field(default_factory=dict)
    values: dict[ir.Value, None] = field(default_factory=dict)
    native: set[ir.Value] = field(default_factory=set)
    bounded: list[ir.Node] = field(default_factory=list)
    _parents: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def group(self, value: ir.Value) -> ir.Value:
        """Return the value that stands for all that share the scale of `value`."""
        while value in self._parents:
            value = self._parents[value]
        return value

    def observed(self) -> Iterator[ir.Value]:
        """Yield the values whose ranges make the scales: those that some node does not just move.

        A scale needs to cover only these: a value that is but moved is met again where it ends up.
        """
        for value in self.values:
            moved = [self.nodes.get(reader) == How.TIED for reader in value.consumers()]
            if value.is_graph_output() or not moved or not all(moved):
                yield value

    def gaps(self) -> Iterator[ir.Node]:
        """Yield the nodes without weights that an integer operator feeds and that compute with floats."""
        readers = dict.fromkeys(
            reader for value in self.values if value in self.native for reader in value.consumers()
        )
        done = {*self.nodes, *self.bounded}
        for node in readers:
            weighted = node.op_type in TABLE and TABLE[node.op_type][0] is How.WEIGHTED
            if node not in done and node.graph is self.graph and not weighted:
                yield node

    def blocks(self) -> list[list[ir.Node]]:
        """Return the connected parts that compute with integers, each in the order of the graph."""
        inside = {**dict.fromkeys(self.nodes), **dict.fromkeys(self.bounded)}
        places = {node: place for place, node in enumerate(self.graph)}
        blocks: dict[ir.Node, list[ir.Node]] = {}
        for node in sorted(inside, key=places.__getitem__):
            makers = [value.producer() for value in node.inputs if value is not None]
            joined = {id(blocks[maker]): blocks[maker] for maker in makers if maker in blocks}
            block = [*(each for part in joined.values() for each in part), node]
            blocks.update(dict.fromkeys(block, block))
        found = {id(block): block for block in blocks.values()}
        return [sorted(block, key=places.__getitem__) for block in found.values()]

    def read(self, node: ir.Node) -> list[ir.Value]:
        """Return the inputs of `node` that it reads as integers."""
        return activations(node)[1] if node in self.nodes else []

    def tie(self, values: Iterable[ir.Value]) -> None:
        """Let all `values` share one scale."""
        first, *rest = (self.group(value) for value in values)
        self._parents.update({other: first for other in rest if other is not first})


def place(graph: ir.Graph, weighted: dict[ir.Node, Layer], absorb: bool = True) -> Placement:
    """Return where in `graph`, whose nodes are in topological order, integers go.

    `weighted` are the layers that may have their weight quantized. What feeds them is quantized; other
    operators of the table compute with integers where an integer operator feeds them, those that join several
    values only where none comes from a layer that stays float: else one such layer in a residual network
    would have all the others behind it lose what its sums round. Without `absorb` the range of an output
    doesn't do the work of a Relu or Clip: it would have to end where that does.
    """
    found = Placement(graph)
    bounds: dict[ir.Value, Bounds] = {}  # what a Relu or Clip put on values, wherever they were moved since
    floats = set[ir.Value]()  # what layers that stay float made, and other float operators of it
    for node in graph:
        how, inputs = activations(node)
        mixed = not floats.isdisjoint(node.inputs)
        stays = how is How.WEIGHTED and node not in weighted
        if stays or (mixed and how is not How.WEIGHTED):
            floats.update(node.outputs)
        reached = {bounds.get(value, _FREE) for value in inputs}
        if how is How.BOUND:
            bounds[node.outputs[0]] = own_bounds(node)
        elif how is How.TIED and len(reached) == 1:
            bounds.update(dict.fromkeys(node.outputs, *reached))
        if how is None or stays or (mixed and how in (How.OWN, How.TIED)):
            continue
        if how is not How.WEIGHTED and not any(value in found.native for value in inputs):
            continue
        if how is How.TIED and len(reached) > 1:
            how = How.OWN  # a scale that serves a Relu's output can't serve negative numbers too
        if how is not How.BOUND:
            found.nodes[node] = how
            found.values.update(dict.fromkeys(inputs))
        if _leaves_integers(node):
            found.native.update(node.outputs)
        if _leaves_integers(node) or _held_apart(node):
            found.values.update(dict.fromkeys(node.outputs))
        if how is How.TIED:
            found.tie([*inputs, *node.outputs])
    for node in graph:
        if (
            absorb
            and activations(node)[0] is How.BOUND
            and node.outputs[0] in found.values
            and (value := node.inputs[0]) is not None
            and _serves_one(value, found)
        ):
            found.bounded.append(node)
            found.values.pop(value, None)
            found.tie([node.outputs[0], value])
    return found


def activations(node: ir.Node) -> tuple[How | None, list[ir.Value]]:
    """Return how `node` quantizes, None if it can't, and which of its inputs are activations."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in TABLE:
        return None, []
    how, places = TABLE[node.op_type]
    inputs = [value for value in node.inputs[places] if value is not None]
    fits = bool(inputs)
    if node.op_type == "Resize":
        fits = node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "MaxPool":
        fits = len(node.outputs) == 1
    if node.op_type == "Pad":
        fits = len(node.inputs) < 3 or _is_zero(node.inputs[2])
    if how is How.BOUND:
        low, high = own_bounds(node)
        fits = low <= 0 <= high and low < high
    return (how, inputs) if fits else (None, [])


def _is_zero(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return value is None or (tensor is not None and not tensor.numpy().any())


def own_bounds(node: ir.Node) -> Bounds:
    """Return the bounds a Relu or Clip puts on its input; for a Clip with computed bounds an empty range."""
    if node.op_type == "Relu":
        return 0.0, _FREE[1]
    ends = list(_FREE)
    for place, value in enumerate(node.inputs[1:3]):
        if value is not None:
            tensor = constant(value)
            if tensor is None or tensor.size != 1:
                return 0.0, 0.0
            ends[place] = float(tensor.numpy().reshape(()))
    return ends[0], ends[1]


def _held_apart(node: ir.Node) -> bool:
    """Return whether the MatMul `node` needs a Q/DQ pair between it and the Add behind it.

    Without, onnxruntime makes a float Gemm of the two where it knows the shape of the stack of matrices.
    """
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    added = any(reader.op_type == "Add" for reader in node.outputs[0].consumers())
    return node.op_type == "MatMul" and added and shape is not None and shape.is_static()


def _leaves_integers(node: ir.Node) -> bool:
    """Return whether the integer kernel of `node` leaves integers; those of matrix products can leave floats.

    Not before a Relu: onnxruntime makes a float Gemm of a Gemm and a Relu before it looks for integer
    kernels.
    """
    if node.op_type == "Gemm":
        return any(reader.op_type == "Relu" for reader in node.outputs[0].consumers())
    return node.op_type != "MatMul"


def _serves_one(value: ir.Value, found: Placement) -> bool:
    """Return whether integer operators make `value`, and all it is moved from, for one reader alone.

    Then the range of what that reader makes can be theirs: nobody else misses what it cuts off.
    """
    maker = value.producer()
    if maker is None or len(value.uses()) != 1 or value.is_graph_output():
        return False
    if found.nodes.get(maker) is How.TIED:
        return len(maker.outputs) == 1 and all(_serves_one(each, found) for each in found.read(maker))
    return found.nodes.get(maker) in (How.WEIGHTED, How.OWN) or maker in found.bounded
