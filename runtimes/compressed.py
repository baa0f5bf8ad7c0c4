"""MatMul, Gemm and Conv executed on their weights' stored form, and counted; the weights are never dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.evaluate import Operator, guarded, label
from onnxcompress.formats.base import DOMAIN, VERSION
from onnxcompress.formats.elements import Elements
from onnxcompress.formats.unpack import Decoder, is_decoder, stream_bytes
from onnxcompress.layers import constant
from onnxcompress.model import SparseTensor
from onnxcompress.runtimes.control import Attributes
from onnxcompress.runtimes.counts import Counts
from onnxcompress.runtimes.products import Matrix, Product
from onnxcompress.windows import Ints, Windows, unfit

Multiply = Callable[..., np.ndarray]  # as Product: activations, and how many axes the columns have

_PLACES = {"Scatter": 0, "BlockCSR": 0, "Bitmask": 0}  # the input that tells where elements are
_FLOATS = (np.float16, np.float32, np.float64)


class Weight(NamedTuple):
    """A weight that an operator reads at `place` of its inputs."""

    shape: tuple[int, ...]
    matrix: Matrix
    place: int


def matmul_matrix(shape: Ints, place: int, attributes: Mapping[str, Any]) -> Matrix:
    """Return how MatMul reads a weight of `shape` at `place` of its inputs, or Gemm."""
    if len(shape) == 1:
        return Matrix(1, 1, shape[0])
    stored = bool(attributes.get("transB" if place else "transA", 0))
    turned = bool(place) != stored  # the sum is over the first of its last two axes
    rows, columns = (shape[-1], shape[-2]) if turned else (shape[-2], shape[-1])
    return Matrix(math.prod(shape[:-2]), rows, columns, turned)


def conv_matrix(shape: Ints, place: int, attributes: Mapping[str, Any]) -> Matrix:
    """Return how Conv reads a weight [M, C / group, *kernel]."""
    group = attributes.get("group", 1)
    return Matrix(group, shape[0] // group, math.prod(shape[1:]))


def matmul(weight: Weight, multiply: Multiply, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return MatMul, float64; `inputs` has the other operand, of any rank."""
    x = inputs[1 - weight.place]
    vector = x.ndim == 1
    if vector:
        x = x[:, None]
    elif weight.place == 1:
        x = x.swapaxes(-1, -2)
    y = _batches(weight, multiply, x)  # [..., rows, columns of x]
    if weight.place == 1:
        y = y.swapaxes(-1, -2)
    gone = [-2 if weight.place else -1] if vector else []
    gone += [-1 if weight.place else -2] if len(weight.shape) == 1 else []
    return y.squeeze(tuple(gone))


def _batches(weight: Weight, multiply: Multiply, x: np.ndarray) -> np.ndarray:
    """Return the products [..., rows, n] of a weight [..., rows, columns] with `x` [..., columns, n]."""
    _, rows, columns, _ = weight.matrix
    if x.shape[-2] != columns:
        raise ValueError(f"weight {list(weight.shape)} does not fit an operand of {x.shape[-2]} rows")
    batch = weight.shape[:-2]
    full = np.broadcast_shapes(x.shape[:-2], batch)
    lead, rank = len(full) - len(batch), len(full)
    own = [lead + axis for axis, size in enumerate(batch) if size != 1]
    order = [*own, rank, *(axis for axis in range(rank) if axis not in own), rank + 1]
    x = np.broadcast_to(x, (*full, *x.shape[-2:])).transpose(order)
    outer, inner = x.shape[: len(own)], x.shape[len(own) + 1 :]
    y = multiply(x.reshape(math.prod(outer) * columns, math.prod(inner)))
    return y.reshape(*outer, rows, *inner).transpose(np.argsort(order))


def gemm(
    weight: Weight,
    multiply: Multiply,
    inputs: Sequence[np.ndarray],
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> np.ndarray:
    """Return Gemm, float64; `inputs` are A, B and perhaps C, of which the weight is not read."""
    x = inputs[1 - weight.place]
    if x.ndim != 2 or len(weight.shape) != 2:
        raise ValueError(f"an operand has {x.ndim} axes, expected 2")
    operands: list[Any] = [None, None]
    operands[1 - weight.place] = x.T if (transB, transA)[weight.place] else x
    y = alpha * matmul(weight, multiply, operands)
    c = inputs[2] if len(inputs) > 2 else None
    if c is None:
        return y
    if np.broadcast_shapes(c.shape, y.shape) != y.shape:
        raise ValueError(f"C {list(c.shape)} does not fit a result {list(y.shape)}")
    return y + beta * c.astype(np.float64)


def conv(
    weight: Weight,
    multiply: Multiply,
    inputs: Sequence[np.ndarray],
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> np.ndarray:
    """Return Conv, float64 [N, M, *spatial]; `inputs` are X, the weight, which is not read, and perhaps B."""
    x, kernel, rank = inputs[0], weight.shape[2:], inputs[0].ndim - 2
    windows = Windows(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    if x.shape[1] != weight.shape[1] * group:
        raise ValueError(unfit(x, weight.shape, group))
    seen = windows.seen(windows.pad(x, 0))  # [N, C, *output, *kernel]
    order = [1, *range(2 + rank, 2 + 2 * rank), 2, 0, *range(3, 2 + rank)]
    y = multiply(seen.transpose(order), 1 + rank)  # [M, first of output, N, *others]
    y = y.transpose(2, 0, 1, *range(3, 2 + rank))
    b = inputs[2] if len(inputs) > 2 else None
    return y if b is None else y + b.astype(np.float64).reshape(-1, *[1] * rank)


# operator -> places where it reads a weight, how it reads it as a matrix, and how it runs
OPERATORS: dict[str, tuple[tuple[int, ...], Callable[..., Matrix], Callable[..., np.ndarray]]] = {
    "MatMul": ((1, 0), matmul_matrix, matmul),
    "Gemm": ((1, 0), matmul_matrix, gemm),
    "Conv": ((1,), conv_matrix, conv),
}


class Weights:
    """The encoded weights of `model`, as its operators read them.

    `counts` are those of products since they were last cleared, by node. `expanded` tells of each encoded
    weight that was, or will be, made dense after all, why.
    """

    def __init__(self, model: ir.Model) -> None:
        self.counts: dict[str, Counts] = {}
        self.expanded: dict[str, str] = {}
        self._model = model
        self._decoder = Decoder()

    def operator(self, node: ir.Node, attributes: Attributes, plain: Operator) -> tuple[Operator, int] | None:
        """Return how `node` runs on the stored form of its weight, and the place of the input it needs not.

        None where it can't; `plain` is how it runs on the whole weight.
        """
        if is_decoder(node):
            return None
        encoded = [place for place, value in enumerate(node.inputs) if self._encoded(value)]
        places, _, _ = OPERATORS.get(node.op_type if node.domain in ("", "ai.onnx") else "", ((), None, None))
        chosen = next((place for place in places if place in encoded), None)
        found = None
        for place in encoded:
            if place != chosen:
                self._expand(node, place, "reads it whole")
            elif isinstance(made := self._made(node, place, attributes, plain), str):
                self._expand(node, place, made)
            else:
                found = made, place
        return found

    def _encoded(self, value: ir.Value | None) -> bool:
        """Return whether a format computes `value`."""
        if isinstance(constant(value), SparseTensor):
            return True
        node = value.producer() if value is not None else None
        if node is not None and node.op_type == "Identity" and node.domain == "":
            return self._encoded(node.inputs[0])
        return node is not None and node.domain == DOMAIN

    def _expand(self, node: ir.Node, place: int, reason: str) -> None:
        """Note that `node` needs the whole weight."""
        value = node.inputs[place]
        assert value is not None
        told = f"{label(node)}: {reason}"
        before = self.expanded.get(value.name or "", "")
        if told not in before.split("; "):
            self.expanded[value.name or ""] = f"{before}; {told}" if before else told

    def _made(self, node: ir.Node, place: int, attributes: Attributes, plain: Operator) -> Operator | str:
        """Return how `node` runs on the stored form of its weight, or why it can't."""
        if self._model.opset_imports.get(DOMAIN, VERSION) != VERSION:
            return f"formats are not of version {VERSION}"
        value = node.inputs[place]
        elements = self._decoder.elements(value)
        if elements is None:
            return "its format can't be told element by element"
        elements = elements.listing
        settings = {name: attribute.value for name, attribute in attributes.items()}
        if reason := refusal(elements) or misfit(node.op_type, elements.shape, settings):
            return reason
        _, read, run = OPERATORS[node.op_type]
        weight = Weight(elements.shape, read(elements.shape, place, settings), place)
        product = Product(elements, weight.matrix)
        weight_bytes, index_bytes = self._stored(value)
        stored = Counts(weight_bytes=weight_bytes, index_bytes=index_bytes)
        name = label(node)

        def execute(inputs: Sequence[Any]) -> list[Any]:
            x = inputs[1 - place]
            if not np.isfinite(x).all():  # zeros times infinity are no zeros
                self._expand(node, place, "its other operand isn't finite")
                return plain(
                    [self._decoder(value) if at == place else each for at, each in enumerate(inputs)]
                )

            def multiply(columns: np.ndarray, depth: int = 1) -> np.ndarray:
                outputs = math.prod(columns.shape[depth:])
                made = stored + product.counts(outputs, x.itemsize)
                self.counts[name] = self.counts.get(name, Counts()) + made
                return product(columns, depth)

            given = list(inputs)
            given[1 - place] = x.astype(np.float64)
            return [np.asarray(run(weight, multiply, given, **settings), x.dtype, order="C")]

        return guarded(node, execute)

    @cached_property
    def _streams(self) -> dict[ir.Value, int]:
        """The bytes of each Huffman coded stream."""
        return stream_bytes(self._model, set())

    def _stored(self, value: ir.Value | None, index: bool = False) -> tuple[int, int]:
        """Return the bytes that tell a stored weight's values, and their places; all for these if `index`."""
        tensor, node = constant(value), value.producer() if value is not None else None
        if isinstance(tensor, SparseTensor):
            return tensor.values.nbytes, tensor.indices.nbytes
        if value is None or tensor is not None or value in self._streams or node is None:
            size = self._streams.get(value, tensor.nbytes if tensor is not None else 0) if value else 0
            return (0, size) if index else (size, 0)
        place = _PLACES.get(node.op_type)
        parts = [self._stored(each, index or at == place) for at, each in enumerate(node.inputs)]
        return sum(first for first, _ in parts), sum(second for _, second in parts)


def refusal(elements: Elements) -> str | None:
    """Return why a weight of `elements` must be made dense, or None."""
    values = elements.values if elements.tables is None else elements.tables.values
    if values.dtype not in _FLOATS:
        return f"it is {values.dtype}"
    if not math.prod(elements.shape):
        return "it is empty"
    if not np.isfinite(values).all():
        return "it isn't finite"
    if elements.tables is None and elements.background:
        return "what it doesn't list isn't zero"
    return None


def misfit(op: str, shape: Ints, attributes: Mapping[str, Any]) -> str | None:
    """Return why the operator `op` can't take a weight of `shape`, or None."""
    rank, group = len(shape), attributes.get("group", 1)
    fits = {"MatMul": rank >= 1, "Gemm": rank == 2, "Conv": rank >= 3 and group >= 1 and not shape[0] % group}
    return None if fits[op] else f"a shape {list(shape)} doesn't fit"
