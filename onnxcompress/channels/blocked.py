"""What blocked channels carry: a constant, followed from where a mask or a zero filter makes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.find import Channels
from onnxcompress.channels.flow import Flow
from onnxcompress.channels.labels import aligned
from onnxcompress.errors import CompressError
from onnxcompress.evaluate import run_node

Carried = dict[ir.Value, np.ndarray]

_ENTRYWISE = frozenset(
    """Abs Add Cast Ceil Celu Clip Cos Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log
    Max Mean Min Mish Mul Neg PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub
    Sum Swish Tanh ThresholdedRelu Where""".split()  # noqa: SIM905
)
_MOVING = ("Flatten", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_POOLING = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")


def carried(channels: Channels) -> Carried:
    """Return for each value what its channels are everywhere, shaped as its labels; NaN: not one number."""
    flow = channels.flow
    found: Carried = {}
    for node in channels.model.graph:
        if not any(value in flow.arrays for value in node.outputs):
            continue
        made = _follow(flow, found, node)
        for place, value in enumerate(node.outputs):
            if value in flow.arrays and place < len(made):
                found[value] = made[place]
    return found


def _follow(flow: Flow, found: Carried, node: ir.Node) -> list[np.ndarray]:
    """Return what the channels of the outputs of `node` carry, as far as that is known."""
    op, shape = node.op_type, flow.arrays[node.outputs[0]].shape
    if node.domain not in ("", "ai.onnx"):
        return []
    if op in ("Conv", "Gemm", "MatMul"):
        made = _linear(flow, found, node)
    elif op in ("BatchNormalization", "InstanceNormalization"):
        made = _normalised(flow, found, node)
    elif op in _ENTRYWISE:
        made = _entrywise(flow, found, node)
    elif op == "Dropout":
        made = _given(flow, found, node)
    elif op in _POOLING:
        given = _given(flow, found, node)
        plain = op != "AveragePool" or not padded(node) or not node.attributes.get_int("count_include_pad", 0)
        made = given if plain else np.where(given == 0, given, np.nan)
    elif op == "ReduceMean":
        given = _given(flow, found, node)
        made = given.reshape(shape) if given.size == np.prod(shape) else None
    elif op in _MOVING:
        return [_moved(flow, found, node, value) for value in node.outputs]
    elif op == "Concat":
        made = _joined(flow, found, node)
    else:
        made = None
    return [] if made is None or made.shape != shape else [made]


def _given(flow: Flow, found: Carried, node: ir.Node, place: int = 0) -> np.ndarray:
    """Return what the channels of an input carry."""
    value = node.inputs[place]
    assert value is not None
    labels = flow.labels(value)
    return found.get(value, np.full(labels.shape, np.nan))


def padded(node: ir.Node) -> bool:
    """Return whether `node` sees zeros beyond the border."""
    automatic = node.attributes.get_string("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    return automatic or any(node.attributes.get_ints("pads", ()))


def weights(flow: Flow, node: ir.Node) -> np.ndarray:
    """Return what each output of a Conv, Gemm or MatMul takes of each input in all, float64 [out, in].

    Of a grouped convolution [out, in / groups].
    """
    place = 1 if flow.example.fixed(node.inputs[1]) else 0
    value = node.inputs[place]
    assert value is not None
    weight = flow.example.content(value).astype(np.float64)
    if node.op_type == "Conv":
        return np.asarray(weight.reshape(*weight.shape[:2], -1))
    if node.op_type == "Gemm":
        weight = weight if node.attributes.get_int("transB", 0) else weight.T
        return np.asarray(weight * node.attributes.get_float("alpha", 1.0))[..., None]
    return np.asarray(weight if place == 0 else weight.T)[..., None]


def offset(flow: Flow, node: ir.Node, constant: np.ndarray) -> np.ndarray:
    """Return what inputs [in] that are `constant` everywhere add to each output of `node`, float64 [out].

    NaN where one that isn't, or a constant other than zero beside zeros beyond the border, has a weight.
    """
    weight = weights(flow, node)
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    used = (weight != 0).any(axis=2)
    known = np.where(padded(node) & (constant != 0), np.nan, constant) if node.op_type == "Conv" else constant
    rows = np.repeat(known.reshape(groups, -1), len(weight) // groups, axis=0)
    terms = np.where(used, weight.sum(axis=2) * rows, 0.0)
    return np.asarray(terms.sum(axis=1))


def _linear(flow: Flow, found: Carried, node: ir.Node) -> np.ndarray | None:
    """Outputs that no varying input has a weight in are constant."""
    fixed = [flow.example.fixed(value) for value in node.inputs[:2]]
    shape = flow.arrays[node.outputs[0]].shape
    if sum(fixed) != 1 or len(flow.shape(node.inputs[fixed.index(True)]) or ()) < 2:
        return None
    weight = weights(flow, node)
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    given = _given(flow, found, node, fixed.index(False)).reshape(-1)
    count = weight.shape[1] * groups
    if given.size not in (1, count) or np.prod(shape) != len(weight):
        return None
    made = offset(flow, node, np.broadcast_to(given, count))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if not flow.example.fixed(node.inputs[2]):
            return None
        bias = flow.example.content(node.inputs[2]).astype(np.float64).reshape(-1)
        if bias.size not in (1, len(made)):
            return None
        made = made + bias * (node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0)
    return np.asarray(made.reshape(shape))


def _normalised(flow: Flow, found: Carried, node: ir.Node) -> np.ndarray | None:
    """A scale of zero leaves the bias; a constant stays one."""
    if not all(flow.example.fixed(value) for value in node.inputs[1:]):
        return None
    given = _given(flow, found, node)
    figures = [
        flow.example.content(value)
        .astype(np.float64)
        .reshape([-1 if axis == 1 else 1 for axis in range(given.ndim)])
        for value in node.inputs[1:]
        if value is not None
    ]
    if any(figure.size != given.size for figure in figures):
        return None
    if node.op_type == "InstanceNormalization":
        return np.where(np.isnan(given) & (figures[0] != 0), np.nan, figures[1])
    scale, shift, mean, variance = figures
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return np.where(factor == 0, shift, given * factor + (shift - mean * factor))


def _entrywise(flow: Flow, found: Carried, node: ir.Node) -> np.ndarray | None:
    """Compute entry by entry on what is carried; what varies beside zero is zero in a product."""
    shape = flow.arrays[node.outputs[0]].shape
    inputs: list[np.ndarray | None] = []
    for place, value in enumerate(node.inputs):
        known = flow.example.fixed(value) and value is not None
        content = flow.example.content(value) if known else None  # type: ignore[arg-type]
        condition = place == 0 and node.op_type == "Where"
        if value is None or (condition and content is not None):
            inputs.append(content)
        elif condition or (content is not None and content.dtype.kind != "f"):
            return None
        else:
            number = _given(flow, found, node, place) if content is None else content
            inputs.append(number.astype(np.float32))
    try:
        (made,) = run_node(node, inputs, flow.example.version)
    except CompressError:
        return None
    if made.dtype.kind != "f":  # to whole numbers: what follows may compute otherwise with those
        return None
    made = made.astype(np.float64)
    if len(inputs) == 1 and inputs[0] is not None:  # comparisons make a number of NaN
        made = np.where(np.isnan(inputs[0]), np.nan, made)
    if node.op_type == "Mul":
        zero = np.zeros(made.shape, bool)
        for each in inputs:
            assert each is not None
            zero |= np.broadcast_to(each == 0, made.shape)
        made = np.where(zero, 0.0, made)
    return _even(aligned(made, len(shape)), shape) if made.ndim <= len(shape) else None


def _even(values: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Return `values` in `shape`, NaN where they differ along an axis that has size 1 there."""
    for axis, size in enumerate(shape):
        if size == 1 and values.shape[axis] > 1:
            first = values.take([0], axis)
            same = (values == first).all(axis=axis, keepdims=True)
            values = np.where(same, first, np.nan)
    return np.broadcast_to(values, shape) if len(values.shape) == len(shape) else None


def _moved(flow: Flow, found: Carried, node: ir.Node, value: ir.Value) -> np.ndarray:
    """Look up by label what was carried before; NaN where one label carried several numbers."""
    source = node.inputs[0]
    assert source is not None
    target = flow.arrays[value]
    if source not in found:
        return np.full(target.shape, np.nan)
    labels, numbers = flow.arrays[source].ravel(), found[source].ravel()
    known, first, places = np.unique(labels, return_index=True, return_inverse=True)
    table = numbers[first]
    clash = np.zeros(len(known), bool)
    np.logical_or.at(clash, places, numbers != table[places])
    table = np.where(clash, np.nan, table)
    where = np.searchsorted(known, target).clip(0, len(known) - 1)
    return np.asarray(np.where(known[where] == target, table[where], np.nan))


def _joined(flow: Flow, found: Carried, node: ir.Node) -> np.ndarray | None:
    """Put side by side what is carried along the axis of channels."""
    shape = flow.arrays[node.outputs[0]].shape
    axis = node.attributes.get_int("axis", 1) % max(len(shape), 1)
    if any(size != 1 for place, size in enumerate(shape) if place != axis):
        return None
    parts = []
    for place, value in enumerate(node.inputs):
        sizes = flow.shape(value)
        if value is None or sizes is None:
            return None
        target = [sizes[axis] if each == axis else 1 for each in range(len(shape))]
        part = _even(_given(flow, found, node, place), target)
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts, axis)
