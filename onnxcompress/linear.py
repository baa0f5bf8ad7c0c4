"""Convolutions and matrix products of a graph seen as one thing: a window, a weight and a bias.

The view that merging layers needs: read from the nodes, and written back to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.convolve import Ints, Window
from onnxcompress.cost import Cost, elements, layer_cost
from onnxcompress.edit import Edit, drop
from onnxcompress.geometry import put_window, spatial, window
from onnxcompress.layers import Layer, channel_vector, put_constant


@dataclass(frozen=True)
class Linear:
    """A Conv, Gemm or MatMul with a constant weight; behind a MatMul maybe the Add of its bias, `adder`."""

    layer: Layer
    window: Window
    adder: ir.Node | None = None

    @property
    def node(self) -> ir.Node:
        """The node with the weight."""
        return self.layer.node

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All its nodes, in their order."""
        return (self.node,) if self.adder is None else (self.node, self.adder)

    @property
    def convolution(self) -> bool:
        """Whether it is a convolution: its channels lie along axis 1, those of a product along the last."""
        return self.layer.op == "Conv"

    @property
    def input(self) -> ir.Value:
        """What it reads."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What it makes, bias included."""
        return self.nodes[-1].outputs[0]

    @property
    def spatial(self) -> Ints | None:
        """The spatial sizes of its input, or None where they aren't known."""
        return spatial(self.input, len(self.window.sizes))

    def weight(self) -> np.ndarray:
        """Return the weight, float64 [the window's shape]; CompressError where it holds NaN or infinity."""
        weight: np.ndarray = self.layer.value().astype(np.float64)
        if self.convolution:
            return weight
        if not self.node.attributes.get_int("transB", 0):
            weight = weight.T
        scaled: np.ndarray = weight * self.node.attributes.get_float("alpha", 1.0)
        return scaled

    def bias(self) -> np.ndarray:
        """Return what is added to each output channel, float64 [outputs]."""
        own = self.layer.bias()
        assert own is not None, f"{self.layer.name} has no constant bias"
        if self.adder is None:
            return own
        added = _added(self.adder, self.node.outputs[0], self.window.outputs)
        assert added is not None
        both: np.ndarray = own + added
        return both

    def cost(self) -> Cost | None:
        """Return what its nodes cost; None where shapes don't tell. The Add of a bias is part of it."""
        return self.cost_as(self.window, bool(self.bias().any()), elements(self.output))

    def cost_as(self, window: Window, biased: bool, written: int | None) -> Cost | None:
        """Return what a layer of `window` costs that reads this one's input and makes `written` elements."""
        read = elements(self.input)
        return None if read is None or written is None else layer_cost(window, read, written, biased)

    def takes_bias(self) -> bool:
        """Return whether a bias can be given to it, without a node more."""
        shape = self.input.shape
        return self.layer.op != "MatMul" or self.adder is not None or (shape is not None and len(shape) == 2)


def linear(layer: Layer) -> Linear | str:
    """Return `layer` as a window, or why it can't be seen as one."""
    if layer.op == "ConvTranspose":
        return "ConvTranspose is no plain convolution or product"
    found = window(layer)
    if isinstance(found, str):
        return found
    if layer.bias() is None:
        return "its bias is not one number for each channel"
    node = layer.node
    reader = follower(node) if layer.op == "MatMul" else None
    added = reader is not None and _added(reader, node.outputs[0], found.outputs) is not None
    return Linear(layer, found, reader if added else None)


def follower(node: ir.Node) -> ir.Node | None:
    """Return the one node, of the same graph, that reads what `node` makes; None where there is none."""
    output = node.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output():
        return None
    (use,) = uses
    reader: ir.Node = use.node
    return reader if reader.graph is node.graph and reader.domain in ("", "ai.onnx") else None


def _added(node: ir.Node, value: ir.Value, channels: int) -> np.ndarray | None:
    """Return what the Add `node` adds to each of the last axis's `channels` of `value`; None for no such."""
    if node.op_type != "Add" or value.shape is None:
        return None
    rank = len(value.shape)
    operand = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    return channel_vector(operand, rank, channels, axis=rank - 1)


def stored(layer: Layer, *arrays: np.ndarray) -> list[np.ndarray] | None:
    """Return float64 `arrays` in the dtype of the weight of `layer`; None where one overflows it."""
    with np.errstate(over="ignore"):
        found = [array.astype(layer.tensor.dtype.numpy()) for array in arrays]
    sound = all(np.isfinite(array.astype(np.float64)).all() for array in found)
    return found if sound else None


def write(edit: Edit, old: Linear, window: Window, weight: np.ndarray, bias: np.ndarray) -> None:
    """Make the nodes of `old` compute what `window`, `weight` and `bias`, of the dtype of its weight, say."""
    node = old.node
    if not old.convolution:
        weight = weight if node.attributes.get_int("transB", 0) else weight.T
        node.attributes.pop("alpha", None)
    put_constant(old.layer.weight, ir.tensor(np.ascontiguousarray(weight), name=old.layer.weight.name))
    if old.convolution:
        put_window(node, window)
    for output in {node.outputs[0]: None, old.output: None}:
        if output.shape is not None:
            dims = list(output.shape)
            dims[1 if old.convolution else -1] = window.outputs
            output.shape = ir.Shape(dims)
    if old.adder is not None or bias.any() or len(node.inputs) > 2:
        give_bias(edit, old, bias)


def give_bias(edit: Edit, old: Linear, bias: np.ndarray) -> None:
    """Let `old`, which takes one, add `bias` [channels] in place of its own."""
    if old.adder is None:
        put_bias(edit, old.layer, bias)
        return
    place = 1 if old.adder.inputs[0] is old.node.outputs[0] else 0
    addend = old.adder.inputs[place]
    assert addend is not None
    assert isinstance(old.node.graph, ir.Graph)
    content = bias.astype(old.layer.tensor.dtype.numpy())
    old.adder.replace_input_with(place, edit.constant(old.node.graph, f"{old.layer.name}_bias", content))
    drop(addend)


def put_bias(edit: Edit, layer: Layer, bias: np.ndarray) -> None:
    """Give `layer` the new `bias` [channels], not shared with others; a MatMul becomes a Gemm."""
    node = layer.node
    assert isinstance(node.graph, ir.Graph)
    old = node.inputs[2] if len(node.inputs) > 2 else None
    dtype = layer.tensor.dtype
    value = edit.constant(node.graph, f"{layer.name}_bias", bias.astype(dtype.numpy()))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
    if layer.op == "MatMul":
        node.op_type = "Gemm"
    node.attributes.pop("beta", None)
    if old is not None:
        drop(old)
