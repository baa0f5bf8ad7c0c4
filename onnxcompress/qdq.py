"""Writing a placement into a model: integer weights and biases, and Q/DQ pairs between the operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.calibrate import Range, Statistics
from onnxcompress.correction import fallen, rounded_off, takes_bias
from onnxcompress.edit import drop, substitute
from onnxcompress.integer import Integers
from onnxcompress.layers import Layer, constant
from onnxcompress.model import lazy
from onnxcompress.placement import Placement
from onnxcompress.quantize import (
    FULL,
    Activations,
    activation_scale,
    roomy,
    to_int32,
    to_integers,
    weight_scale,
)
from onnxcompress.shielding import shielded
from onnxcompress.spreading import Spread, ratios

_FLOAT = ir.DataType.FLOAT


class _Scale(NamedTuple):
    """Scale and zero point of an activation, and the constants that hold them."""

    scale: np.ndarray
    zero_point: np.ndarray
    constants: tuple[ir.Value, ir.Value]

    @property
    def dtype(self) -> ir.DataType:
        """The type of the integers."""
        return ir.DataType.from_numpy(self.zero_point.dtype)


class _Steps(NamedTuple):
    """Steps [channels] of what layers make and read, in those of the whole activation, where they differ.

    `floats` are those that layers read which compute with floats.
    """

    made: dict[Layer, np.ndarray]
    read: dict[Layer, np.ndarray]
    floats: dict[Layer, np.ndarray]


def refusal(layer: Layer, main: ir.Graph) -> str | None:
    """Return why the node of `layer` can't compute with integers whose ranges are calibrated, or None."""
    if layer.node.graph is not main:
        return "inside a subgraph or function, where activations are not calibrated"
    if layer.op not in ("Conv", "Gemm", "MatMul") or layer.position != 1:
        return "no integer kernel for it"
    if layer.tensor.dtype != _FLOAT:
        return f"its weight is {layer.tensor.dtype}, integer kernels take float32"
    if layer.op == "MatMul" and len(layer.shape) != 2:
        return f"its weight has {len(layer.shape)} axes, integer kernels take 2"
    if layer.op == "Gemm" and (layer.node.attributes.get_int("transA", 0) != 0 or _alpha(layer) <= 0):
        return "its input is transposed or its product negated"
    return "its bias is not a constant for each channel" if layer.bias() is None else None


def write(
    integers: Integers,
    placement: Placement,
    weights: Sequence[list[Layer]],
    found: Statistics,
    per_channel: bool,
    form: Activations = Activations(),  # noqa: B008  frozen
    levels: int = FULL,
    clip: bool = False,
    spread: Sequence[Spread] = (),
) -> dict[Layer, np.ndarray]:
    """Make the operators of `placement` compute with integers, `levels` of them on each side of a weight.

    `weights` are the layers of the placement, those that share a weight together. `found` has the ranges of
    the values that the placement observes; constants among these are looked at here. Where it has the largest
    numbers of the channels of an activation in `spread`, each channel gets steps of its own; where it has the
    means of what a layer reads, its bias makes up for what rounding its weight does to the means it makes.
    Return for layers of `spread` that compute with floats the steps [channels] of what they read, in those of
    the whole activation, which their weights have been multiplied by.
    """
    scales = _scales(integers, placement, found.ranges, form)
    steps = _steps(spread, found.maxima, scales)
    means = {
        layer: found.means.get(value.name or "")
        for readers in weights
        for layer in readers
        if (value := layer.node.inputs[0]) is not None
    }
    stands = dict(_remove(node) for node in placement.bounded)
    scales = {stands.get(value, value): scale for value, scale in scales.items()}  # in the order of the graph
    for readers in weights:
        _weigh(integers, readers, scales, per_channel, levels, clip, steps, means)
    for value, scale in scales.items():
        maker = value.producer()
        if constant(value) is not None:
            _constant(integers, placement, value, scale)
        elif maker is not None and maker.op_type == "Pad" and maker in placement.nodes:
            _pad(integers, maker, scale)
        else:
            _pair(integers, placement, value, scale)
    return steps.floats


def _scales(
    integers: Integers, placement: Placement, ranges: Mapping[str, Range], form: Activations
) -> dict[ir.Value, _Scale]:
    """Return the scale of every value to quantize; values of one group have the same."""
    ends: dict[ir.Value, Range] = {}
    for value in placement.observed():
        group = placement.group(value)
        low, high = _known(value) or ranges[value.name or ""]
        before = ends.get(group, (0.0, 0.0))
        ends[group] = min(low, before[0]), max(high, before[1])
    made = {}
    for group, (low, high) in ends.items():
        scale, zero_point = activation_scale(low, high, form)
        graph = integers.edit.model.graph
        held = tuple(
            integers.constant(graph, f"{group.name}_{kind}", content)
            for kind, content in (("scale", scale), ("zero_point", zero_point))
        )
        made[group] = _Scale(scale, zero_point, (held[0], held[1]))
    return {value: made[placement.group(value)] for value in placement.values}


def _steps(
    spread: Sequence[Spread], maxima: Mapping[str, np.ndarray], scales: Mapping[ir.Value, _Scale]
) -> _Steps:
    """Return the steps of channels, in those of the whole activation, of what layers make and read.

    The weights of layers that read them as floats are multiplied by them.
    """
    found = _Steps({}, {}, {})
    for each in spread:
        scale, name = scales[each.value], each.value.name or ""
        if name in maxima and scale.zero_point == np.iinfo(scale.zero_point.dtype).min:
            ratio = ratios(maxima[name], 255 * float(scale.scale))
            found.made[each.maker] = ratio
            found.read.update(dict.fromkeys(each.readers, ratio))
            for layer in each.floats:
                across = ratio.reshape(-1, *[1] * (len(layer.shape) - 1))
                layer.replace_weight(partial(np.multiply, across))
                found.floats[layer] = ratio
    return found


def _known(value: ir.Value) -> Range | None:
    """Return the range of `value` where it is a constant, else None."""
    tensor = constant(value)
    if tensor is None:
        return None
    content = tensor.numpy()
    return (float(content.min()), float(content.max())) if content.size else (0.0, 0.0)


def _remove(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Remove a Relu or Clip whose output's range does its work; return that output, and its substitute."""
    before, after, bounds = node.inputs[0], node.outputs[0], [*node.inputs[1:]]
    assert before is not None
    substitute(after, before)
    for value in bounds:
        if value is not None:
            drop(value)
    return after, before


def _weigh(
    integers: Integers,
    readers: list[Layer],
    scales: Mapping[ir.Value, _Scale],
    per_channel: bool,
    levels: int,
    clip: bool,
    channels: _Steps,
    means: Mapping[Layer, np.ndarray | None],
) -> None:
    """Give `readers`, which share a weight, its int8 form, and each its int32 bias."""
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
            scale = roomy(scale.reshape(-1), needed, inputs[layer] * np.float32(_alpha(layer))).reshape(
                scale.shape
            )
    graph = edit.model.graph
    stored = integers.stored(value, tensor, scale, levels)
    steps = scale.reshape(-1) if per_channel else scale.reshape(())
    for layer, bias in biases.items():
        own = np.asarray(steps * np.float32(_alpha(layer)), np.float32)
        made = np.asarray(channels.made.get(layer, one))
        if takes_bias(layer):
            bias = bias + fallen(layer, rounded_off(weight, scale, levels), means[layer])
        layer.node.attributes.pop("alpha", None)
        counted = np.asarray(own * channels.read.get(layer, one) / made)
        its_scale = integers.constant(graph, f"{layer.name}_weight_scale", counted)
        _dequantize(integers, layer, 1, stored, its_scale, axis if per_channel else None)
        if bias is not None and (_bias(layer) is not None or (takes_bias(layer) and bias.any())):
            _put_bias(integers, layer, bias, own * inputs[layer], made)
    if value.uses() or value.is_graph_output():
        integers.expand(value, stored, scale, tensor.dtype)
    drop(value)


def _bias(layer: Layer) -> ir.Value | None:
    return layer.node.inputs[2] if len(layer.node.inputs) > 2 else None


def _put_bias(
    integers: Integers, layer: Layer, bias: np.ndarray, scale: np.ndarray, made: np.ndarray
) -> None:
    """Give `layer` its `bias` [channels] in steps of `scale` [channels, or one for all].

    Read as steps of ``scale / made``.
    """
    edit, old = integers.edit, _bias(layer)
    graph = edit.model.graph
    stored = edit.constant(graph, f"{layer.name}_bias_int32", to_int32(bias, scale))
    its_scale = integers.constant(graph, f"{layer.name}_bias_scale", np.asarray(scale / made, np.float32))
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


def _alpha(layer: Layer) -> float:
    return float(layer.node.attributes.get_float("alpha", 1.0)) if layer.op == "Gemm" else 1.0


def _pair(integers: Integers, placement: Placement, value: ir.Value, scale: _Scale) -> None:
    """Put a Q/DQ pair behind `value`.

    What an integer operator makes leaves it as integers, so that all readers get the rounded numbers; of
    another value only integer operators do.
    """
    edit, native = integers.edit, value.producer() in placement.nodes
    if not native:
        value = shielded(edit, placement, value)
    uses = [use for use in value.uses() if native or value in placement.read(use.node)]
    quantize = edit.node(
        "QuantizeLinear",
        [value, *scale.constants],
        f"{value.name}_quantized",
        dtype=scale.dtype,
        shape=value.shape,
    )
    dequantize = edit.node(
        "DequantizeLinear",
        [quantize.outputs[0], *scale.constants],
        f"{value.name}_dequantized",
        dtype=_FLOAT,
        shape=value.shape,
    )
    edit.after(value, [quantize, dequantize], edit.model.graph)
    rounded = dequantize.outputs[0]
    for node, place in uses:
        node.replace_input_with(place, rounded)
    outputs = edit.model.graph.outputs
    if native and value.is_graph_output():
        for place, output in enumerate(outputs):
            if output is value:
                outputs[place] = rounded
        rounded.shape, rounded.type = value.shape, value.type
        rounded.name, value.name = value.name, edit.name(f"{value.name}_float")


def _pad(integers: Integers, node: ir.Node, scale: _Scale) -> None:
    """Let `node`, a Pad behind a Q/DQ pair, pad integers: onnxruntime has no rule that does it."""
    edit, value = integers.edit, node.outputs[0]
    dequantized = node.inputs[0].producer()  # type: ignore[union-attr]
    assert dequantized is not None
    assert node.inputs[1] is not None
    inputs = [dequantized.inputs[0], node.inputs[1], scale.constants[1], *node.inputs[3:]]
    padded = edit.node("Pad", inputs, f"{value.name}_quantized", dtype=scale.dtype, shape=value.shape)
    padded.attributes.update(node.attributes)
    last = edit.node(
        "DequantizeLinear", [padded.outputs[0], *scale.constants], f"{value.name}_dequantized", dtype=_FLOAT
    )
    edit.model.graph.insert_before(node, [padded, last])
    substitute(value, last.outputs[0])
    if not dequantized.outputs[0].uses():
        edit.model.graph.remove(dequantized, safe=True)


def _constant(integers: Integers, placement: Placement, value: ir.Value, scale: _Scale) -> None:
    """Let integer operators read the constant `value` as integers."""
    edit, tensor = integers.edit, constant(value)
    assert tensor is not None
    content = lazy(
        tensor, lambda values: to_integers(values, scale.scale, scale.zero_point), dtype=scale.dtype
    )
    graph = edit.model.graph
    stored = edit.constant(graph, f"{value.name}_{scale.zero_point.dtype}", content)
    node = edit.node(
        "DequantizeLinear",
        [stored, *scale.constants],
        f"{value.name}_dequantized",
        dtype=_FLOAT,
        shape=value.shape,
    )
    edit.after(value, [node], graph)
    for reader, place in value.uses():
        if value in placement.read(reader):
            reader.replace_input_with(place, node.outputs[0])
    drop(value)
