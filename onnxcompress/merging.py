"""Rules that make one layer of several in a row: zero padding, and consecutive layers.

Each rule looks at one node. It returns a record of what it merged, or of why the merge it stands for can't be
or doesn't pay; None where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxcompress.base import Number, Record
from onnxcompress.convolve import compose, compose_bias, composed, sees_outside
from onnxcompress.cost import elements
from onnxcompress.fusion import ELSEWHERE, Fusion, retire
from onnxcompress.geometry import PARAMETRISED, parametrised
from onnxcompress.layers import constant
from onnxcompress.linear import Linear, follower


def merge_pad(fusion: Fusion, node: ir.Node) -> Record | None:
    """Give the zeros that the Pad `node` adds to the convolutions that read it."""
    if node.op_type != "Pad" or node.domain not in ("", "ai.onnx"):
        return None
    output = node.outputs[0]
    readers = [fusion.linear(use.node) for use in output.uses() if use.idx == 0]
    able = [reader for reader in readers if isinstance(reader, Linear) and reader.convolution]
    if not able:
        return None
    amounts = _zeros(node, len(able[0].window.sizes))
    reason = amounts if isinstance(amounts, str) else None
    if len(able) < len(output.uses()) or output.is_graph_output():
        reason = "what it pads is read by others than convolutions that can pad, or an output"
    if reason is not None or isinstance(amounts, str):
        return Record(node.name or node.op_type, False, reason or "", {})
    front, back = amounts
    for reader in able:
        window = reader.window
        pads = [p + f for p, f in zip((*window.front, *window.back), (*front, *back), strict=True)]
        reader.node.attributes.pop("auto_pad", None)
        reader.node.attributes["pads"] = ir.AttrInt64s("pads", pads)
        reader.node.replace_input_with(0, node.inputs[0])
    retire([node])
    return Record(able[0].layer.name, True, "Pad folded in", {"pad": node.name or ""})


def _zeros(node: ir.Node, rank: int) -> tuple[Sequence[int], Sequence[int]] | str:
    """Return how many zeros the Pad `node` puts before and behind each of `rank` spatial axes, or why not."""
    if parametrised(node):
        return PARAMETRISED
    if node.attributes.get_string("mode", "constant") != "constant":
        return "it doesn't pad with zeros"
    value = node.inputs[2] if len(node.inputs) > 2 else None
    filler = constant(value)
    if node.attributes.get_float("value", 0.0) or (value is not None and filler is None):
        return "it doesn't pad with zeros"
    if filler is not None and filler.numpy().any():
        return "it doesn't pad with zeros"
    if "pads" in node.attributes:
        amounts = list(node.attributes.get_ints("pads", ()))
    else:
        tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if tensor is None:
            return "how much it pads isn't constant"
        amounts = tensor.numpy().tolist()
    axes = list(range(rank + 2))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        tensor = constant(node.inputs[3])
        if tensor is None:
            return "which axes it pads isn't constant"
        axes = [axis % (rank + 2) for axis in tensor.numpy().tolist()]
    half = len(amounts) // 2
    front, back = [0] * (rank + 2), [0] * (rank + 2)
    for axis, less, more in zip(axes, amounts[:half], amounts[half:], strict=True):
        front[axis], back[axis] = less, more
    if any((*front[:2], *back[:2])) or min((*front, *back)) < 0:
        return "it pads other axes than the spatial ones, or cuts"
    return front[2:], back[2:]


def merge_sequence(fusion: Fusion, node: ir.Node) -> Record | None:
    """Compose the layer `node` with the one that follows it."""
    layer = fusion.known.get(node)
    if layer is None or not layer.linear:
        return None
    one = fusion.linear(node)
    output = node.outputs[0] if isinstance(one, str) else one.output
    readers = [fusion.known[use.node] for use in output.uses() if use.idx == 0 and use.node in fusion.known]
    if not readers or not readers[0].linear:
        return None
    two = fusion.linear(readers[0].node)
    numbers: dict[str, Number] = {"second": readers[0].name}
    if isinstance(one, str):
        return Record(layer.name, False, one, numbers)
    if isinstance(two, str):
        return Record(layer.name, False, f"the layer behind it must stay: {two}", numbers)
    reason = ELSEWHERE if follower(one.nodes[-1]) is not two.node else _sequence(fusion, one, two, numbers)
    return Record(layer.name, reason is None, reason or "merged with the layer behind it", numbers)


def _sequence(fusion: Fusion, one: Linear, two: Linear, numbers: dict[str, Number]) -> str | None:
    """Compose `one` with `two`, its only reader; return why that isn't exact or doesn't pay, or None."""
    inner, outer = one.bias(), two.bias()
    padded = any((*two.window.front, *two.window.back))
    if one.convolution != two.convolution:
        return "a convolution and a matrix product are not composed"
    if padded and inner.any():
        return "border: the layer behind it pads with zeros, which have not its bias"
    if padded and sees_outside(one.window, two.window, one.spatial):
        return "border: the layer behind it pads with zeros, where one layer would see inputs"
    window = composed(one.window, two.window)
    after = one.cost_as(window, bool(inner.any() or outer.any()), elements(two.output))
    if reason := fusion.balance([*one.nodes, *two.nodes], [one.cost(), two.cost()], after, numbers):
        return reason
    second = two.weight()
    bias = outer + compose_bias(inner, second, two.window.groups)
    kept = one if one.takes_bias() or not bias.any() else two
    weight = compose(one.weight(), second, (one.window, two.window))
    if reason := fusion.put(kept, [one, two], window, weight, bias):
        return reason
    if kept is one:
        retire(two.nodes, two.output, one.output)
    else:
        two.node.replace_input_with(0, one.input)
        retire(one.nodes)
    return None
