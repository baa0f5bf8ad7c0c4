"""Matrix products with weights in blocks, written into a graph: for onnxruntime, or in standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxcompress.base import Number, Record
from onnxcompress.blocks import Blocks, Fit, pack
from onnxcompress.edit import Edit, drop, home, substitute
from onnxcompress.layers import Layer, finite
from onnxcompress.model import ComputedTensor, apply, clone, lazy

CONTRIBUTED = "com.microsoft"
PORTABLE_OPSET = 21  # DequantizeLinear with blocks, and integers of four bits
_SIGNED = {4: (ir.DataType.INT4, ml_dtypes.int4), 8: (ir.DataType.INT8, np.int8)}
_FEW = 1024, 128  # inputs and outputs of a weight that tell what the others are like
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


@dataclass(eq=False)
class Packed:
    """The tensors that hold the weight of `layer` in `blocks`, computed when they are read.

    The steps are made from the weight, scales and zeros on the way: read after the steps, they cost nothing.
    What is kept of the weight is put into `records` whenever the steps are made.
    """

    layer: Layer
    blocks: Blocks
    portable: bool
    records: Sequence[Record] = ()
    _fit: Fit | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._source, self._name = self.layer.tensor, self.layer.weight.name  # the layer is yet to be removed
        self._inputs, self._outputs = sizes(self.layer)

    def tensors(self) -> dict[str, ir.TensorProtocol]:
        """Return the tensors by what they are: "blocks", "scales" and, of blocks with zeros, "zeros"."""
        count, symmetric = self.blocks.count(self._inputs), self.blocks.symmetric
        kind = ir.DataType.UINT8
        shape: tuple[int, ...] = self._outputs, count, self.blocks.size * self.blocks.bits // 8
        if self.portable:
            kind, _ = (_SIGNED if symmetric else _UNSIGNED)[self.blocks.bits]
            shape = self._inputs, self._outputs
        steps = lazy(
            self._source,
            self._steps,
            kind,
            shape,
            f"{self._name}_blocks",
            excerpt=lambda part: self._few(part)[0],
        )
        scales = ComputedTensor(
            lambda: self._scales(self._found()),
            ir.DataType.from_numpy(np.dtype(self.blocks.dtype)),
            (count, self._outputs) if self.portable else (self._outputs, count),
            f"{self._name}_scales",
            excerpt=lambda: apply(self._source, lambda part: self._few(part)[1]),
            after=steps,
        )
        if symmetric:
            return {"blocks": steps, "scales": scales}
        packed = -(-count * self.blocks.bits // 8)
        zeros = ComputedTensor(
            lambda: self._zeros(self._found()),
            kind,
            (count, self._outputs) if self.portable else (self._outputs, packed),
            f"{self._name}_zeros",
            after=steps,
        )
        return {"blocks": steps, "scales": scales, "zeros": zeros}

    def _matrix(self, weight: np.ndarray) -> np.ndarray:
        return matrix(self.layer, finite(weight, self._name))

    def _steps(self, weight: np.ndarray) -> np.ndarray:
        self._fit, stored = self.blocks.quantize(self._matrix(weight), not self.portable)
        for record in self.records:
            record.numbers["snr"] = stored.snr
        return self._written(stored.steps, self._inputs)

    def _found(self) -> Fit:
        if self._fit is None:
            self._fit = apply(self._source, lambda weight: self.blocks.fit(self._matrix(weight)))
        return self._fit

    def _few(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and scales of blocks of some outputs, both evenly spread over `weight`."""
        size, count = self.blocks.size, max(1, _FEW[0] // self.blocks.size)
        firsts = size * np.linspace(0, self.blocks.count(self._inputs) - 1, count, dtype=np.int64)
        rows = (firsts[:, None] + np.arange(size)).ravel().clip(max=self._inputs - 1)
        columns = np.linspace(0, self._outputs - 1, _FEW[1], dtype=np.int64)
        part = matrix(self.layer, weight)[np.ix_(rows, columns)]
        fit, stored = self.blocks.quantize(finite(part, self._name), not self.portable)
        return self._written(stored.steps, rows.size), self._scales(fit)

    def _written(self, steps: np.ndarray, inputs: int) -> np.ndarray:
        """Return `steps` as they are stored, of a weight with so many `inputs`."""
        if not self.portable:
            return steps
        flat = steps.reshape(len(steps), -1)[:, :inputs].T
        if self.blocks.symmetric:
            return (
                (flat.astype(np.int16) - self.blocks.middle)
                .astype(np.int8)
                .astype(_SIGNED[self.blocks.bits][1])
            )
        return np.ascontiguousarray(flat).astype(_UNSIGNED[self.blocks.bits][1])

    def _scales(self, fit: Fit) -> np.ndarray:
        return fit.scale.T if self.portable else fit.scale

    def _zeros(self, fit: Fit) -> np.ndarray:
        assert fit.zero is not None
        if self.portable:
            return fit.zero.T.astype(_UNSIGNED[self.blocks.bits][1])
        return pack(fit.zero, self.blocks.bits)


def write(
    edit: Edit, readers: Sequence[Layer], blocks: Blocks, form: Form, records: Sequence[Record] = ()
) -> None:
    """Put products in blocks in the place of `readers`, which share a weight.

    What is kept of the weight is put into `records` whenever it is written.
    """
    layer = readers[0]
    value, tensor = layer.weight, layer.tensor
    inputs, outputs = sizes(layer)
    graph, portable = home(value), form.level is None
    packed = Packed(layer, blocks, portable, records)
    constants: list[ir.Value | None] = [
        edit.constant(graph, f"{value.name}_{what}", made) for what, made in packed.tensors().items()
    ]
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


def alone(layer: Layer, rows: int, most: int | None = None) -> ir.Model:
    """Return the product of `layer` as a model of its own, of an input "x" with `rows` rows, without bias.

    Of a weight with more than `most` elements, it has a part of the outputs, evenly spread.
    """
    dtype, tensor = layer.tensor.dtype, layer.tensor
    inputs, outputs = sizes(layer)
    if most is not None and inputs * outputs > most:
        axis = 0 if _turned(layer) else 1
        kept = np.linspace(0, outputs - 1, max(1, most // inputs), dtype=np.int64)
        tensor = ir.tensor(apply(tensor, lambda weight: weight.take(kept, axis)), name="w")
        outputs = kept.size
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape([rows, inputs]))
    weight = ir.Value(
        name="w", type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
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
