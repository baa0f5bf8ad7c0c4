"""A layer as a chain of layers: where the windows of each lie, what it costs, and how it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxcompress.edit import Edit, drop, home
from onnxcompress.factors import Method, Ranks, Shape
from onnxcompress.geometry import Cost, Geometry, Ints, Stage, cost
from onnxcompress.layers import LINEAR, Layer, constant
from onnxcompress.linear import follower


@dataclass(frozen=True)
class Chain:
    """A layer as `method` writes it with `ranks`."""

    method: Method
    ranks: Ranks
    stages: list[Stage]
    cost: Cost

    @cached_property
    def kept(self) -> float:
        """The share of the outputs' energy that it keeps."""
        return self.method.kept(self.ranks)


def chain(method: Method, ranks: Ranks, geometry: Geometry, sizes: Ints) -> Chain:
    """Return the chain of `ranks` for a layer with `geometry`, at the cost it has on an input of `sizes`."""
    made = stages(method.name, method.shapes(ranks), geometry)
    return Chain(method, ranks, made, cost(made, sizes))


def stages(method: str, shapes: Sequence[Shape], geometry: Geometry) -> list[Stage]:
    """Return the stages of a chain of kernels of `shapes`, as `method` makes them of one with `geometry`.

    No kernel but the last adds a bias, and zeros stay zeros, so that each axis may be padded where it is
    summed over. Two kernels along the same axis pad at the first one, and stride at the second.
    """
    every = range(len(geometry.kernel))
    moves: dict[str, list[Sequence[int]]] = {
        "svd": [every, ()],
        "separable": [(0,), (1,)],
        "tucker": [(), every, ()],
        "depthwise": [every, ()],
        "two-3x3": [every, every],
    }
    chain = [geometry.along(moving, shape[2:]) for moving, shape in zip(moves[method], shapes, strict=True)]
    if method == "two-3x3":
        ones, none = (1,) * len(every), (0,) * len(every)
        first, last = chain
        chain = [
            Geometry(first.kernel, ones, first.dilations, first.begins, first.ends),
            Geometry(last.kernel, last.strides, last.dilations, none, none),
        ]
    return [Stage(shape, each) for shape, each in zip(shapes, chain, strict=True)]


def oriented(layer: Layer) -> np.ndarray:
    """Return the weight of `layer` as [outputs, inputs, *kernel]."""
    return np.moveaxis(layer.value(), layer.channel_axes[-1], 0)


def write_chain(
    edit: Edit, layer: Layer, kernels: Sequence[np.ndarray], geometries: Sequence[Geometry]
) -> None:
    """Put layers with `kernels` in the place of `layer`; the last one is its node, with its name and bias."""
    node, old, dtype = layer.node, layer.weight, layer.tensor.dtype
    assert isinstance(node.graph, ir.Graph)
    source, channels = node.inputs[0], int(np.prod(layer.shape[1:2]))
    for number, (kernel, geometry) in enumerate(zip(kernels, geometries, strict=True), 1):
        last = number == len(kernels)
        plain = np.moveaxis(kernel, 0, layer.channel_axes[-1] if last or layer.op != "Gemm" else 1)
        content = np.ascontiguousarray(plain).astype(dtype.numpy())
        weight = edit.constant(home(old), f"{old.name}_{number}", content)
        step = node
        if not last:
            op = "Conv" if layer.op == "Conv" else "MatMul"
            step = edit.node(op, [source, weight], f"{layer.name}_{number}", dtype=dtype)
            node.graph.insert_before(node, step)
        else:
            node.replace_input_with(0, source)
            node.replace_input_with(1, weight)
        if layer.op == "Conv":
            geometry.write(step)
            step.attributes["group"] = ir.AttrInt64("group", channels // kernel.shape[1])
            channels = len(kernel)
        source = step.outputs[0]
    drop(old)


def is_factor(node: ir.Node) -> bool:
    """Return whether `node`, a linear layer, feeds another or is fed by one, with no bias between.

    The value between them must be read by nothing else.
    """
    before, after = node.inputs[0].producer() if node.inputs[0] else None, _reader(node)
    feeds = after is not None and _linear(after) and not _adds(node)
    return feeds or (before is not None and _reader(before) is node and _linear(before) and not _adds(before))


def _reader(node: ir.Node) -> ir.Node | None:
    """Return the one node that reads the output of `node` as its first input, or None."""
    reader = follower(node)
    return reader if reader is not None and reader.inputs[0] is node.outputs[0] else None


def _linear(node: ir.Node) -> bool:
    """Return whether `node` multiplies what it reads by a constant."""
    known = node.op_type in LINEAR and node.domain in ("", "ai.onnx")
    return known and constant(node.inputs[1]) is not None


def _adds(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None
