"""Rules that make one layer of branches side by side: layers of one input, added up or concatenated.

Each rule looks at one node. It returns a record of what it merged, or of why the merge it stands for can't be
or doesn't pay; None where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import gcd

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Number, Record
from onnxcompress.convolve import Window, common, widen
from onnxcompress.cost import Cost, elements, node_cost
from onnxcompress.folding import affine
from onnxcompress.fusion import ELSEWHERE, Fusion, retire
from onnxcompress.linear import Linear, follower


@dataclass(frozen=True)
class _Branch:
    """What lies between an input and one operand of an Add or Concat, seen as a convolution."""

    window: Window
    weight: Callable[[], np.ndarray]
    bias: np.ndarray
    value: ir.Value  # the operand
    nodes: tuple[ir.Node, ...]
    cost: Cost | None
    layer: Linear | None


# Window, weight and bias of what does the same as several branches; or why nothing does.
_Joined = tuple[Window, Callable[[], np.ndarray], np.ndarray] | str


def merge_sum(fusion: Fusion, node: ir.Node) -> Record | None:
    """Make one layer of those of one input that the Add or Sum `node` adds up, that input among them."""
    if node.op_type not in ("Add", "Sum") or node.domain not in ("", "ai.onnx"):
        return None
    values = [value for value in node.inputs if value is not None]
    makers = [_maker(fusion, value) for value in values]
    groups = []
    for head in makers:
        if isinstance(head, Linear):
            branches = [
                _branch(node, value, head, maker) for value, maker in zip(values, makers, strict=True)
            ]
            groups.append([branch for branch in branches if branch is not None])
    group = max(groups, key=len, default=[])
    return _side_by_side(fusion, node, group, _added_up) if len(group) > 1 else _apart(node, makers)


def merge_concat(fusion: Fusion, node: ir.Node) -> Record | None:
    """Make one layer of neighbouring ones of one input that `node` concatenates along their channels."""
    if node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
        return None
    makers = [_maker(fusion, value) for value in node.inputs if value is not None]
    runs = [[each for each in run if isinstance(each, Linear)] for _, run in groupby(makers, key=_source)]
    run = max(runs, key=len, default=[])
    if len(run) < 2:
        return _apart(node, makers)
    axis, rank = node.attributes.get_int("axis", 0), _rank(run[0])
    if (axis % rank if rank else axis) != (1 if run[0].convolution else rank - 1):
        return Record(node.name or node.op_type, False, "it doesn't concatenate channels", {})
    branches = [_branch(node, each.output, run[0], each) for each in run]
    return _side_by_side(fusion, node, [branch for branch in branches if branch is not None], _stacked)


def _maker(fusion: Fusion, value: ir.Value) -> Linear | str | None:
    """Return the layer that makes `value`, or why it must stay; None where no layer makes it."""
    maker = value.producer()
    if maker is None:
        return None
    if maker.op_type == "Add":  # maybe that of the bias behind a MatMul
        for operand in maker.inputs:
            product = operand.producer() if operand is not None else None
            layer = fusion.linear(product) if product in fusion.known else None
            if isinstance(layer, Linear) and layer.output is value:
                return layer
    layer = fusion.linear(maker) if maker in fusion.known else None
    return None if isinstance(layer, Linear) and layer.output is not value else layer


def _source(maker: Linear | str | None) -> int:
    """Return a number that layers of one input share, and nothing else does."""
    return id(maker.input) if isinstance(maker, Linear) else 0


def _rank(layer: Linear) -> int:
    """Return how many axes the input of `layer` has; 0 where that isn't known."""
    if layer.convolution or layer.layer.op == "Gemm":
        return len(layer.window.sizes) + 2
    return 0 if layer.input.shape is None else len(layer.input.shape)


def _apart(node: ir.Node, makers: Sequence[Linear | str | None]) -> Record | None:
    """Say why `node` can't join `makers`, where at least two of them are layers."""
    heads = [maker for maker in makers if maker is not None]
    reasons = [f"a layer it joins must stay: {head}" for head in heads if isinstance(head, str)]
    if len(heads) < 2:
        return None
    reason = (reasons or ["the layers it joins read different inputs"])[0]
    return Record(node.name or node.op_type, False, reason, {})


def _branch(node: ir.Node, value: ir.Value, head: Linear, maker: Linear | str | None) -> _Branch | str | None:
    """Return what lies between the input of `head` and `value`, an operand of `node`.

    A text says why it can't be part of one layer; None, that it isn't between the two.
    """
    given = head.input
    if isinstance(maker, Linear):
        if maker.input is not given:
            return None
        if follower(maker.nodes[-1]) is not node:
            return ELSEWHERE
        return _Branch(maker.window, maker.weight, maker.bias(), value, maker.nodes, maker.cost(), maker)
    channels, axes = head.window.inputs, len(head.window.sizes)
    ones = (1,) * axes
    window = Window(channels, channels, channels, ones, ones, ones, (0,) * axes, (0,) * axes)
    shape = window.shape
    if value is given:
        return _Branch(window, lambda: np.ones(shape), np.zeros(channels), value, (), Cost(), None)
    arithmetic = value.producer()
    if arithmetic is None or given not in arithmetic.inputs:
        return None
    rank = _rank(head)
    found = affine(arithmetic, channels, rank, 1 if head.convolution else rank - 1)
    if isinstance(found, str):
        return None
    if follower(arithmetic) is not node:
        return ELSEWHERE
    factor, offset = found
    cost = node_cost(arithmetic)
    return _Branch(window, lambda: factor.reshape(shape), offset, value, (arithmetic,), cost, None)


def _added_up(parts: Sequence[_Branch], window: Window) -> _Joined:
    """Return what adds up `parts`, which lie in `window`; a text says why nothing does."""
    if len({part.window.outputs for part in parts}) > 1:
        return "the branches have different channels"
    target = replace(window, groups=gcd(*(part.window.groups for part in parts)))

    def weight() -> np.ndarray:
        return sum((widen(part.weight(), part.window, target) for part in parts), np.zeros(target.shape))

    return target, weight, np.sum([part.bias for part in parts], axis=0)


def _stacked(parts: Sequence[_Branch], window: Window) -> _Joined:
    """Return what makes the outputs of `parts`, which lie in `window`, one after the other."""
    target = replace(window, groups=1, outputs=sum(part.window.outputs for part in parts))

    def weight() -> np.ndarray:
        return np.concatenate([widen(part.weight(), part.window, target) for part in parts])

    return target, weight, np.concatenate([part.bias for part in parts])


def _side_by_side(
    fusion: Fusion,
    node: ir.Node,
    group: Sequence[_Branch | str],
    join: Callable[[Sequence[_Branch], Window], _Joined],
) -> Record:
    """Make one layer of the branches `group` of one input, which `node` joins."""
    parts = [branch for branch in group if not isinstance(branch, str)]
    numbers: dict[str, Number] = {"branches": len(group)}
    name = node.name or node.op_type

    def refuse(reason: str) -> Record:
        return Record(name, False, reason, numbers)

    if len(parts) < len(group):
        return refuse(next(branch for branch in group if isinstance(branch, str)))
    layers = [part.layer for part in parts if part.layer is not None]
    window = common([part.window for part in parts], layers[0].spatial)
    joined = join(parts, window) if window is not None else "the branches don't stride alike"
    if isinstance(joined, str):
        return refuse(joined)
    target, weight, bias = joined
    kept = next((layer for layer in layers if layer.takes_bias()), layers[0])
    nodes = [*(each for part in parts for each in part.nodes), node]
    if reason := fusion.balance(nodes, *_costs(node, parts, kept, target, bias), numbers):
        return refuse(reason)
    if reason := fusion.put(kept, layers, target, weight(), bias):
        return refuse(reason)
    _rewire(node, parts, kept)
    return Record(kept.layer.name, True, f"branches of {node.op_type} merged", numbers)


def _costs(
    node: ir.Node, parts: Sequence[_Branch], kept: Linear, target: Window, bias: np.ndarray
) -> tuple[list[Cost | None], Cost | None]:
    """Return what `parts` and `node` cost now, and what does the same once `kept` has the window `target`."""
    counts = [elements(part.value) for part in parts]
    joining = node_cost(node)
    own = counts[0]
    if joining is None or own is None or any(count is None for count in counts):
        return [None], None
    merged = own // parts[0].window.outputs * target.outputs
    after = kept.cost_as(target, bool(bias.any()), merged)
    if after is not None and len(parts) < len(node.inputs):
        read = joining.read - sum(count or 0 for count in counts) + merged
        after += replace(joining, read=read)
    return [*(part.cost for part in parts), joining], after


def _rewire(node: ir.Node, parts: Sequence[_Branch], kept: Linear) -> None:
    """Let `kept` stand for all `parts` among what `node` joins; without others, for `node` too."""
    gone = [each for part in parts if part.layer is not kept for each in part.nodes]
    if len(parts) == len(node.inputs):
        retire([*gone, node], node.outputs[0], kept.output)
        return
    first = list(node.inputs).index(parts[0].value)
    others = [value for value in node.inputs if all(value is not part.value for part in parts)]
    inputs = [*others[:first], kept.output, *others[first:]]
    for place, value in enumerate(inputs):
        node.replace_input_with(place, value)
    node.resize_inputs(len(inputs))
    retire(gone)
