"""Bias correction: the means of what layers compute, as they were before weights were changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.channels.repair import Aim, repair
from onnxcompress.correction import recall
from onnxcompress.edit import replace_uses, same_ports
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.layers import LINEAR, by_weight, constant
from onnxcompress.linear import follower
from onnxcompress.model import load

FOLDED = ("Add", "BatchNormalization", "Div", "Mul", "Sub")  # into the layer before them


@dataclass(frozen=True, kw_only=True)
class CorrectBias(Pass):
    """Give what layers compute the means back that it had before their weights were changed.

    Before: ``y = Conv(x, W', b)``, which is ``Conv(x, W, b)`` in the model ``reference``
    After:  ``y = Conv(x, W', b + mean(Conv(x, W, b) - Conv(x, W', b)))``, one mean for each output channel

    For models whose weights were pruned, clustered, made ternary or the like. What both models compute at a
    place has the same name, so the reference is best the file that the other passes began with, or what
    ``simplify`` and ``fuse`` made of it. Means are those on calibration data where there are any: layers are
    corrected in order, each on what those before it compute by then, sums with shortcuts included. Without
    data they are those that BatchNormalization in the reference tells of what a layer reads, with at most
    sums, averages, Concat, Relu and the like between, and the layer is corrected for what its own weight
    lost. Of MatMul the bias is that of an Add that follows; where a BatchNormalization follows, its mean
    (with data its variance, too) becomes that of what it reads. Layers whose weight is no constant any more,
    such as quantized ones, stay: ``quant`` corrects their biases itself. Layers that compute what they did
    stay, too. A second run moves little with data, and nothing without.
    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019.
    """

    name: ClassVar[str] = "correct-bias"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME, Need.SEED})

    reference: str = option("", "file of the model before its weights were changed, in quotes")
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Correct the biases of `model` in place."""
        result = Result(model)
        if not self.reference:
            raise UsageError("correct-bias: no reference, expected reference=FILE, the model before")
        if context.calibration is not None and context.runtime is None:
            raise UsageError("correct-bias: needs a runtime, none was given")
        whole = load(self.reference)
        given, expected = ({value.name for value in each.graph.inputs} for each in (model, whole))
        if not expected <= given:
            name = min(str(each) for each in expected - given)
            raise CompressError(f"correct-bias: {self.reference} has an input {name}, the model has not")
        _align(whole, model)
        for each in (model, whole):
            with same_ports(each):
                ShapeInferencePass()(each)  # tells where the bias of a MatMul is
        aims = list(self._aims(model, whole, context, result))
        if context.calibration is None or context.runtime is None:
            done = recall(whole, model, [aim.layer for aim in aims])
        else:
            done = repair(
                whole,
                model,
                aims,
                context.calibration,
                context.runtime,
                "bias",
                seed=context.seed,
                progress=context.progress,
            )
        for name, what in done.items():
            if what.startswith("none"):
                result.left(name, what.removeprefix("none: "))
            else:
                result.changed(name, what)
        return result

    def _aims(self, model: ir.Model, whole: ir.Model, context: Context, result: Result) -> Iterator[Aim]:
        """Yield the layers that can be corrected, in node order; record why others stay."""
        known = {value.name: node for node in whole.graph for value in node.outputs}
        changed = _changed(model, known)
        found: dict[ir.Node, Aim] = {}
        for readers, reason in by_weight(model, context, self.exclude):
            for layer in readers:
                why = reason
                if len(readers) > 1:
                    why = why or "its weight is shared"
                elif layer.node.graph is not model.graph:
                    why = why or "inside a body or a function"
                elif layer.node.outputs[0].name not in known:
                    why = why or "the reference computes nothing of that name"
                elif layer.node not in changed:
                    why = why or "it computes what it did"
                if why is None:
                    found[layer.node] = Aim(layer, None)
                else:
                    result.left(layer, why)
        yield from (found[node] for node in model.graph if node in found)


def _align(whole: ir.Model, model: ir.Model) -> None:
    """Give values of `whole` the names they have in `model`, where that folded into a layer what follows it.

    `fuse` then keeps the name behind what it folds, onnxsim that of the layer's output.
    """
    for node in whole.graph:
        given = node.inputs[0] if node.op_type == "Identity" else None
        if given is not None and constant(given) is not None and not node.outputs[0].is_graph_output():
            replace_uses(node.outputs[0], given)  # onnxsim folds what reads it, too
    made = {value.name: node for node in model.graph for value in node.outputs}
    for node in list(whole.graph):
        value, reader = node.outputs[0], follower(node)
        now = made.get(value.name) if node.op_type in LINEAR else None
        while now is not None and reader is not None and _folds(reader, value):
            after = follower(now)
            if reader.outputs[0].name in made or (after is not None and after.op_type == reader.op_type):
                break
            made_name, value.name = value.name, f"{value.name}_alone"
            value, reader = reader.outputs[0], follower(reader)
            value.name = made_name


def _folds(node: ir.Node, value: ir.Value) -> bool:
    """Return whether `node` can be folded into the layer that makes `value`: else it reads constants."""
    others = (each for each in node.inputs if each is not None and each is not value)
    return node.op_type in FOLDED and all(constant(each) is not None for each in others)


def _changed(model: ir.Model, before: Mapping[str | None, ir.Node]) -> set[ir.Node]:
    """Return the nodes of `model` that compute something else than those `before`, by output names."""
    found: set[ir.Node] = set()
    reached: set[ir.Value] = set()
    for node in model.graph:
        other = before.get(node.outputs[0].name)
        bodies = any(each.type == ir.AttributeType.GRAPH for each in node.attributes.values())
        alike = other is not None and not bodies and _same_constants(node, other)
        if not alike or any(value in reached for value in node.inputs):
            found.add(node)
            reached.update(node.outputs)
    return found


def _same_constants(node: ir.Node, other: ir.Node) -> bool:
    """Return whether `node` and `other` are of one operator and read the same constants."""
    if (node.op_type, len(node.inputs)) != (other.op_type, len(other.inputs)):
        return False
    pairs = [tuple(map(constant, pair)) for pair in zip(node.inputs, other.inputs, strict=True)]
    return all(
        one is two or (one is not None and two is not None and np.array_equal(one.numpy(), two.numpy()))
        for one, two in pairs
    )
