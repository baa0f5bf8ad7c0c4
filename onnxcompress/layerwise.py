"""Compare two models layer by layer: the error that enters each layer, and the error that leaves it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Runnable, Runtime
from onnxcompress.drop import noise
from onnxcompress.layers import constant, layers
from onnxcompress.verify import Likeness

ABSORBED = ("BatchNormalization", "Clip", "Identity", "Relu")  # part of the layer before, where they are gone


@dataclass(frozen=True)
class Passage:
    """The error around one layer: signal-to-noise ratios of what enters and leaves it, in dB.

    None: nothing in the other model could be matched to it.
    """

    layer: str
    entering: float | None
    leaving: float | None

    @property
    def added(self) -> float:
        """The noise the layer adds, as a share of the signal; 0 where it isn't known or nothing was left."""
        if self.entering is None or self.leaving is None or self.entering == -math.inf:
            return 0.0
        return noise(self.leaving) - noise(self.entering)


@dataclass(frozen=True)
class Pair:
    """A value of one model and the one of the other that stands for it, by name."""

    first: str
    second: str


def passages(
    before: ir.Model, after: ir.Model, runtime: Runtime, data: Iterable[Mapping[str, np.ndarray]]
) -> list[Passage]:
    """Return the error around every layer of `before`, values of the main graphs being matched by name.

    What follows a layer and is gone from `after`, such as a Relu whose work the range of a quantized value
    does, counts as part of the layer. Both models are run once on `data`, with all the values that are
    compared as their outputs. Layers inside bodies and functions aren't matched.
    """
    values = [value for node in after.graph for value in node.outputs if value.name]
    known = {value.name or "": _rounded(value).name or "" for value in values}
    known |= {value.name or "": value.name or "" for value in after.graph.inputs}
    around = {
        layer.name: (_read(layer.node, known), _made(layer.node, known))
        if layer.node.graph is before.graph
        else (None, None)
        for layer in layers(before, Context())
    }
    found = {pair: Likeness() for pairs in around.values() for pair in pairs if pair is not None}
    first = _watched(before, [each.first for each in found], runtime)
    second = _watched(after, [each.second for each in found], runtime)
    for feeds in data if found else ():
        a, b = ({**feeds, **each.run(feeds)} for each in (first, second))
        for pair in list(found):
            if a[pair.first].shape == b[pair.second].shape:
                found[pair].add(a[pair.first], b[pair.second])
            else:
                del found[pair]
    return [
        Passage(name, *(found[each].snr if each in found else None for each in pairs))
        for name, pairs in around.items()
    ]


def _watched(model: ir.Model, names: Sequence[str], runtime: Runtime) -> Runnable:
    """Return `model` ready to run, with the values called `names`, but for its inputs, as its outputs."""
    given = {value.name for value in model.graph.inputs}
    wanted = [name for name in dict.fromkeys(names) if name not in given]
    return runtime.prepare(model, wanted or None)


def _read(node: ir.Node, known: Mapping[str, str]) -> Pair | None:
    """Return what `node` reads and what among the `known` values stands for it or its source."""
    read = next((each for each in node.inputs if each is not None and constant(each) is None), None)
    value = read
    while value is not None and value.name not in known:
        value = _absorbed(value.producer())
    if read is None or value is None:
        return None
    return Pair(read.name or "", known[value.name or ""])


def _made(node: ir.Node, known: Mapping[str, str]) -> Pair | None:
    """Return what `node` and all that may be absorbed into it make, and what stands for it among `known`."""
    value, last = node.outputs[0], ""
    while True:
        last = value.name if value.name and value.name in known else last
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or _absorbed(readers[0]) is not value:
            return Pair(value.name or "", known[last]) if last else None
        value = readers[0].outputs[0]


def _rounded(value: ir.Value) -> ir.Value:
    """Return what readers get of `value`: where all get it quantized and back, the float that comes out."""
    found = value
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        readers = [use.node for use in found.uses()]
        if not readers or any(node.op_type != operator for node in readers):
            return value
        if operator == "DequantizeLinear" and not _alike(found.producer(), readers[0]):
            return value  # its readers make up for the zero point
        found = readers[0].outputs[0]
    return found


def _alike(quantize: ir.Node | None, dequantize: ir.Node) -> bool:
    """Return whether both nodes have one zero point."""
    assert quantize is not None
    first, second = (
        tensor.numpy() if len(node.inputs) > 2 and (tensor := constant(node.inputs[2])) else None
        for node in (quantize, dequantize)
    )
    return np.array_equal(first, second) if first is not None and second is not None else first is second


def _absorbed(node: ir.Node | None) -> ir.Value | None:
    """Return what `node` reads where it is one that may become part of the layer before it."""
    return node.inputs[0] if node is not None and node.op_type in ABSORBED else None


def worst(found: Sequence[Passage], most: int) -> list[Passage]:
    """Return the layers that add the most noise, the worst first, `most` at most."""
    ranked = sorted(found, key=lambda each: -each.added)
    return [each for each in ranked[:most] if each.added > 0]
