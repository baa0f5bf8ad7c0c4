"""What operators that compute do to labels: a rule for each. Source: the ONNX operator specification."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.flow import Flow, Rule, captured
from onnxcompress.channels.labels import aligned, varying
from onnxcompress.channels.linear import LINEAR
from onnxcompress.channels.moves import MOVES
from onnxcompress.channels.recurrent import RECURRENT
from onnxcompress.evaluate import label


def batch_norm(flow: Flow, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization have constants that ride along."""
    given = flow.vector(node, 0, 1)
    places = range(1, len(node.inputs))
    if given is None or not all(flow.example.fixed(node.inputs[place]) for place in places):
        flow.unknown(node, "normalises by what is no constant")
        return
    if flow.varies(node.inputs[0]):
        for place in places:
            flow.ride(node, place, (0,), given)
    flow.put(node.outputs[0], flow.labels(node.inputs[0]))
    for value in node.outputs[1:]:
        flow.keep(value, f"a statistic of {label(node)}")


def elementwise(flow: Flow, node: ir.Node) -> None:
    """Combine inputs entry by entry: labels merge, constants ride along."""
    values = [value for value in node.inputs if value is not None]
    active = [value for value in values if not flow.example.fixed(value)]
    rank = max((len(flow.shape(value) or ()) for value in values), default=0)
    rank = max([rank, *(flow.before(value).ndim for value in active)])
    merged = flow.merge(node, active, rank)
    axes = _axes(flow, active, rank)
    for place, value in enumerate(node.inputs):
        if value is not None and flow.example.fixed(value):
            _along(flow, node, place, merged, axes)
    for output in node.outputs:
        flow.put(output, merged)


def _axes(flow: Flow, values: list[ir.Value], rank: int) -> list[int]:
    """Return the axes along which what combines `values` varies."""
    return max((varying(aligned(flow.before(value), rank)) for value in values), key=len)


def _along(flow: Flow, node: ir.Node, place: int, labels: np.ndarray, axes: list[int]) -> None:
    """Let the constant at `place` ride along with `labels`, which differ along `axes`."""
    shape = flow.shape(node.inputs[place])
    if shape is None:
        flow.freeze(labels, node, "is combined with a constant of unknown shape")
        return
    first = labels.ndim - len(shape)
    own = [axis for axis in axes if axis >= first and shape[axis - first] > 1]
    if not own:
        return
    rest = [axis for axis in axes if axis not in own]
    table = np.transpose(labels, [*own, *rest, *(a for a in range(labels.ndim) if a not in axes)])
    sizes = [labels.shape[axis] for axis in own]
    flow.unite(table.reshape(int(np.prod(sizes)), -1))
    table = table.reshape(*sizes, -1)[..., 0]
    flow.ride(node, place, tuple(axis - first for axis in own), table)


def unary(flow: Flow, node: ir.Node) -> None:
    """Carry the labels of the first input to every output."""
    for output in node.outputs:
        flow.put(output, flow.labels(node.inputs[0]))


def quantize(flow: Flow, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: a scale for each channel rides along."""
    value = node.inputs[0]
    axis = node.attributes.get_int("axis", 1)
    scale = flow.shape(node.inputs[1]) if flow.example.fixed(node.inputs[1]) else None
    if scale is None or len(scale) > 1:
        flow.unknown(node, "is quantized by what is no vector of constants")
        return
    if scale and scale[0] > 1 and flow.varies(value):
        given = flow.vector(node, 0, axis)
        if given is None:
            flow.unknown(node, "is quantized along another axis")
            return
        for place in (1, 2):
            flow.ride(node, place, (0,), given)
    flow.put(node.outputs[0], flow.labels(value))


def freezing(flow: Flow, node: ir.Node) -> None:
    """Normalise over axes: channels that differ along them change one another, so they stay."""
    value = node.inputs[0]
    rank = flow.before(value).ndim
    if any(axis % max(rank, 1) in varying(flow.before(value)) for axis in _normalised(flow, node, rank)):
        flow.freeze(flow.labels(value), node, "is normalised over channels")
    flow.put(node.outputs[0], flow.labels(value))
    for output in node.outputs[1:]:
        flow.keep(output, f"a statistic of {label(node)}")


def _normalised(flow: Flow, node: ir.Node, rank: int) -> list[int]:
    """Return the axes that `node` normalises over."""
    op, attributes = node.op_type, node.attributes
    if op in ("LRN", "GroupNormalization"):
        return [1]
    if op == "MeanVarianceNormalization":
        return list(attributes.get_ints("axes", (0, 2, 3)))
    if op in ("Softmax", "LogSoftmax", "Hardmax"):
        axis = attributes.get_int("axis", -1 if flow.example.version >= 13 else 1)
        return [axis] if flow.example.version >= 13 else list(range(axis % max(rank, 1), rank))
    axis = attributes.get_int("axis", -1)
    return [axis] if op == "LpNormalization" else list(range(axis % max(rank, 1), rank))


def pool(flow: Flow, node: ir.Node) -> None:
    """Pool or resample over space: channels stay what they are."""
    value = node.inputs[0]
    found = varying(flow.before(value))
    shapes = flow.shape(value), flow.shape(node.outputs[0])
    same = all(shapes) and shapes[0][1] == shapes[1][1]  # type: ignore[index]
    if any(axis > 1 for axis in found) or (found and not same) or node.outputs[1:]:
        flow.unknown(node, "channels lie along an axis it pools or resamples")
        return
    if node.op_type == "Resize" and len(node.inputs) > 3 and node.inputs[3] is not None and found:
        rank = flow.before(value).ndim
        axes = [axis % rank for axis in node.attributes.get_ints("axes", range(rank))]
        sizes, count = flow.example.known(node.inputs[3]), flow.labels(value).shape[1]
        if 1 in axes and (sizes is None or len(sizes) != len(axes)):
            flow.unknown(node, "its sizes are computed")
            return
        if 1 in axes and sizes is not None:
            flow.spell(
                node, 3, [count if axis == 1 else int(each) for axis, each in zip(axes, sizes, strict=True)]
            )
    flow.put(node.outputs[0], flow.labels(value))


def reduce(flow: Flow, node: ir.Node) -> None:
    """Reduce over axes: sums over channels lose nothing by a channel that is zero, others freeze them."""
    value = node.inputs[0]
    before, now = flow.before(value), flow.labels(value)
    listed = flow.example.known(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and listed is None:
        flow.unknown(node, "reduces over computed axes")
        return
    axes = list(listed) if listed is not None else list(node.attributes.get_ints("axes", ()))
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        axes = []
    elif not axes:
        axes = list(range(before.ndim))
    axes = sorted({int(axis) % max(before.ndim, 1) for axis in axes})
    gone = [axis for axis in axes if axis in varying(before)]
    if gone and (node.op_type not in _SUMS or len(gone) < len(varying(before))):
        flow.freeze(now, node, "is reduced over channels")
    if gone:
        flow.summed.append((node, 0))
        flow.keep(node.outputs[0], f"is reduced over channels at {label(node)}")
        return
    kept = node.attributes.get_int("keepdims", 1)
    flow.put(node.outputs[0], now if kept else now.squeeze(tuple(axes)))


_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def _each(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    "BatchNormalization": batch_norm,
    "InstanceNormalization": batch_norm,
    "DequantizeLinear": quantize,
    "QuantizeLinear": quantize,
    **_each(
        "Add Sub Mul Div Pow Max Min Sum Mean Where And Or Xor Equal Greater GreaterOrEqual Less LessOrEqual "
        "Mod PRelu BitShift BitwiseAnd BitwiseOr BitwiseXor",
        elementwise,
    ),
    **_each(
        "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp "
        "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal "
        "Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu",
        unary,
    ),
    **_each(
        "GroupNormalization Hardmax LRN LayerNormalization LogSoftmax LpNormalization "
        "MeanVarianceNormalization RMSNormalization Softmax",
        freezing,
    ),
    **_each(
        "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample LpPool MaxPool Resize Upsample",
        pool,
    ),
    **_each(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumSquare",
        reduce,
    ),
    **LINEAR,
    **MOVES,
    **RECURRENT,
}


def otherwise(flow: Flow, node: ir.Node) -> None:
    """Freeze what reaches an operator that no rule is for, in its subgraphs too."""
    bodies = any(each.type == ir.AttributeType.GRAPH for each in node.attributes.values())
    reason = "is read inside a body" if bodies else "there is no rule"
    flow.unknown(node, reason)
    for value in captured(node):
        if value in flow.arrays:
            flow.freeze(flow.labels(value), node, reason)
