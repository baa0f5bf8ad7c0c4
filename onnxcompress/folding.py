"""Per-channel multiplications and additions folded into the layer before them.

A layer followed by ``y = factor * x + offset``, one factor and offset for each output channel, computes the
same with the weight scaled and the bias moved. Source: Jacob et al., CVPR 2018, section 3.2, for
BatchNormalization.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.edit import Edit, drop, substitute
from onnxcompress.layers import Layer, channel_vector, constant, layers

_Affine = tuple[np.ndarray, np.ndarray]  # factor and offset, float64 [channels]


def fold_batch_norms(model: ir.Model, context: Context | None = None, exclude: str = "") -> list[str]:
    """Fold BatchNormalization and what is added or multiplied into the Conv, ConvTranspose or Gemm before.

    A MatMul of matrices becomes a Gemm to take a bias. Returns the names of the layers folded into, each
    once. Layers excluded by `context` or the pattern `exclude`, layers with a shared weight, and followers
    whose input is also read elsewhere stay. Weights are scaled when read.
    """
    context, edit = context or Context(), Edit(model)
    folded = []
    for layer in layers(model, context):
        if layer.refusal or not layer.linear or context.excludes(layer.name, exclude):
            continue
        if _fold_followers(edit, layer):
            folded.append(layer.name)
    return folded


def _fold_followers(edit: Edit, layer: Layer) -> bool:
    """Fold what follows `layer` into it as long as it can be; return whether anything was."""
    bias = layer.bias()
    if layer.position != 1 or bias is None or not _takes_bias(layer):
        return False
    if len(layer.weight.uses()) > 1 or layer.weight.is_graph_output():
        return False
    factor, offset = np.ones_like(bias), bias
    followers = []
    follower = _follower(layer.node)
    while follower and (affine := _affine(follower, len(layer.shape), len(bias))):
        factor, offset = factor * affine[0], offset * affine[0] + affine[1]
        followers.append(follower)
        follower = _follower(follower)
    if not followers:
        return False
    layer.replace_weight(_scaling(layer, factor))
    put_bias(edit, layer, offset)
    for follower in followers:
        values = [value for value in follower.inputs if value is not None]
        substitute(follower.outputs[0], layer.node.outputs[0])
        for value in values:
            drop(value)
    return True


def _takes_bias(layer: Layer) -> bool:
    """Return whether the node of `layer` can add a bias; a MatMul of matrices can as a Gemm."""
    shape = layer.node.inputs[0].shape if layer.node.inputs[0] is not None else None
    return layer.op != "MatMul" or (len(layer.shape) == 2 and shape is not None and len(shape) == 2)


def _follower(node: ir.Node) -> ir.Node | None:
    """Return the one node that reads `node`'s output, or None."""
    output = node.outputs[0]
    uses = output.uses()
    if len(uses) != 1 or output.is_graph_output():
        return None
    (use,) = uses
    reader: ir.Node = use.node
    return reader if reader.graph is node.graph and reader.domain in ("", "ai.onnx") else None


def _affine(node: ir.Node, rank: int, channels: int) -> _Affine | None:
    """Return what `node` does to each channel of a tensor of `rank` axes; None where it is not affine."""
    if node.op_type == "BatchNormalization":
        return _normalization(node, channels)
    if node.op_type not in ("Mul", "Add", "Sub", "Div"):
        return None
    place = 0 if constant(node.inputs[0]) is not None else 1
    if place == 0 and node.op_type in ("Sub", "Div"):
        return None
    operand = channel_vector(node.inputs[place], rank, channels, axis=1)
    if operand is None or (node.op_type == "Div" and not operand.all()):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type in ("Add", "Sub"):
        return one, operand if node.op_type == "Add" else -operand
    return operand if node.op_type == "Mul" else 1 / operand, zero


def _normalization(node: ir.Node, channels: int) -> _Affine | None:
    """Return factor and offset of a BatchNormalization; None where it is training or not constant."""
    if node.attributes.get_int("training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        return None
    figures = [constant(value) for value in node.inputs[1:5]]
    if any(figure is None or figure.size != channels for figure in figures):
        return None
    scale, shift, mean, variance = (
        figure.numpy().astype(np.float64) for figure in figures if figure is not None
    )
    spread = variance + node.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        return None
    factor = scale / np.sqrt(spread)
    return factor, shift - mean * factor


def put_bias(edit: Edit, layer: Layer, bias: np.ndarray) -> None:
    """Give `layer` the new `bias` [channels], not shared with others."""
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


def _scaling(layer: Layer, factor: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that multiplies the weight of `layer` by `factor` [channels]."""
    shape, axis = layer.shape, layer.channel_axes[0]
    group = layer.node.attributes.get_int("group", 1) if layer.op == "ConvTranspose" else 1
    rest = (1,) * (len(shape) - axis - 1)

    def scaled(weight: np.ndarray) -> np.ndarray:
        factors = factor.astype(weight.dtype)
        if axis == 0:
            result: np.ndarray = weight * factors.reshape(-1, *rest)
            return result
        split = weight.reshape(group, -1, *shape[1:])  # a group's inputs, its outputs, the kernel
        result = split * factors.reshape(group, 1, -1, *rest)
        return result.reshape(shape)

    return scaled
