"""What layers with weights do to labels: they end one labelling and start another.

Source: the ONNX operator specification.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.flow import Flow, Rule
from onnxcompress.channels.labels import aligned, in_rows, varying
from onnxcompress.evaluate import label


def conv(flow: Flow, node: ir.Node) -> None:
    """Conv ends one labelling and starts another; depthwise ones carry labels through."""
    weight, group = _weight(flow, node, 1), node.attributes.get_int("group", 1)
    given = flow.vector(node, 0, 1)
    if weight is None or given is None:
        _blocked(flow, node)
        return
    outputs, depth = weight[0], weight[1]
    if depth == 1 and group > 1:
        _depthwise(flow, node, given, outputs // group, len(weight), 0)
        return
    _read(flow, node, given, 1, group)
    _begin(flow, node, outputs, 0, group, len(weight), 1)


def conv_transpose(flow: Flow, node: ir.Node) -> None:
    """ConvTranspose is Conv with the first axes of its weight exchanged."""
    weight, group = _weight(flow, node, 1), node.attributes.get_int("group", 1)
    given = flow.vector(node, 0, 1)
    if weight is None or given is None:
        _blocked(flow, node)
        return
    inputs, depth = weight[0], weight[1]
    if group == inputs and depth == 1 and group > 1:
        _depthwise(flow, node, given, 1, len(weight), 0)
    elif group > 1:
        flow.freeze(given, node, "a grouped transposed convolution reads it")
        flow.keep(node.outputs[0], f"a grouped transposed convolution makes it at {label(node)}")
    else:
        _read(flow, node, given, 0, group)
        _begin(flow, node, depth, 1, group, len(weight), 1)


def _weight(flow: Flow, node: ir.Node, place: int) -> tuple[int, ...] | None:
    """Return the shape of the weight at `place`, or None where it can't be sliced."""
    value = node.inputs[place]
    return flow.shape(value) if value is not None and flow.example.fixed(value) else None


def _blocked(flow: Flow, node: ir.Node) -> None:
    flow.unknown(node, flow.refusals.get(node, "its weight is no constant"))


def _read(flow: Flow, node: ir.Node, given: np.ndarray, axis: int, group: int) -> None:
    """Note that `node` reads the channels `given` along `axis` of its weight, in `group` groups."""
    if not flow.varies(node.inputs[0], 1):
        return
    _refuse(flow, node, given)
    if group > 1:
        flow.divide(node, given, np.arange(len(given)) * group // len(given), "groups")
        flow.ride(node, 1, (0, axis), in_rows(given, group), "in")
    else:
        flow.ride(node, 1, (axis,), given, "in")


def _begin(
    flow: Flow, node: ir.Node, count: int, axis: int, group: int, rank: int, channel: int, bias: int = 2
) -> None:
    """Give the output of `node` `count` new labels along `channel` of its `rank` axes."""
    if node in flow.refusals:
        flow.keep(node.outputs[0], f"{flow.refusals[node]}: {label(node)}")
        return
    made = flow.fresh(node, count)
    if group > 1:
        flow.divide(node, made, np.arange(len(made)) * group // len(made), "equal")
    flow.ride(node, 1, (axis,), made, "out")
    flow.ride(node, bias, (0,), made)
    dims = [1] * rank
    dims[channel] = len(made)
    flow.put(node.outputs[0], made.reshape(dims))


def _depthwise(flow: Flow, node: ir.Node, given: np.ndarray, times: int, rank: int, axis: int) -> None:
    """Carry the labels `given` through a convolution that makes `times` outputs of each input."""
    if not flow.varies(node.inputs[0], 1):
        flow.put(node.outputs[0], given.reshape((1,) * rank))
        return
    made = np.repeat(given, times)
    flow.ride(node, 1, (axis,), made)
    flow.ride(node, 2, (0,), made)
    flow.spell(node, "group", [len(given)])
    _refuse(flow, node, given)
    flow.put(node.outputs[0], made.reshape(1, -1, *[1] * (rank - 2)))


def _refuse(flow: Flow, node: ir.Node, given: np.ndarray) -> None:
    """Freeze what reaches a layer that may not be touched."""
    if node in flow.refusals:
        flow.freeze(given, None, f"{flow.refusals[node]}: {label(node)}")


def gemm(flow: Flow, node: ir.Node) -> None:
    """Gemm with a constant second factor ends one labelling and starts another."""
    if flow.example.fixed(node.inputs[0]) or not flow.example.fixed(node.inputs[1]):
        flow.unknown(node, "a Gemm without a constant second factor")
        return
    across, turned = (node.attributes.get_int(name, 0) for name in ("transA", "transB"))
    given, shape = flow.vector(node, 0, 0 if across else 1), _weight(flow, node, 1)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None or shape is None or (bias is not None and not flow.example.fixed(bias)):
        flow.unknown(node, "a Gemm that adds a computed value")
        return
    axis = 1 if turned else 0
    if flow.varies(node.inputs[0]):
        flow.ride(node, 1, (axis,), given, "in")
        _refuse(flow, node, given)
    if node in flow.refusals:
        flow.keep(node.outputs[0], f"{flow.refusals[node]}: {label(node)}")
        return
    made = flow.fresh(node, shape[1 - axis])
    flow.ride(node, 1, (1 - axis,), made, "out")
    dims = flow.shape(bias) or ()
    if dims and dims[-1] > 1:
        flow.ride(node, 2, (len(dims) - 1,), made)
    flow.put(node.outputs[0], made.reshape(1, -1))


def matmul(flow: Flow, node: ir.Node) -> None:
    """MatMul by a constant matrix ends one labelling and starts another; of two activations, see product."""
    fixed = [flow.example.fixed(value) for value in node.inputs]
    if not any(fixed):
        product(flow, node)
        return
    place = fixed.index(True)
    value, shape = node.inputs[1 - place], flow.shape(node.inputs[place])
    rank = flow.before(value).ndim
    if shape is None or len(shape) != 2 or rank < 2:
        flow.unknown(node, "a product with a constant that is no matrix")
        return
    summed = rank - 1 if place else rank - 2
    given = flow.vector(node, 1 - place, summed)
    if given is None:
        flow.unknown(node, "reads channels along several axes")
        return
    if flow.varies(value):
        flow.ride(node, place, (1 - place,), given, "in")
        _refuse(flow, node, given)
    if node in flow.refusals:
        flow.keep(node.outputs[0], f"{flow.refusals[node]}: {label(node)}")
        return
    made = flow.fresh(node, shape[place])
    flow.ride(node, place, (place,), made, "out")
    dims = [1] * rank
    dims[summed] = len(made)
    flow.put(node.outputs[0], made.reshape(dims))


def product(flow: Flow, node: ir.Node) -> None:
    """Multiply two stacks of matrices, as attention does: what is summed over lives or dies together.

    Where channels differ over the stack and along the summed axis, all of one matrix are one: a head. What
    is summed over within one matrix are channels of their own.
    """
    first, second = node.inputs[:2]
    assert first is not None
    assert second is not None
    rank = max(flow.before(first).ndim, flow.before(second).ndim)
    if min(flow.before(first).ndim, flow.before(second).ndim) < 2:
        flow.unknown(node, "a product of vectors")
        return
    one, other = (aligned(flow.labels(value), rank) for value in (first, second))
    old = [aligned(flow.before(value), rank) for value in (first, second)]
    axes = [varying(each) for each in old]
    mixed = rank - 1 in axes[1] and (rank - 1 in axes[0] or rank - 2 in axes[1])
    if rank - 2 in axes[0] or mixed:
        flow.unknown(node, "multiplies channels along several axes")
        return
    turned = np.swapaxes(other, -1, -2)
    stacked = [each for each in (*axes[0], *axes[1]) if each < rank - 2]
    summed = rank - 1 in axes[0] or rank - 2 in axes[1]
    sizes = [flow.sizes(value, rank) for value in (first, second)]
    if stacked and any(sizes[0][axis] != sizes[1][axis] for axis in stacked):
        flow.unknown(node, "repeats one of the stacks it multiplies")
        return
    if summed:
        flow.tie(node, one, turned)
        flow.summed += [] if stacked else [(node, 0), (node, 1)]
    if not stacked:
        if rank - 1 in axes[1] and not summed:
            flow.put(node.outputs[0], other)
        else:
            flow.keep(node.outputs[0], f"is summed at {label(node)}")
        return
    for each in (one, other):
        flow.unite(each.reshape(-1, each.shape[-2] * each.shape[-1]))
    if not summed:
        flow.tie(node, one, turned)
    flow.put(node.outputs[0], other if rank - 1 in axes[1] else one[..., :1])


LINEAR: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
