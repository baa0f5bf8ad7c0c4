"""A layer as a chain of layers: where the windows of each lie, what it costs, and how it is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.convolve import Ints, Window
from onnxcompress.cost import Cost, chain_cost
from onnxcompress.edit import Edit, drop, home
from onnxcompress.factors import Method, Ranks, Shape
from onnxcompress.geometry import put_window
from onnxcompress.layers import LINEAR, Layer, by_weight, constant
from onnxcompress.linear import follower
from onnxcompress.model import clone


@dataclass(frozen=True)
class Chain:
    """A layer as `method` writes it with `ranks`."""

    method: Method
    ranks: Ranks
    windows: list[Window]
    cost: Cost

    @cached_property
    def kept(self) -> float:
        """The share of the outputs' energy that it keeps."""
        return self.method.kept(self.ranks)


def chain(method: Method, ranks: Ranks, whole: Window, sizes: Ints) -> Chain:
    """Return the chain of `ranks` for a layer of the window `whole`, at its cost on an input of `sizes`."""
    made = windows(method.name, method.shapes(ranks), whole)
    return Chain(method, ranks, made, chain_cost(made, sizes))


def windows(method: str, shapes: Sequence[Shape], whole: Window) -> list[Window]:
    """Return the windows of a chain of kernels of `shapes`, as `method` makes them of one of `whole`.

    No kernel but the last adds a bias, and zeros stay zeros, so that each axis may be padded where it is
    summed over. Two kernels along the same axis pad at the first one, and stride at the second.
    """
    every = range(len(whole.sizes))
    moves: dict[str, list[Sequence[int]]] = {
        "svd": [every, ()],
        "separable": [(0,), (1,)],
        "tucker": [(), every, ()],
        "depthwise": [every, ()],
        "two-3x3": [every, every],
    }
    inputs = [whole.inputs, *(shape[0] for shape in shapes)]
    found = [whole.along(*each) for each in zip(moves[method], shapes, inputs[: len(shapes)], strict=True)]
    if method == "two-3x3":
        ones, none = (1,) * len(every), (0,) * len(every)
        found = [replace(found[0], strides=ones), replace(found[1], front=none, back=none)]
    return found


def write_chain(edit: Edit, layer: Layer, kernels: Sequence[np.ndarray], windows: Sequence[Window]) -> None:
    """Put layers with `kernels` in the place of `layer`; the last one is its node, with its name and bias."""
    node, old, dtype = layer.node, layer.weight, layer.tensor.dtype
    assert isinstance(node.graph, ir.Graph)
    source = node.inputs[0]
    for number, (kernel, window) in enumerate(zip(kernels, windows, strict=True), 1):
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
            put_window(step, window)
        source = step.outputs[0]
    drop(old)


def rewritten(part: ir.Model, chain: Chain) -> ir.Model:
    """Return a copy of `part`, a model of one layer, with `chain` in its place; its weights are any."""
    made = clone(part)
    (((layer, *_), _),) = by_weight(made, Context())
    kernels = [np.full(window.shape, 1 / math.prod(window.shape)) for window in chain.windows]
    write_chain(Edit(made), layer, kernels, chain.windows)
    return made


def is_factor(node: ir.Node) -> bool:
    """Return whether `node`, a linear layer, feeds another or is fed by one, with no bias between.

    The value between them must be read by nothing else.
    """
    before = node.inputs[0].producer() if node.inputs[0] else None
    return _feeds(node) or (before is not None and follower(before) is node and _feeds(before))


def _feeds(node: ir.Node) -> bool:
    """Return whether one linear layer alone reads, as its input, what `node`, one without a bias, makes."""
    reader, biased = follower(node), len(node.inputs) > 2 and node.inputs[2] is not None
    linear = reader is not None and reader.inputs[0] is node.outputs[0] and _linear(reader)
    return linear and _linear(node) and not biased


def _linear(node: ir.Node) -> bool:
    """Return whether `node` multiplies what it reads by a constant."""
    known = node.op_type in LINEAR and node.domain in ("", "ai.onnx")
    return known and constant(node.inputs[1]) is not None
