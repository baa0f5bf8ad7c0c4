"""Layers and their weights: the view of a model that all weight passes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

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
_NEVER_ACTIVATIONS = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN")  # others multiply activations, too
RANDOM = (
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
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
        """Return what the node adds to each output channel, float64 [channels].

        None where it varies, and of a product with a vector, which has no output channels.
        """
        if not self.channel_axes:
            return None
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
    """Return `weight` [any shape] as it is; CompressError naming it where it holds NaN or infinity.

    Bit patterns of numbers that aren't finite are the largest of their sign: as integers with a sign the
    positive ones, without a sign the negative ones.
    """
    if weight.dtype.kind in "iub":
        return weight
    width = weight.dtype.itemsize
    infinite = int(np.array(np.inf, weight.dtype).view(f"u{width}"))
    if weight.size and (
        int(weight.view(f"i{width}").max()) >= infinite
        or int(weight.view(f"u{width}").max()) >= infinite + (1 << 8 * width - 1)
    ):
        raise CompressError(f"{name}: the weight holds NaN or infinity, expected finite numbers")
    return weight


def layers(model: ir.Model, context: Context) -> Iterator[Layer]:
    """Yield every layer with a float weight, graph by graph (subgraphs and functions included) in node order.

    A layer that must stay as it is comes with its refusal: it or one that shares its weight is excluded by
    the context, its weight is computed or may be overridden by callers, it is a product of constants, or its
    weight is tied to an earlier layer and changed there. Activations multiplied by one another are no layer.
    """
    refusals: dict[ir.Value, dict[Layer, str | None]] = {}
    found = list(_found(model))
    for readers, reason in _groups(found, context, ""):
        tied = f"tied to {readers[0].name}, done there"
        told = refusals.setdefault(readers[0].weight, {})
        told.update((layer, reason or (tied if layer is not readers[0] else None)) for layer in readers)
    for layer in found:
        yield replace(layer, refusal=refusals[layer.weight][layer])


def by_weight(
    model: ir.Model, context: Context, exclude: str = ""
) -> Iterator[tuple[list[Layer], str | None]]:
    """Yield the layers of :func:`layers`, those that share a weight together, and why they must stay or None.

    Where `context` or the pattern `exclude` excludes one of the readers of a weight, all of them must stay.
    """
    yield from _groups(_found(model), context, exclude)


def _groups(
    found: Iterable[Layer], context: Context, exclude: str
) -> Iterator[tuple[list[Layer], str | None]]:
    groups: dict[ir.Value, list[Layer]] = {}
    for layer in found:
        groups.setdefault(layer.weight, []).append(layer)
    for weight, readers in groups.items():
        excluded = [layer for layer in readers if context.excludes(layer.name, exclude)]
        if context.excludes(weight.name or "") or len(excluded) == len(readers):
            yield readers, "excluded"
        elif excluded:
            yield readers, "its weight is shared with an excluded layer"
        else:
            yield from (([layer], layer.refusal) for layer in readers if layer.refusal)
            if free := [layer for layer in readers if not layer.refusal]:
                yield free, None


class _Origin(NamedTuple):
    """A constant, or what is computed from constants: its dtype, and if it is stored in 8 bits or fewer."""

    dtype: ir.DataType | None
    quantized: bool = False


def _found(model: ir.Model) -> Iterator[Layer]:
    """Yield every layer with a float weight, with the refusal that lies in the node itself."""
    computed: dict[ir.Value, _Origin] = {}  # nodes come in topological order, outer graphs before inner ones
    for graph in graphs(model):
        for node in graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            found = [
                Layer(node, position, reason or None)
                for position in _POSITIONS.get(node.op_type, ())
                if (reason := _reason(node, position, computed)) is not None
            ]
            origin = _computed(node, computed)
            if len(found) == 2 and node.op_type in ("MatMul", "Gemm"):  # a node is one layer
                free = [layer for layer in found if not layer.refusal]
                found = [Layer(node, 1, "constant: simplify folds it")] if origin else (free or found)[-1:]
            yield from found
            if origin is not None:
                computed.update(dict.fromkeys(node.outputs, origin))


def _reason(node: ir.Node, position: int, computed: Mapping[ir.Value, _Origin]) -> str | None:
    """Return why the weight that `node` reads at `position` must stay, "" if it mustn't; None: no weight."""
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None:
        return None
    tensor, maker, origin = constant(value), value.producer(), computed.get(value)
    if tensor is not None:
        return "" if tensor.dtype in _FLOATS else None
    if value.is_initializer():
        return "its weight is also a graph input, which callers may override"
    if maker is None or (origin is None and node.op_type not in _NEVER_ACTIVATIONS):
        return None
    if origin is not None and origin.quantized:
        return "already quantized"
    if origin is not None and origin.dtype not in _FLOATS:
        return None
    return f"its weight is computed by {maker.op_type}"


def _computed(node: ir.Node, computed: Mapping[ir.Value, _Origin]) -> _Origin | None:
    """Return what `node` computes from constants alone; None where it doesn't."""
    kind = node.outputs[0].dtype if node.outputs else None
    if node.op_type == "Constant":
        (name,) = list(node.attributes) or [""]
        if constant(node.outputs[0]) is not None or node.attributes[name].is_ref():
            return None
        return _Origin(ir.DataType.FLOAT if name.startswith("value_float") else kind)
    if node.op_type in RANDOM or any(each.type in _BODIES for each in node.attributes.values()):
        return None
    origins = []
    for value in node.inputs:
        tensor = constant(value)
        origin = _Origin(tensor.dtype) if tensor is not None else computed.get(value) if value else None
        if value is not None and origin is None:
            return None
        if origin is not None:
            origins.append(origin)
    if not origins:
        return None
    first, quantized = origins[0].dtype, origins[0].quantized
    if node.op_type == "Cast":
        small = first is not None and first != ir.DataType.BOOL and first.bitwidth <= 8
        return _Origin(ir.DataType(node.attributes.get_int("to", 0)), quantized or small)
    if node.op_type in ("ArgMax", "ArgMin", "NonZero", "Shape", "Size"):
        return _Origin(ir.DataType.INT64)
    if node.op_type == "ConstantOfShape":
        filler = node.attributes.get("value")
        return _Origin(filler.as_tensor().dtype if filler is not None else ir.DataType.FLOAT)
    if node.op_type == "DequantizeLinear":
        return _Origin(kind or ir.DataType.FLOAT, True)
    if node.op_type in ("Add", "Div", "Mul", "Sub"):
        quantized = any(origin.quantized for origin in origins)
    return _Origin(kind or first, quantized)


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
    value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    if node is None:
        value.const_value = tensor
    else:
        node.attributes["value"] = ir.AttrTensor("value", tensor)
