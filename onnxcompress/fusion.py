"""What the rules that merge layers share: the layers of a model, the balance of costs, and the last steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Number
from onnxcompress.convolve import Window
from onnxcompress.cost import Cost
from onnxcompress.edit import Edit, drop, substitute
from onnxcompress.layers import Layer
from onnxcompress.linear import Linear, linear, stored, write

ELSEWHERE = "what lies in between is also read elsewhere or an output"


# Given nodes that may become one layer, what they cost before and after (None: unknown) and the numbers of
# the record, says why they must not, or None.
Judge = Callable[[Sequence[ir.Node], Cost | None, Cost | None, dict[str, Number]], str | None]


def always(
    nodes: Sequence[ir.Node], before: Cost | None, after: Cost | None, numbers: dict[str, Number]
) -> None:
    """Judge that `nodes` may become one layer, whatever that costs."""


def cheaper(
    nodes: Sequence[ir.Node], before: Cost | None, after: Cost | None, numbers: dict[str, Number]
) -> str | None:
    """Judge that `nodes` may become one layer where their price doesn't grow."""
    if before is None or after is None:
        return "the sizes of its activations aren't known, so its cost isn't either"
    return "costs more as one layer" if after.price > before.price else None


@dataclass(frozen=True)
class Fusion:
    """The editor and the layers of a model; `judge` says where merging pays."""

    edit: Edit
    known: Mapping[ir.Node, Layer]
    judge: Judge

    def linear(self, node: ir.Node | None) -> Linear | str:
        """Return the layer `node` as a window, or why it can't be seen as one or must stay."""
        layer = self.known.get(node) if node is not None else None
        if layer is None:
            return "no layer with a constant weight"
        return layer.refusal or linear(layer)

    def balance(
        self,
        nodes: Sequence[ir.Node],
        parts: Sequence[Cost | None],
        after: Cost | None,
        numbers: dict[str, Number],
    ) -> str | None:
        """Return why `nodes`, whose parts cost so much, must not become what costs `after`, or None.

        Both sums go into `numbers`. A cost is None where it isn't known.
        """
        known = [part for part in parts if part is not None]
        before = sum(known, Cost()) if len(known) == len(parts) else None
        if before is not None and after is not None:
            for name in ("parameters", "macs", "moved"):
                numbers[f"{name}_before"] = getattr(before, name)
                numbers[f"{name}_after"] = getattr(after, name)
        return self.judge(nodes, before, after, numbers)

    def put(
        self, kept: Linear, layers: Sequence[Linear], window: Window, weight: np.ndarray, bias: np.ndarray
    ) -> str | None:
        """Give `kept`, one of the `layers` that become one, what that computes; return why it can't, or None.

        `weight` and `bias` are float64.
        """
        if len({layer.layer.tensor.dtype for layer in layers}) > 1:
            return "their weights are of different types"
        if bias.any() and not kept.takes_bias():
            return "a product of more than two axes has no place for the bias"
        arrays = stored(kept.layer, weight, bias)
        if arrays is None:
            return f"the weight would overflow {kept.layer.tensor.dtype}"
        write(self.edit, kept, window, *arrays)
        return None


def retire(nodes: Iterable[ir.Node], output: ir.Value | None = None, heir: ir.Value | None = None) -> None:
    """Remove `nodes`, later ones first, and the constants that only they read; `heir` stands for `output`."""
    nodes = list(nodes)
    values = {value: None for node in nodes for value in node.inputs if value is not None}
    if output is not None and heir is not None:
        substitute(output, heir)
    for node in reversed(nodes):
        if isinstance(node.graph, ir.Graph):
            node.graph.remove(node, safe=True)
    for value in values:
        drop(value)
