"""What layers and graphs cost to run: parameters, multiply-adds and activations moved, counted from shapes.

Counts are exact and for one sample: a first dimension that the model leaves open counts as one.
Source: Jha et al., The Ramifications of Making Deep Neural Networks Compact, VLSI Design 2019, for counting
activations beside multiply-adds; the ONNX operator specification for what each operator sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxcompress.convolve import Ints, Window
from onnxcompress.layers import constant

# They give the same elements another shape or name: engines move nothing for them.
VIEWS = ("Constant", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
# operator -> the input whose dimensions tell how many products make one output
PRODUCTS = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "Gemm": 0,
    "MatMul": 0,
    "MatMulInteger": 0,
    "QLinearConv": 3,
    "QLinearMatMul": 0,
}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
# They multiply and sum in ways that are not counted here, which must not be taken for none.
_UNCOUNTED = ("Attention", "DFT", "DeformConv", "Det", "LinearAttention", "MelWeightMatrix", "STFT")
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

    Multiply-adds are those of convolutions, matrix products and recurrent layers. Constants that are read
    count as parameters, other inputs as elements read; what only gives elements another shape costs nothing.
    None, too, for operators of other domains, those with graphs inside, and those that compute in ways that
    aren't counted.
    """
    if node.domain not in ("", "ai.onnx") or any(
        each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()
    ):
        return None
    if node.op_type in VIEWS:
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
    """Return the multiply-adds of `node`; None where shapes don't tell, or they aren't counted."""
    if node.op_type in GATES:
        return _recurrent(node)
    if node.op_type == "Einsum":
        return _einsum(node)
    if node.op_type not in PRODUCTS:
        return None if node.op_type in _UNCOUNTED else 0
    transposed = node.op_type == "ConvTranspose"
    counted = elements(node.inputs[0] if transposed else node.outputs[0])
    place = PRODUCTS[node.op_type]
    value = node.inputs[place]
    if counted is None or value is None or value.shape is None:
        return None
    dims = list(value.shape)
    if node.op_type == "Gemm":
        summed = dims[0 if node.attributes.get_int("transA", 0) else 1 :][:1]
    else:
        summed = dims[1:] if place else dims[-1:]
    each = _product(summed)
    return None if each is None else counted * each


def _recurrent(node: ir.Node) -> int | None:
    """Return the multiply-adds of an LSTM, GRU or RNN: each weight once for every step of every sequence.

    W is [directions, gates * hidden, inputs], R [directions, gates * hidden, hidden] and the input
    [steps, batch, inputs], or [batch, steps, inputs] with layout 1: steps * batch * (size of W + size of R).
    Element-wise products of gates and peepholes aren't counted.
    """
    x, *weights = node.inputs[:3]
    if x is None or x.shape is None or any(each is None or each.shape is None for each in weights):
        return None
    found = [_product(list(x.shape)[:2])]
    found += [_product(list(each.shape)) for each in weights if each is not None and each.shape is not None]
    steps, *sizes = (each for each in found if each is not None)
    return steps * sum(sizes) if len(sizes) == len(found) - 1 else None


def _einsum(node: ir.Node) -> int | None:
    """Return the multiply-adds of an Einsum of two operands: the product of the sizes of all its letters.

    None for other numbers of operands and for an ellipsis.
    """
    left = node.attributes.get_string("equation", "").replace(" ", "").split("->")[0].split(",")
    if len(left) != 2 or any("." in each for each in left):
        return None
    sizes: dict[str, object] = {}
    for letters, value in zip(left, node.inputs, strict=True):
        if value is None or value.shape is None or len(value.shape) != len(letters):
            return None
        sizes.update(zip(letters, value.shape, strict=True))
    return _product(list(sizes.values()))


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
