"""Layers and their weights: the view of a model that all weight passes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.errors import CompressError
from onnxcompress.model import graphs, lazy

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_POSITIONS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Layer:
    """One weight of one node.

    `position` is the weight's place among the node's inputs. `refusal` says why no pass may touch the weight,
    or is None.
    """

    node: ir.Node
    position: int
    refusal: str | None = None

    @cached_property
    def name(self) -> str:
        """The node's name, or that of its first output; a second weight has its input's place added."""
        name = self.node.name or self.node.outputs[0].name or self.node.op_type
        return f"{name}#{self.position}" if self.position == 2 else name

    @property
    def op(self) -> str:
        """The operator, such as "Conv"."""
        return self.node.op_type

    @property
    def weight(self) -> ir.Value:
        """The value that holds the weight."""
        value = self.node.inputs[self.position]
        assert value is not None
        return value

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight's tensor; only where there is no refusal."""
        tensor = constant(self.weight)
        assert tensor is not None, f"{self.name} has no constant weight"
        return tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.tensor.shape.numpy())

    @property
    def size(self) -> int:
        """How many elements the weight has."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def linear(self) -> bool:
        """Whether the node is a convolution or a matrix product."""
        return self.op in LINEAR

    @property
    def channel_axes(self) -> tuple[int, ...]:
        """The axes of the weight that tell its output channels apart (for a look-up table: its rows)."""
        rank = len(self.shape)
        if self.op == "Gemm":
            flag = "transB" if self.position == 1 else "transA"
            transposed = self.node.attributes.get_int(flag, 0)
            return ((0 if transposed else 1) if self.position == 1 else (1 if transposed else 0),)
        if self.op == "MatMul":
            summed = rank - 1 if self.position == 0 else max(rank - 2, 0)
            return tuple(axis for axis in range(rank) if axis != summed)
        if self.op == "ConvTranspose":
            return (1,)
        return (0, 1) if self.op in ("LSTM", "GRU", "RNN") else (0,)

    def value(self) -> np.ndarray:
        """Return the weight [its shape, its dtype]; CompressError where it holds NaN or infinity."""
        return finite(self.tensor.numpy(), self.weight.name)

    def bias(self) -> np.ndarray | None:
        """Return what the node adds to each output channel, float64 [channels]; None where it varies."""
        node, axis = self.node, self.channel_axes[-1]
        channels = self.shape[axis] * (
            node.attributes.get_int("group", 1) if self.op == "ConvTranspose" else 1
        )
        value = node.inputs[2] if len(node.inputs) > 2 and self.linear else None
        if value is None:
            return np.zeros(channels)
        bias = (
            channel_vector(value, 2, channels, axis=1)
            if self.op == "Gemm"
            else channel_vector(value, 1, channels)
        )
        return None if bias is None else bias * node.attributes.get_float("beta", 1.0)

    def replace_weight(
        self,
        transform: Callable[[np.ndarray], np.ndarray],
        then: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        """Put ``transform(weight)``, of its shape and dtype, in the weight's place, for all that read it.

        The transform runs when the values are needed, at the latest when the model is saved, and may run more
        than once; `then` is handed each result.
        """
        source, name = self.tensor, self.weight.name

        def made(weight: np.ndarray) -> np.ndarray:
            result = transform(finite(weight, name))
            if then is not None:
                then(result)
            return result

        put_constant(self.weight, lazy(source, made))


def finite(weight: np.ndarray, name: str | None) -> np.ndarray:
    """Return `weight` [any shape, float] as it is; CompressError naming it where it holds NaN or infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        probe = float(np.sum(weight, dtype=np.float64)) if weight.size else 0.0
    if not np.isfinite(probe) and not np.isfinite(weight.astype(np.float32, copy=False)).all():
        raise CompressError(f"{name}: the weight holds NaN or infinity, expected finite numbers")
    return weight


def layers(model: ir.Model, context: Context) -> Iterator[Layer]:
    """Yield every layer with a float weight, graph by graph (subgraphs and functions included) in node order.

    A layer that must stay as it is comes with its refusal: excluded by the context, weight computed at run
    time, weight that callers may override, or weight tied to an earlier layer and changed there.
    """
    owners: dict[ir.Value, str] = {}
    for graph in graphs(model):
        for node in graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            for position in _POSITIONS.get(node.op_type, ()):
                value = node.inputs[position] if position < len(node.inputs) else None
                if value is None:
                    continue
                if constant(value) is None and value.is_initializer():  # an initializer callers may override
                    yield Layer(
                        node, position, "its weight is also a graph input, which callers may override"
                    )
                    continue
                if constant(value) is None:
                    if maker := _maker(node, value):
                        yield Layer(node, position, maker)
                    continue
                layer = Layer(node, position)
                if layer.tensor.dtype not in _FLOATS:
                    continue
                refusal = None
                if context.excludes(layer.name) or context.excludes(value.name or ""):
                    refusal = "excluded"
                elif value in owners:
                    refusal = f"tied to {owners[value]}, done there"
                owners.setdefault(value, layer.name)
                yield Layer(node, position, refusal)


def _maker(node: ir.Node, value: ir.Value) -> str | None:
    """Return as a refusal what computes `value`, a weight of `node`; None where it may be an activation."""
    last = value.producer()
    if last is None:
        return None
    first = last.inputs[0].producer() if last.op_type == "Mul" and last.inputs[0] is not None else last
    stored = constant(first.inputs[0]) if first is not None and first.inputs else None
    if first is not None and first.op_type in ("DequantizeLinear", "Cast") and stored is not None:
        return "already quantized"
    computed = node.op_type in (
        "Conv",
        "ConvTranspose",
        "LSTM",
        "GRU",
        "RNN",
    )  # others multiply activations, too
    return f"its weight is computed by {last.op_type}" if computed else None


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor that `value` always has, or None: a Constant's, or an initializer's."""
    if value is None:
        return None
    if value.is_initializer():
        return None if value.is_graph_input() else value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        attribute = node.attributes.get("value")
        return attribute.as_tensor() if attribute is not None and not attribute.is_ref() else None
    return None


def channel_vector(value: ir.Value | None, rank: int, channels: int, axis: int = 0) -> np.ndarray | None:
    """Return the constant `value` as one number for each channel, float64 [channels].

    That is what it is when combined with a tensor of `rank` axes whose channels lie along `axis`. None where
    it isn't a constant or varies along other axes.
    """
    tensor = constant(value)
    if tensor is None or len(tensor.shape) > rank or tensor.size not in (1, channels):
        return None
    dims = (1,) * (rank - len(tensor.shape)) + tuple(tensor.shape.numpy())
    if any(size != 1 for place, size in enumerate(dims) if place != axis):
        return None
    return np.broadcast_to(tensor.numpy().astype(np.float64).reshape(-1), (channels,))


def put_constant(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Make `tensor` what `value`, an initializer or the output of a Constant, holds from now on."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
    else:
        node.attributes["value"] = ir.AttrTensor("value", tensor)
