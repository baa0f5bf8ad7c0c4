"""Matrix products with weights in blocks, written into a graph: for onnxruntime, or in standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxcompress.base import Number, Record
from onnxcompress.blocks import Blocks, Fit, pack
from onnxcompress.edit import Edit, drop, home, substitute
from onnxcompress.layers import Layer, finite
from onnxcompress.model import clone, lazy

CONTRIBUTED = "com.microsoft"
PORTABLE_OPSET = 21  # DequantizeLinear with blocks, and integers of four bits
_SIGNED = {4: (ir.DataType.INT4, ml_dtypes.int4), 8: (ir.DataType.INT8, np.int8)}
_UNSIGNED = {4: (ir.DataType.UINT4, ml_dtypes.uint4), 8: (ir.DataType.UINT8, np.uint8)}


@dataclass(frozen=True)
class Form:
    """How a product with a weight in blocks is written.

    As MatMulNBits of onnxruntime with this `level` of accuracy (0: on floats, 4: activations rounded to 8
    bits); None: MatMul behind DequantizeLinear.
    """

    what: str
    level: int | None


FLOAT = Form("multiplied as floats", 0)
INT8 = Form("activations rounded to 8 bits", 4)
PORTABLE = Form("expanded by DequantizeLinear", None)


def matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Return `weight`, that of `layer`, as [inputs, outputs]."""
    return weight.T if _turned(layer) else weight


def _turned(layer: Layer) -> bool:
    return layer.op == "Gemm" and bool(layer.node.attributes.get_int("transB", 0))


def sizes(layer: Layer) -> tuple[int, int]:
    """Return how many inputs and outputs the product of `layer` has."""
    first, second = layer.shape
    return (second, first) if _turned(layer) else (first, second)


def refusal(layer: Layer, functions: set[ir.Graph]) -> str | None:
    """Return why the product of `layer` can't have its weight in blocks, or None."""
    if layer.op not in ("MatMul", "Gemm"):
        return f"{layer.op} is not computed in blocks"
    if layer.position != 1:
        return "its weight is the first factor"
    if len(layer.shape) != 2:
        return "its weight is no matrix"
    if layer.tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return f"no product in blocks of {layer.tensor.dtype}"
    if layer.node.attributes.get_int("transA", 0):
        return "its input is transposed"
    if layer.node.attributes.get_float("alpha", 1.0) != 1:
        return "its product is scaled by alpha"
    return "a function's body" if layer.node.graph in functions else None


def write(
    edit: Edit, readers: Sequence[Layer], blocks: Blocks, fit: Fit, form: Form, records: Sequence[Record] = ()
) -> None:
    """Put products in blocks in the place of `readers`, which share a weight.

    What is kept of the weight is put into `records` whenever it is written.
    """
    layer = readers[0]
    value, tensor = layer.weight, layer.tensor
    inputs, outputs = sizes(layer)
    graph, count = home(value), blocks.count(inputs)
    portable = form.level is None

    def stored(weight: np.ndarray) -> np.ndarray:
        found = blocks.store(matrix(layer, finite(weight, value.name)), fit, not portable)
        for record in records:
            record.numbers["snr"] = found.snr
        if not portable:
            return found.steps
        flat = found.steps.reshape(outputs, -1)[:, :inputs].T
        return np.ascontiguousarray(flat) if fit.zero is not None else _signed(flat, blocks)

    if portable:
        kind, plain = (_SIGNED if fit.zero is None else _UNSIGNED)[blocks.bits]
        content = lazy(tensor, lambda weight: stored(weight).astype(plain), kind, (inputs, outputs))
        scale, zero = fit.scale.T, None if fit.zero is None else fit.zero.T.astype(plain)
    else:
        shape = (outputs, count, blocks.size * blocks.bits // 8)
        content = lazy(tensor, stored, ir.DataType.UINT8, shape)
        scale, zero = fit.scale, None if fit.zero is None else pack(fit.zero, blocks.bits)
    constants: list[ir.Value | None] = [
        edit.constant(graph, f"{value.name}_blocks", content),
        edit.constant(graph, f"{value.name}_scales", np.ascontiguousarray(scale)),
    ]
    if zero is not None:
        constants.append(edit.constant(graph, f"{value.name}_zeros", np.ascontiguousarray(zero)))
    if portable:
        attributes: dict[str, int] = {"axis": 0, "block_size": blocks.size}
        node = edit.node(
            "DequantizeLinear", constants, f"{value.name}_expanded", attributes, dtype=tensor.dtype
        )
        edit.after(value, [node], graph)
        constants = list(node.outputs)
    else:
        attributes = {"K": inputs, "N": outputs, "bits": blocks.bits, "block_size": blocks.size}
        attributes |= {"accuracy_level": form.level} if form.level else {}
        edit.model.opset_imports[CONTRIBUTED] = 1
    for each in readers:
        _product(edit, each, constants, attributes if not portable else None)
    drop(value)


def _signed(steps: np.ndarray, blocks: Blocks) -> np.ndarray:
    return (steps.astype(np.int16) - blocks.middle).astype(np.int8)


def _product(
    edit: Edit, layer: Layer, weight: Sequence[ir.Value | None], attributes: dict[str, int] | None
) -> None:
    """Put a product with `weight`, a MatMulNBits where it has `attributes`, in the place of `layer`'s."""
    node, output = layer.node, layer.node.outputs[0]
    graph, dtype = node.graph, layer.tensor.dtype
    assert isinstance(graph, ir.Graph)
    op, domain = ("MatMul", "") if attributes is None else ("MatMulNBits", CONTRIBUTED)
    given = [node.inputs[0], *weight]
    nodes = [edit.node(op, given, f"{layer.name}_product", attributes, dtype=dtype, domain=domain)]
    bias, beta = node.inputs[2] if len(node.inputs) > 2 else None, node.attributes.get_float("beta", 1.0)
    if bias is not None and beta != 1:
        factor = edit.constant(graph, f"{layer.name}_beta", np.asarray(beta, dtype.numpy()))
        nodes.append(edit.node("Mul", [bias, factor], f"{layer.name}_bias", dtype=dtype))
        bias = nodes[-1].outputs[0]
    if bias is not None:
        nodes.append(edit.node("Add", [nodes[0].outputs[0], bias], f"{layer.name}_biased", dtype=dtype))
    graph.insert_before(node, nodes)
    substitute(output, nodes[-1].outputs[0])


def alone(layer: Layer, rows: int) -> ir.Model:
    """Return the product of `layer` as a model of its own, of an input "x" with `rows` rows, without bias."""
    dtype = layer.tensor.dtype
    inputs, outputs = sizes(layer)
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([rows, inputs]))
    weight = ir.Value(
        name="w", type=ir.TensorType(dtype), shape=ir.Shape(layer.shape), const_value=layer.tensor
    )
    y = ir.Value(name="y", type=ir.TensorType(dtype), shape=ir.Shape([rows, outputs]))
    attributes = {"transB": layer.node.attributes.get_int("transB", 0)} if layer.op == "Gemm" else {}
    node = ir.node(layer.op, [x, weight], attributes, outputs=[y])
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=[weight], opset_imports={"": PORTABLE_OPSET}, name="product"
    )
    return ir.Model(graph, ir_version=10)


def set_level(model: ir.Model, form: Form) -> ir.Model:
    """Return a copy of `model` whose products with weights in blocks are of `form`, one of MatMulNBits."""
    copy = clone(model)
    for node in copy.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", form.level or 0)
    return copy


def numbers(blocks: Blocks, layer: Layer) -> dict[str, Number]:
    """Return what records say of a weight in `blocks`: the bits a weight takes, scales and zeros included."""
    inputs, outputs = sizes(layer)
    count = outputs * blocks.count(inputs)
    each = blocks.size * blocks.bits + 8 * np.dtype(blocks.dtype).itemsize
    each += 0 if blocks.symmetric else blocks.bits
    return {"size": layer.size, "bits_each": round(count * each / max(layer.size, 1), 3)}
