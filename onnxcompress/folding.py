"""Per-channel multiplications and additions folded into the layer before or behind them.

A layer followed by ``y = factor * x + offset``, one factor and offset for each output channel, computes the
same with the weight scaled and the bias moved. So does a layer that follows one, for its input channels,
where it doesn't pad its input with zeros. Source: Jacob et al., CVPR 2018, section 3.2, for
BatchNormalization.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Record
from onnxcompress.edit import Edit, drop, substitute
from onnxcompress.fusion import Fusion
from onnxcompress.geometry import parametrised
from onnxcompress.layers import Layer, channel_vector, constant, layers
from onnxcompress.linear import Linear, follower, put_bias, stored

Affine = tuple[np.ndarray, np.ndarray]  # factor and offset, float64 [channels]
_ARITHMETIC = ("Add", "Div", "Mul", "Sub")


def fold_batch_norms(model: ir.Model, context: Context | None = None, exclude: str = "") -> list[str]:
    """Fold BatchNormalization and what is added or multiplied into the Conv, ConvTranspose or Gemm before.

    A MatMul of matrices becomes a Gemm to take a bias. Returns the names of the layers folded into, each
    once. Layers excluded by `context` or the pattern `exclude`, layers with a shared weight, and followers
    whose input is also read elsewhere stay. Weights are scaled when read.
    """
    context, edit = context or Context(), Edit(model)
    folded = []
    for layer in layers(model, context):
        if layer.refusal or not layer.linear or parametrised(layer.node):
            continue
        if context.excludes(layer.name, exclude):
            continue
        if len(layer.weight.uses()) == 1 and _fold_followers(edit, layer):
            folded.append(layer.name)
    return folded


def fold_after(fusion: Fusion, node: ir.Node) -> Record | None:
    """Fold what follows the layer `node` into it."""
    layer = fusion.known.get(node)
    if layer is None or layer.refusal or not layer.linear:
        return None
    name = layer.name  # which, where the node has none, is its output's: folding gives it another
    followers = _fold_followers(fusion.edit, layer)
    if not followers:
        return None
    kinds = ", ".join(each.op_type for each in followers)
    return Record(name, True, "what follows folded in", {"operators": kinds})


def fold_before(fusion: Fusion, node: ir.Node) -> Record | None:
    """Fold what the layer `node` reads into it, where that is a multiplication or addition."""
    layer, given = fusion.known.get(node), node.inputs[0] if node.inputs else None
    maker = given.producer() if given is not None else None
    if layer is None or maker is None or not layer.linear or not _is_arithmetic(maker):
        return None
    reason = layer.refusal or _fold_leader(fusion.edit, layer, maker)
    if reason is not None:
        return Record(layer.name, False, reason, {"reads": maker.name or maker.op_type})
    return Record(layer.name, True, "what it reads folded in", {"operators": maker.op_type})


def unfolded(fusion: Fusion, node: ir.Node) -> Record | None:
    """Say why `node`, a BatchNormalization or arithmetic behind a layer, is not folded into that."""
    if not _is_arithmetic(node):
        return None
    place = 0 if constant(node.inputs[0]) is None else 1
    value = node.inputs[place]
    maker = value.producer() if value is not None else None
    layer = fusion.known.get(maker) if maker is not None else None
    if node.op_type != "BatchNormalization" and (layer is None or not layer.linear):
        return None
    view = fusion.linear(maker) if layer is not None else ""
    if isinstance(view, Linear) and view.adder is node:
        return None  # it is the bias of a MatMul
    return Record(node.name or node.op_type, False, _why(node, maker, layer), {"operator": node.op_type})


def _why(node: ir.Node, maker: ir.Node | None, layer: Layer | None) -> str:
    """Return why `node` is not folded into `layer`, the one of the node `maker` that it follows, if any."""
    if maker is None or layer is None or not layer.linear:
        return f"follows {maker.op_type if maker else 'an input'}, not a layer to fold it into"
    if layer.refusal:
        return f"the layer before it must stay: {layer.refusal}"
    if follower(maker) is not node:
        return "what it follows is also read elsewhere or an output"
    bias, place = layer.bias(), _channels(layer)
    if layer.position != 1 or bias is None or place is None:
        return "the layer before it has no constant weight and bias for each channel"
    found = affine(node, len(bias), *place)
    if isinstance(found, str):
        return found
    if not _takes_bias(layer) and found[1].any():
        return "the product before it takes no bias"
    return f"the weight would overflow {layer.tensor.dtype}"


def _fold_followers(edit: Edit, layer: Layer) -> list[ir.Node]:
    """Fold what follows `layer` into it as long as it can be; return what that was."""
    bias, place = layer.bias(), _channels(layer)
    if layer.position != 1 or bias is None or place is None or layer.weight.is_graph_output():
        return []
    factor, offset, more = np.ones_like(bias), bias, _takes_bias(layer)
    followers: list[ir.Node] = []
    reader = follower(layer.node)
    while reader is not None:
        found = affine(reader, len(bias), *place)
        if isinstance(found, str) or (found[1].any() and not more):
            break
        if _overflows(layer, scaling(layer, factor * found[0]), offset * found[0] + found[1]):
            break
        factor, offset = factor * found[0], offset * found[0] + found[1]
        followers.append(reader)
        reader = follower(reader)
    if not followers:
        return []
    layer.replace_weight(scaling(layer, factor))
    if offset.any() or len(layer.node.inputs) > 2:
        put_bias(edit, layer, offset)
    for reader in followers:
        values = [value for value in reader.inputs if value is not None]
        substitute(reader.outputs[0], layer.node.outputs[0])
        for value in values:
            drop(value)
    return followers


def _fold_leader(edit: Edit, layer: Layer, leader: ir.Node) -> str | None:
    """Fold `leader`, which `layer` reads, into it; return why that can't be, or None."""
    given, output = leader.inputs[0 if constant(leader.inputs[0]) is None else 1], leader.outputs[0]
    bias, inputs = layer.bias(), _inputs(layer)
    if layer.position != 1 or bias is None or inputs is None:
        return "it has no constant matrix and bias"
    if follower(leader) is not layer.node:
        return "what it reads is also read elsewhere or an output"
    if given is None or given.shape is None or output.shape is None or given.shape != output.shape:
        return "what it reads may be of another shape before it is scaled"
    rank = len(given.shape)
    found = affine(leader, inputs, rank, 1 if "Conv" in layer.op else rank - 1)
    if isinstance(found, str):
        return found
    factor, offset = found
    scaled, more = scaling(layer, factor, inward=True), np.zeros_like(bias)
    if offset.any():
        if _pads(layer):
            return "its padding with zeros would see what is added"
        if not _takes_bias(layer):
            return "it takes no bias"
        more = scaling(layer, offset, inward=True, dtype=np.float64)(layer.value())
        kept = layer.channel_axes[0]
        more = more.sum(axis=tuple(axis for axis in range(more.ndim) if axis != kept))
        more = more * layer.node.attributes.get_float("alpha", 1.0)
    if _overflows(layer, scaled, bias + more):
        return f"its weight would overflow {layer.tensor.dtype}"
    layer.replace_weight(scaled)
    if more.any():
        put_bias(edit, layer, bias + more)
    constants = [value for value in leader.inputs if value is not None and value is not given]
    layer.node.replace_input_with(0, given)
    assert isinstance(leader.graph, ir.Graph)
    leader.graph.remove(leader, safe=True)
    for value in constants:
        drop(value)
    return None


def _pads(layer: Layer) -> bool:
    """Return whether some outputs of `layer` are made of fewer inputs than others."""
    attributes = layer.node.attributes
    padded = any(attributes.get_ints("pads", ())) or attributes.get_string("auto_pad", "NOTSET")[:4] == "SAME"
    return layer.op == "ConvTranspose" or (layer.op == "Conv" and padded)


def _takes_bias(layer: Layer) -> bool:
    """Return whether the node of `layer` can add a bias; a MatMul of matrices can as a Gemm."""
    value = layer.node.inputs[0]
    shape = value.shape if value is not None else None
    return layer.op != "MatMul" or (len(layer.shape) == 2 and shape is not None and len(shape) == 2)


def _channels(layer: Layer) -> tuple[int, int] | None:
    """Return how many axes the output of `layer` has and which holds its channels; None where unknown."""
    if layer.op != "MatMul":
        return len(layer.shape), 1
    shape = layer.node.outputs[0].shape
    if len(layer.shape) != 2 or (shape is None and not _takes_bias(layer)):
        return None
    rank = 2 if shape is None else len(shape)
    return rank, rank - 1


def _inputs(layer: Layer) -> int | None:
    """Return how many channels `layer` reads; None where its input is transposed or its weight no matrix."""
    if layer.op == "Conv":
        return layer.shape[1] * layer.node.attributes.get_int("group", 1)
    if layer.op == "ConvTranspose":
        return layer.shape[0]
    if layer.node.attributes.get_int("transA", 0) or len(layer.shape) != 2:
        return None
    return layer.shape[1 - layer.channel_axes[0]]


def _is_arithmetic(node: ir.Node) -> bool:
    """Return whether `node` is a BatchNormalization, or adds or multiplies by a constant."""
    if node.domain not in ("", "ai.onnx") or parametrised(node):
        return False
    if node.op_type == "BatchNormalization":
        return True
    constants = sum(constant(value) is not None for value in node.inputs)
    return node.op_type in _ARITHMETIC and constants == 1 and "axis" not in node.attributes


def affine(node: ir.Node, channels: int, rank: int, axis: int = 1) -> Affine | str:
    """Return what `node` does to each of the `channels` along `axis` of a tensor of `rank` axes.

    A text says why it isn't one factor and one offset each.
    """
    if not _is_arithmetic(node):
        return f"{node.op_type} is no arithmetic with a constant"
    if node.op_type == "BatchNormalization":
        return _normalization(node, channels) if axis == 1 else "its channels lie along another axis"
    place = 0 if constant(node.inputs[0]) is not None else 1
    if place == 0 and node.op_type in ("Sub", "Div"):
        return f"{node.op_type} has its constant first"
    operand = channel_vector(node.inputs[place], rank, channels, axis)
    if operand is None:
        return "its constant is not one number for each channel"
    if not np.isfinite(operand).all() or (node.op_type == "Div" and not operand.all()):
        return "it divides by zero, or its constant is not finite"
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type in ("Add", "Sub"):
        return one, operand if node.op_type == "Add" else -operand
    return operand if node.op_type == "Mul" else 1 / operand, zero


def _normalization(node: ir.Node, channels: int) -> Affine | str:
    """Return factor and offset of a BatchNormalization, or why it has none."""
    if node.attributes.get_int("training_mode", 0) or any(output.uses() for output in node.outputs[1:]):
        return "it is in training mode"
    if node.attributes.get_int("spatial", 1) == 0:
        return "it has figures for each place, not for each channel"
    figures = [constant(value) for value in node.inputs[1:5]]
    arrays = [figure.numpy().astype(np.float64) for figure in figures if figure is not None]
    if len(arrays) < 4 or any(array.size != channels for array in arrays):
        return "its figures are not constants for each channel"
    scale, shift, mean, variance = arrays
    spread = variance + node.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        return "its variance is not positive"
    factor = scale / np.sqrt(spread)
    return factor, shift - mean * factor


def scaling(
    layer: Layer, factor: np.ndarray, *, inward: bool = False, dtype: type[np.floating] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that multiplies the weight of `layer` by `factor`, float64 [channels].

    The channels are its outputs, or with `inward` its inputs. It computes in float64 and returns the weight's
    dtype unless another is given.
    """
    node, shape, kept = layer.node, layer.shape, layer.channel_axes[0]
    convolution = "Conv" in layer.op
    axis = kept if not inward else 1 - kept
    groups = node.attributes.get_int("group", 1) if convolution else 1
    rest = (1,) * (len(shape) - 2)

    def scaled(weight: np.ndarray) -> np.ndarray:
        if convolution and axis == 1:  # it counts the channels of one group; axis 0 those of all
            factors = factor.reshape(groups, 1, -1, *rest)
        elif convolution:
            factors = factor.reshape(groups, -1, 1, *rest)
        else:
            factors = factor.reshape((1, -1) if axis == 1 else (-1, 1))
        split = weight.astype(np.float64)
        split = split.reshape(groups, -1, *shape[1:]) if convolution else split
        with np.errstate(over="ignore"):
            result: np.ndarray = (split * factors).reshape(shape).astype(dtype or weight.dtype)
        return result

    return scaled


def _overflows(layer: Layer, scaled: Callable[[np.ndarray], np.ndarray], bias: np.ndarray) -> bool:
    """Return whether `layer` has a weight of 16 bits for which it, once `scaled`, or `bias` is too large."""
    if layer.tensor.dtype.bitwidth > 16:
        return False
    return stored(layer, scaled(layer.value()), bias) is None
