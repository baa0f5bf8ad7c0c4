"""Channels counted in other units between the layers that make them and those that read them.

Where all operators between are positively homogeneous, a channel may be divided by any positive number where
it is made and multiplied by it where it is read. Sources: Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV 2019; Meller et al., Same, Same But Different, ICML 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.channels.find import Channels, find
from onnxcompress.channels.flow import Ride
from onnxcompress.channels.labels import varying
from onnxcompress.channels.records import name_of
from onnxcompress.channels.score import collect, largest_activations, norms
from onnxcompress.layers import constant, put_constant
from onnxcompress.model import lazy

SAMPLES = 16  # of the calibration data that are looked at
SHARE = 0.75  # of what channels differ in that activations get rid of; what is left, weights do
MOST = 64.0  # by which a channel is multiplied or divided at most
LEAST = 1.25  # where all channels of a family are nearer to their best, they stay as they are
_HOMOGENEOUS = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"),
    *("Relu", "LeakyRelu", "PRelu", "Abs", "Neg", "Identity", "Dropout", "Sum", "Mean", "Max", "Min"),
    *("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"),
    *("Concat", "Split", "Slice", "Gather", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
    *("Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
)
# Which constants that go along with channels are divided as these are; others stay as they are.
_DIVIDED: Mapping[str, tuple[int, ...]] = {
    "Add": (0, 1),
    "BatchNormalization": (2, 3),
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "Sub": (0, 1),
}
_KEPT: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 4),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Div": (1,),
    "Mul": (0, 1),
    "PRelu": (1,),
}


def equalize(model: ir.Model, context: Context, exclude: str) -> tuple[dict[str, float], dict[str, str]]:
    """Equalize the ranges of the channels of `model` that layers make and read, in place.

    A channel is divided by what it holds at most to the power of SHARE, over the norm of the weights that
    read it to the power of the rest: SHARE of a half would make both equally even, but weights have scales of
    their own for each output. Both are relative to the mean over the channels. What a channel holds is found
    on calibration data, or else taken to be proportional to the largest weight that makes it. Returns the
    layers whose outputs changed, each with the largest factor, and why the outputs of other layers stay.
    """
    channels = find(model, context, exclude)
    _freeze(channels)
    if channels.units.frozen.all():  # the model needn't run to find that nothing changes
        context = replace(context, calibration=None)
    factors = _factors(channels, _held(channels, context))
    changed = _rescale(channels, factors)
    stay: dict[str, str] = {}
    for family in channels.units.families:
        reasons = [reason for unit in family.units if (reason := channels.units.reason(int(unit)))]
        for node in family.layers:
            if node not in changed:
                stay[name_of(node)] = reasons[0] if reasons else "its channels are as they should be"
    return {name_of(node): factor for node, factor in changed.items()}, stay


def _held(channels: Channels, context: Context) -> np.ndarray:
    """Return what each unit holds at most, relative to the others of its activations; NaN: nothing known."""
    rides = list(channels.flow.rides.values())
    if context.calibration is None or context.runtime is None:
        made = [(each, norms(channels, each, "largest")) for each in rides if each.role == "out"]
        return collect(channels, made, "max")
    data = context.calibration.take(SAMPLES)
    return largest_activations(channels, data, context.runtime)


def _factors(channels: Channels, held: np.ndarray) -> np.ndarray:
    """Return by what each unit is to be divided, float64 [units], if it holds as much as `held`, relatively.

    Their median over a family is one.
    """
    rides = channels.flow.rides.values()
    read = [(each, norms(channels, each, "l2")) for each in rides if each.role == "in"]
    weights = collect(channels, read, "max")
    free = ~channels.units.frozen & (held > 0) & (weights > 0)
    wanted = np.zeros(len(held))
    wanted[free] = SHARE * np.log(held[free]) - (1 - SHARE) * np.log(weights[free])
    for family in channels.units.families:
        units = family.units[free[family.units]]
        if len(units):
            wanted[units] -= np.median(wanted[units])
            if np.abs(wanted[units]).max() < np.log(LEAST):
                wanted[units] = 0
    return np.exp(wanted).clip(1 / MOST, MOST)


def _freeze(channels: Channels) -> None:
    """Freeze the units of `channels` that can't be counted in other units, each with its reason."""
    flow, units = channels.flow, channels.units
    for node in channels.model.graph:
        values = [each for each in (*node.inputs, *node.outputs) if each in flow.arrays]
        met = [flow.arrays[each].ravel() for each in values if each and varying(flow.arrays[each])]
        reason = _refusal(channels, node) if met else None
        if reason:
            units.freeze(np.unique(units.of[np.concatenate(met)]), reason)
    for ride in flow.rides.values():
        value = ride.node.inputs[ride.place]
        tensor = None if value is None else constant(value)
        if value is None or tensor is None or not tensor.dtype.is_floating_point():
            reason = "a constant that goes along is computed, or no float"
        elif len(value.uses()) > 1 or value.is_graph_output() or value.is_graph_input():
            reason = f"{value.name} is shared, a graph input or output"
        else:
            continue
        units.freeze(np.unique(units.of[ride.labels.ravel()]), reason)


def _refusal(channels: Channels, node: ir.Node) -> str | None:
    """Return why what `node` computes isn't scaled as the channels it meets are, or None."""
    flow, op = channels.flow, node.op_type
    fixed = [
        place for place, value in enumerate(node.inputs) if value is not None and flow.example.fixed(value)
    ]
    if op in ("Add", "Sub", "Mul", "Div"):
        allowed = _KEPT.get(op) or _DIVIDED[op]
        riding = {place for each, place, _ in flow.rides if each is node}
        if op in ("Mul", "Div") and (len(fixed) != 1 or fixed[0] not in allowed):
            return f"{op} of two activations is not homogeneous"
        if op in ("Add", "Sub") and not riding.issuperset(fixed):
            return "a number is added to all channels"
    elif op == "Pad":
        if node.attributes.get_string("mode", "constant") == "constant" and not _pads_zeros(channels, node):
            return "pads with other numbers than zero"
    elif op == "Gemm":
        if 2 in fixed and (node, 2) not in {(each, place) for each, place, _ in flow.rides}:
            return "one number is added to all channels"
    elif op not in _HOMOGENEOUS:
        return f"{op} is not positively homogeneous"
    return None


def _pads_zeros(channels: Channels, node: ir.Node) -> bool:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        known = channels.flow.example.known(node.inputs[2])
        return known is not None and not np.any(known)
    return node.attributes.get_float("value", 0.0) == 0


def _rescale(channels: Channels, factors: np.ndarray) -> dict[ir.Node, float]:
    """Divide each channel by its own of `factors` [units] where it is made, multiply by it where it is read.

    Returns the layers whose outputs change with the largest factor of each.
    """
    changed: dict[ir.Node, float] = {}
    for ride in channels.flow.rides.values():
        own, sign = factors[channels.units.of[ride.labels]], _sign(ride)
        value = ride.node.inputs[ride.place]
        if not sign or value is None or (own == 1).all():
            continue
        if ride.role == "out":
            changed[ride.node] = float(np.exp(np.abs(np.log(own)).max()))
        tensor = constant(value)
        assert tensor is not None
        along = _along(ride, own**sign, tensor.shape.numpy())
        put_constant(value, lazy(tensor, partial(_product, factors=along)))
    return changed


def _product(weight: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return np.asarray(weight * factors, weight.dtype)


def _sign(ride: Ride) -> int:
    """Return whether the slices of `ride` are multiplied by the factors (1), divided (-1) or stay (0)."""
    if ride.role != "with":
        return 1 if ride.role == "in" else -1
    return -1 if ride.place in _DIVIDED.get(ride.node.op_type, ()) else 0


def _along(ride: Ride, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return `values`, one for each slice of `ride`, broadcastable to its constant of `shape`."""
    if ride.role == "in" and ride.axes == (0, 1):  # each group reads channels of its own
        values = np.repeat(values, shape[0] // len(values), axis=0)
    dims = [1] * len(shape)
    for axis, size in zip(ride.axes, values.shape, strict=True):
        dims[axis] = size
    order = np.argsort(ride.axes)
    return np.transpose(values, order).reshape(dims)
