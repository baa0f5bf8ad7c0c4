"""Weights and biases of layers that compute with integers, written in steps that fit together."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.correction import fallen, rounded_off, takes_bias
from onnxcompress.edit import drop
from onnxcompress.integer import Integers
from onnxcompress.layers import Layer
from onnxcompress.linear import put_bias
from onnxcompress.offsets import offset
from onnxcompress.placement import Placement
from onnxcompress.quantize import roomy, to_int8, to_int32, weight_scale
from onnxcompress.spreading import Spread, ratios

_FLOAT = ir.DataType.FLOAT


class Scale(NamedTuple):
    """Scale (float32 []) and zero point (8-bit []) of an activation, and the constants that hold them."""

    scale: np.ndarray
    zero_point: np.ndarray
    constants: tuple[ir.Value, ir.Value]

    @property
    def dtype(self) -> ir.DataType:
        """The type of the integers."""
        return ir.DataType.from_numpy(self.zero_point.dtype)


class Steps(NamedTuple):
    """Steps [channels] of what layers make and read, in those of the whole activation, where they differ.

    `floats` are those that layers read which compute with floats.
    """

    made: dict[Layer, np.ndarray]
    read: dict[Layer, np.ndarray]
    floats: dict[Layer, np.ndarray]


def channel_steps(
    integers: Integers,
    placement: Placement,
    spread: Sequence[Spread],
    maxima: Mapping[str, np.ndarray],
    scales: Mapping[ir.Value, Scale],
) -> Steps:
    """Return the steps of channels, in those of the whole activation, of what layers make and read.

    The weights of layers that read them as floats are multiplied by them, weights and biases of those that
    make them as floats divided.
    """
    found = Steps({}, {}, {})
    for each in spread:
        scale, name = scales[each.value], each.value.name or ""
        if name in maxima and scale.zero_point == np.iinfo(scale.zero_point.dtype).min:
            ratio = ratios(maxima[name], 255 * float(scale.scale))
            if each.maker.node in placement.nodes:
                found.made[each.maker] = ratio
            else:
                bias = each.maker.bias()
                assert bias is not None
                along = ratio.reshape(-1, *[1] * (len(each.maker.shape) - 1))
                each.maker.replace_weight(partial(np.multiply, 1 / along))
                put_bias(integers.edit, each.maker, bias / ratio)
            found.read.update(dict.fromkeys(each.readers, ratio))
            for layer in each.floats:
                across = ratio.reshape(-1, *[1] * (len(layer.shape) - 1))
                layer.replace_weight(partial(np.multiply, across))
                found.floats[layer] = ratio
    return found


def weigh(
    integers: Integers,
    readers: list[Layer],
    scales: Mapping[ir.Value, Scale],
    per_channel: bool,
    levels: int,
    clip: bool,
    channels: Steps,
    means: Mapping[Layer, np.ndarray | None],
    offsets: Container[ir.Value | None],
) -> None:
    """Give `readers`, which share a weight, its int8 form, and each its int32 bias.

    The bias of those that read one of `offsets` makes up for its zero point.
    """
    first, edit, one = readers[0], integers.edit, np.float32(1)
    value, tensor, weight = first.weight, first.tensor, first.value()
    axis = first.channel_axes[-1]
    scale = weight_scale(weight, (axis,) if per_channel else (), levels, clip)
    inputs = {
        layer: scales[layer.node.inputs[0]].scale * channels.read.get(layer, one)  # type: ignore[index]
        for layer in readers
    }
    biases = {layer: layer.bias() for layer in readers}
    for layer, bias in biases.items():
        if bias is not None:
            needed = bias if per_channel else np.abs(bias).max(keepdims=True, initial=0)
            scale = roomy(scale.reshape(-1), needed, inputs[layer] * np.float32(alpha(layer))).reshape(
                scale.shape
            )
    graph = edit.model.graph
    stored = integers.stored(value, tensor, scale, levels)
    steps = scale.reshape(-1) if per_channel else scale.reshape(())
    for layer, bias in biases.items():
        own = np.asarray(steps * np.float32(alpha(layer)), np.float32)
        made = np.asarray(channels.made.get(layer, one))
        if takes_bias(layer):
            bias = bias + fallen(layer, rounded_off(weight, scale, levels), means[layer])
        layer.node.attributes.pop("alpha", None)
        counted = np.asarray(own * channels.read.get(layer, one) / made)
        its_scale = integers.constant(graph, f"{layer.name}_weight_scale", counted)
        _dequantize(integers, layer, 1, stored, its_scale, axis if per_channel else None)
        read = layer.node.inputs[0]
        counts = read in offsets
        if bias is not None and (counts or _bias(layer) is not None or (takes_bias(layer) and bias.any())):
            whole = to_int32(bias, own * inputs[layer])
            if counts:
                taken = offset(to_int8(weight, scale, levels), axis, scales[read].zero_point)  # type: ignore[index]
                whole = (whole - taken).astype(np.int32)
            _put_bias(integers, layer, whole, own * inputs[layer] / made)
    if value.uses() or value.is_graph_output():
        integers.expand(value, stored, scale, tensor.dtype)
    drop(value)


def _bias(layer: Layer) -> ir.Value | None:
    return layer.node.inputs[2] if len(layer.node.inputs) > 2 else None


def _put_bias(integers: Integers, layer: Layer, bias: np.ndarray, scale: np.ndarray) -> None:
    """Give `layer` its `bias`, int32 [channels], in steps of `scale` [channels, or one for all]."""
    edit, old = integers.edit, _bias(layer)
    graph = edit.model.graph
    stored = edit.constant(graph, f"{layer.name}_bias_int32", bias)
    its_scale = integers.constant(graph, f"{layer.name}_bias_scale", np.asarray(scale, np.float32))
    layer.node.attributes.pop("beta", None)
    layer.node.resize_inputs(3)
    _dequantize(integers, layer, 2, stored, its_scale, 0 if its_scale.shape else None)
    if old is not None:
        drop(old)


def _dequantize(
    integers: Integers, layer: Layer, place: int, stored: ir.Value, scale: ir.Value, axis: int | None
) -> None:
    """Let the node of `layer` read ``stored * scale`` as its input number `place`."""
    node = integers.edit.node(
        "DequantizeLinear",
        [stored, scale, *([integers.zeros(scale.shape)] if stored.dtype == ir.DataType.INT8 else [])],
        f"{stored.name}_dequantized",
        {} if axis is None else {"axis": axis},
        dtype=_FLOAT,
        shape=stored.shape,
    )
    integers.edit.model.graph.insert_before(layer.node, node)
    layer.node.replace_input_with(place, node.outputs[0])


def alpha(layer: Layer) -> float:
    """Return what `layer` multiplies its products by."""
    return float(layer.node.attributes.get_float("alpha", 1.0)) if layer.op == "Gemm" else 1.0
