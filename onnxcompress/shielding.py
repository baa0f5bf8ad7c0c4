"""Float layers between integers, written so that the engine doesn't make integers of their weights.

Where a Conv or Gemm with a float weight lies between tensors that are quantized, onnxruntime 1.31 rounds the
weight to int8 with one scale for all of it, which ruins a weight with channels of different sizes. It finds
such layers also where it merges other operators with them, and where it can move QuantizeLinear and
DequantizeLinear up to them. A LeakyRelu of slope 1, which computes nothing and is fused into the layer, is
not what it looks for.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxcompress.edit import Edit
from onnxcompress.layers import constant
from onnxcompress.placement import How, Placement, activations


def shielded(edit: Edit, placement: Placement, value: ir.Value) -> ir.Value:
    """Return the `value`, which is to be quantized, made so that the weight of a float layer stays as it is.

    `placement` holds the operators that compute with integers; what the layer reads is quantized already.
    """
    behind, last = value, None
    node = value.producer()
    while node is not None and (source := _carried(node)) is not None:
        behind, node = source, source.producer()
    while node is not None and (source := _merged(node)) is not None:
        last, node = node, source.producer()
    if node is None or node in placement.nodes or node.inputs[0] is None or behind.is_graph_output():
        return value
    gemm = node.op_type == "MatMul" and last is not None and last.op_type == "Add"
    if not gemm and node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return value
    before = node.inputs[0].producer()
    while before is not None and (source := _carried(before)) is not None:
        before = source.producer()
    if before is None or before.op_type != "DequantizeLinear":
        return value
    same = edit.node(
        "LeakyRelu", [behind], f"{behind.name}_float", {"alpha": 1.0}, dtype=behind.dtype, shape=behind.shape
    )
    edit.after(behind, [same], edit.model.graph)
    for reader, place in [use for use in behind.uses() if use.node is not same]:
        reader.replace_input_with(place, same.outputs[0])
    return same.outputs[0] if behind is value else value


def _carried(node: ir.Node) -> ir.Value | None:
    """Return what `node` bounds or moves about, if that is all it does: conversions may go before it."""
    inputs = activations(node)[1]
    moves = node.op_type in ("Relu", "Clip") or activations(node)[0] is How.TIED
    return node.inputs[0] if moves and len(inputs) < 2 else None


def _merged(node: ir.Node) -> ir.Value | None:
    """Return what `node` adds constants to or multiplies by them, as a layer before it could do itself."""
    if node.op_type == "BatchNormalization":
        return node.inputs[0]
    read = [value for value in node.inputs if value is not None and constant(value) is None]
    return read[0] if node.op_type in ("Add", "Div", "Mul", "Sub") and len(read) == 1 else None
