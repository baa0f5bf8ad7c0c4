"""Fusing: what computes one linear thing becomes one layer, where that is exact and pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Need, Number, Pass, Record, Result, option
from onnxcompress.branches import merge_concat, merge_sum
from onnxcompress.cost import Cost
from onnxcompress.edit import Edit, drop_identities, same_ports
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.folding import fold_after, fold_before, unfolded
from onnxcompress.fusion import Fusion, Judge, always, cheaper
from onnxcompress.geometry import PARAMETRISED, parametrised
from onnxcompress.layers import Layer, by_weight
from onnxcompress.merging import merge_pad, merge_sequence
from onnxcompress.model import clone, graphs
from onnxcompress.parts import Stopwatch, cut, faster

# Each is tried on every node, in this order, again and again as long as one of them changes something.
RULES = (merge_pad, fold_after, merge_sum, merge_concat, merge_sequence, fold_before, unfolded)


@dataclass(frozen=True, kw_only=True)
class Fuse(Pass):
    """Make one layer of several linear ones: exactly, and where that costs less.

    Before: ``y = Conv1x3(Conv3x1(x, V), W, b)``
    After:  ``y = Conv3x3(x, W', b)``

    BatchNormalization, multiplications and additions by constants, and Pad with zeros go into the layer
    beside them; Identity and Dropout go. Consecutive convolutions or products become one, and so do branches
    of one input that are added up or concatenated: the three of RepVGG, for one. Strides, dilations and
    groups may be any. At the border one layer may differ: where the second of two pads with zeros, the
    first's bias is missing there, and so is what it would make of inputs; then the two stay.

    With ``when=cheaper`` layers are merged where the sum of multiply-adds and activations moved doesn't grow,
    an element read or written counting as 16 multiply-adds: a 3x1 and a 1x3 convolution of few channels cost
    more traffic than they save, those of many channels stay. Records hold both figures, before and after.
    With ``when=faster`` layers are merged where that is faster on this machine: the part of the graph they
    are is run before and after, in turns, on one sample, and merged where the whole 95 % interval of the
    ratio is below 0.99. Records hold the ratio. Parts that are alike are timed once; times vary, so a second
    run may find another one of those that hardly differ. Folding always pays.
    Source: Jacob et al., CVPR 2018, section 3.2; Ding et al., RepVGG, CVPR 2021; Jha et al., VLSI Design
    2019, on the traffic of compact networks.
    """

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = Effect.EXACT
    uses: ClassVar[frozenset[Need]] = frozenset({Need.RUNTIME})

    when: str = option(
        "cheaper",
        "merge layers where that costs less, wherever it is exact, or where it is measured to be faster",
        choices=("cheaper", "always", "faster"),
    )
    seconds: float = option(120.0, "time to measure latencies, in all", within=(0.0, 1e9))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Fuse `model` in place."""
        result = Result(model)
        for name in drop_identities(model):
            result.changed(name, "removed")
        with same_ports(model):
            ShapeInferencePass()(model)  # costs are counted from shapes
            self.merge(model, context, result)
        if not result.records:
            result.left("model", "nothing to fuse")
        return result

    def merge(self, model: ir.Model, context: Context, result: Result) -> None:
        """Apply the rules to `model` until none changes anything; record what they did and, at last, left."""
        edit, judge, changed = Edit(model), self.judge(model, context), True
        while changed:
            known = dict(self.layers(model, context))
            records = list(sweep(Fusion(edit, known, judge)))
            changed = any(record.changed for record in records)
            result.records += [record for record in records if record.changed or not changed]

    def judge(self, model: ir.Model, context: Context) -> Judge:
        """Return what decides whether merging pays."""
        if self.when != "faster":
            return always if self.when == "always" else cheaper
        if context.runtime is None:
            raise UsageError(f"{self.name}: when=faster needs a runtime to measure with, none was given")
        watch = Stopwatch(context, self.seconds)

        def timed(
            nodes: Sequence[ir.Node], before: Cost | None, after: Cost | None, numbers: dict[str, Number]
        ) -> str | None:
            try:
                apart = cut(model, nodes)
                whole = clone(apart)
                if not replace(self, when="always").call(whole, Context()).modified:
                    return None  # what the rule finds out next
                found = watch.times([apart, whole])[1]
            except CompressError as error:
                return str(error)
            numbers.update(found.numbers)
            return None if faster(found) else "not faster as one layer here"

        return timed

    def layers(self, model: ir.Model, context: Context) -> Iterator[tuple[ir.Node, Layer]]:
        """Yield every node with a weight and its layer, which must stay where others read the weight, too."""
        for readers, reason in by_weight(model, context, self.exclude):
            for layer in readers:
                shared = len(layer.weight.uses()) > 1 or layer.weight.is_graph_output()
                own = PARAMETRISED if parametrised(layer.node) else "its weight is shared" if shared else None
                yield layer.node, replace(layer, refusal=reason or own)


def sweep(fusion: Fusion) -> Iterator[Record]:
    """Yield what each rule says of each node; one that it changed is tried again."""
    for rule in RULES:
        for graph in graphs(fusion.edit.model):
            for node in list(graph):
                while node.graph is not None and (record := rule(fusion, node)) is not None:
                    yield record
                    if not record.changed:
                        break
