"""What layers and graphs cost to run: parameters, multiply-adds and activations moved, counted from shapes.

Counts are exact and for one sample: a first dimension that the model leaves open counts as one.
Source: Jha et al., The Ramifications of Making Deep Neural Networks Compact, VLSI Design 2019, for counting
activations beside multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcompress.convolve import Ints, Window
from onnxcompress.layers import LINEAR, constant

# They give the same elements another shape or name: engines move nothing for them.
_VIEWS = ("Constant", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
# What reading or writing one element costs, in multiply-adds: where two layers break even with one in float32
# on one core (benchmarks/fusing.py).
MACS_PER_ELEMENT = 16


@dataclass(frozen=True)
class Cost:
    """Elements of weights, multiply-adds, and elements of activations read and written."""

    parameters: int = 0
    macs: int = 0
    read: int = 0
    written: int = 0

    @property
    def moved(self) -> int:
        """How many elements of activations are read or written."""
        return self.read + self.written

    @property
    def price(self) -> int:
        """Multiply-adds and moved elements as one figure, in multiply-adds."""
        return self.macs + MACS_PER_ELEMENT * self.moved

    def share(self, whole: Cost) -> float:
        """Return the share of `whole` in parameters plus that in multiply-adds."""
        return self.parameters / whole.parameters + self.macs / max(1, whole.macs)

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(
            self.parameters + other.parameters,
            self.macs + other.macs,
            self.read + other.read,
            self.written + other.written,
        )


def elements(value: ir.Value | None) -> int | None:
    """Return how many elements `value` has for one sample; None where its shape doesn't tell."""
    if value is None or value.shape is None:
        return None
    dims = list(value.shape)
    return _product([1, *dims[1:]] if dims and not isinstance(dims[0], int) else dims)


def _product(dims: Sequence[object]) -> int | None:
    """Return the product of `dims`; None where one isn't a number."""
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(numbers) if len(numbers) == len(dims) else None


def node_cost(node: ir.Node) -> Cost | None:
    """Return what `node` costs; None where shapes don't tell.

    Multiply-adds are those of convolutions and matrix products. Constants that are read count as parameters,
    other inputs as elements read; what only gives elements another shape costs nothing.
    """
    if node.domain not in ("", "ai.onnx") or any(
        each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()
    ):
        return None
    if node.op_type in _VIEWS:
        return Cost()
    parameters, read = 0, 0
    for value in node.inputs:
        tensor = constant(value)
        count = tensor.size if tensor is not None else elements(value)
        if value is not None and count is None:
            return None
        parameters += (count or 0) if tensor is not None else 0
        read += (count or 0) if tensor is None else 0
    written = [elements(value) for value in node.outputs if value.name]
    macs = _macs(node)
    if macs is None or any(count is None for count in written):
        return None
    return Cost(parameters, macs, read, sum(count or 0 for count in written))


def layer_cost(window: Window, read: int, written: int, biased: bool = False) -> Cost:
    """Return what a layer of `window` costs that reads and writes so many elements."""
    size = math.prod(window.shape)
    return Cost(size + window.outputs * biased, written * size // window.outputs, read, written)


def chain_cost(windows: Iterable[Window], sizes: Ints) -> Cost:
    """Return what layers of `windows` without biases, one after the other, cost for one sample (or row).

    `sizes` are the spatial ones of what the first reads.
    """
    result = Cost()
    for window in windows:
        read, sizes = window.inputs * math.prod(sizes), window.output(sizes)
        result += layer_cost(window, read, window.outputs * math.prod(sizes))
    return result


def _macs(node: ir.Node) -> int | None:
    """Return the multiply-adds of `node`; None where shapes don't tell."""
    if node.op_type not in LINEAR:
        return 0
    transposed = node.op_type == "ConvTranspose"
    counted = elements(node.inputs[0] if transposed else node.outputs[0])
    value = node.inputs[0 if node.op_type in ("Gemm", "MatMul") else 1]
    if counted is None or value is None or value.shape is None:
        return None
    dims = list(value.shape)
    if node.op_type == "Gemm":
        summed = dims[0 if node.attributes.get_int("transA", 0) else 1 :][:1]
    elif node.op_type == "MatMul":
        summed = dims[-1:]
    else:
        summed = dims[1:]
    each = _product(summed)
    return None if each is None else counted * each


def total(nodes: Iterable[ir.Node]) -> Cost | None:
    """Return what `nodes`, such as those of a graph, cost together; None where one's shapes don't tell.

    A weight that several of them read counts once for each.
    """
    result = Cost()
    for node in nodes:
        cost = node_cost(node)
        if cost is None:
            return None
        result += cost
    return result
