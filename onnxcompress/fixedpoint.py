"""Activations on fixed-point grids: rounding written into the graph as standard operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.calibrate import Range
from onnxcompress.edit import Edit
from onnxcompress.layers import Layer
from onnxcompress.observing import never_negative
from onnxcompress.schemes import fixed_exponent

_FLOAT = ir.DataType.FLOAT
OPSET = 11  # Round, and Clip with bounds as inputs


class Fixed(NamedTuple):
    """The whole numbers from `low` to `high`, times `scale`, a power of two."""

    scale: float
    low: int
    high: int


def activation(layer: Layer, main: ir.Graph) -> ir.Value | str:
    """Return the activation that the node of `layer` multiplies by its weight, or why it can't be rounded."""
    if layer.node.graph is not main:
        return "inside a subgraph or function, where activations are not calibrated"
    if not layer.linear:
        return f"no product of an activation in {layer.op}"
    value = layer.node.inputs[0 if layer.position == 1 else 1]
    if value is None or layer.tensor.dtype != _FLOAT:
        return f"its weight is {layer.tensor.dtype}, expected FLOAT"
    return "on a grid already" if _rounded(value) else value


def _rounded(value: ir.Value) -> bool:
    """Return whether :func:`round_activations`, or DequantizeLinear, makes `value`."""
    node = value.producer()
    if node is not None and node.op_type == "DequantizeLinear":
        return True
    for op in ("Mul", "Clip", "Round", "Mul"):
        if node is None or node.op_type != op or node.inputs[0] is None:
            return False
        node = node.inputs[0].producer()
    return True


def fixed_range(value: ir.Value, found: Range, bits: int) -> Fixed:
    """Return the grid of `bits` bits for `value`, whose numbers were `found` in a range.

    It is the finest that holds the range; unsigned where no number can be negative, else two's complement.
    """
    if never_negative(value):
        low, high = 0, 2**bits - 1
    else:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    up, down = fixed_exponent(np.asarray(found[1]), high), fixed_exponent(np.asarray(-found[0]), -low or 1)
    return Fixed(2.0 ** max(int(up), int(down)), low, high)


def round_activations(
    model: ir.Model, readers: Mapping[ir.Value, Iterable[Layer]], grids: Mapping[ir.Value, Fixed]
) -> None:
    """Let the `readers` of each value read it rounded to its grid.

    Mul, Round, Clip and Mul do it. Between QuantizeLinear and DequantizeLinear, onnxruntime would take it
    upon itself to store the weights of Conv and Gemm as int8, which are to stay as they are.
    """
    edit = Edit(model)
    for value, layers in readers.items():
        nodes = _rounding(edit, value, grids[value])
        edit.after(value, nodes, model.graph)
        for layer in layers:
            layer.node.replace_input_with(0 if layer.position == 1 else 1, nodes[-1].outputs[0])


def _rounding(edit: Edit, value: ir.Value, grid: Fixed) -> list[ir.Node]:
    """Return the nodes that put `value` on `grid`, as floats."""
    graph, name = edit.model.graph, value.name
    numbers = {"steps": 1 / grid.scale, "low": grid.low, "high": grid.high, "scale": grid.scale}
    steps, low, high, scale = (
        edit.constant(graph, f"{name}_{word}", np.asarray(number, np.float32))
        for word, number in numbers.items()
    )
    nodes: list[ir.Node] = []
    for op, more in (("Mul", [steps]), ("Round", []), ("Clip", [low, high]), ("Mul", [scale])):
        given = nodes[-1].outputs[0] if nodes else value
        word = "fixed" if len(nodes) == 3 else op.lower()
        nodes.append(edit.node(op, [given, *more], f"{name}_{word}", dtype=_FLOAT, shape=value.shape))
    return nodes
