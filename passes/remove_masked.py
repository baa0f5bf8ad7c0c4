"""Removal of what masks block: whole channels go, and the outputs stay the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass, Result, option
from onnxcompress.channels import find, record
from onnxcompress.channels.blocking import Blocking, add_offset
from onnxcompress.channels.example import Example
from onnxcompress.edit import Edit, drop, substitute
from onnxcompress.layers import constant

ROUNDS = 100  # each removes something, or is the last


@dataclass(frozen=True, kw_only=True)
class RemoveMasked(Pass):
    """Remove the channels that a mask blocks, wherever they are coupled, and the mask layers.

    Before: ``y = MatMul(Mul(Relu(MatMul(x, A)), [1, 0, 1]), B)``
    After:  ``y = MatMul(Relu(MatMul(x, A')), B')``, A' without a column and B' without a row.

    A channel is blocked where it is the same number for every input by the time layers read it: multiplied
    by zero, scaled by zero in a BatchNormalization, or made by a filter of zeros; or where the layers that
    read it have only zeros for it. The number goes into the readers' biases. It stays where it is read
    beside zeros beyond a border, where coupled channels are not blocked, or groups must keep equal counts;
    no layer loses all. Source: Yu et al., Scalpel, ISCA 2017.
    """

    name: ClassVar[str] = "remove-masked"
    effect: ClassVar[Effect] = Effect.EXACT

    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Remove what is blocked from `model` in place; what that leaves unread goes in further rounds."""
        result = Result(model)
        for _ in range(ROUNDS):
            blocking = Blocking(find(model, context, self.exclude))
            plan = blocking.channels.plan(lambda units, found=blocking: found.choose())  # type: ignore[misc]
            if plan.stay.all():
                break
            found = Result(model)
            record(found, blocking.channels, plan, "blocked channels removed")
            result.records += [each for each in found.records if each.changed]
            offsets = blocking.offsets(plan)
            blocking.channels.remove(plan)
            edit = Edit(model)
            for node, offset in offsets.items():
                add_offset(edit, node, offset)
        for (name, reason), count in blocking.left(plan.stay).items():
            result.left(name, reason, channels=count)
        for name in drop_ones(model):
            result.changed(name, "mask of ones removed")
        if not result.records:
            result.left("model", "nothing is blocked")
        return result


def drop_ones(model: ir.Model) -> list[str]:
    """Remove masks that let all through from the main graph of `model`; return their names.

    Those are a Mul by a constant of ones and a Where by a constant that is true.
    """
    dropped, example = [], Example(model, {})
    for node in list(model.graph):
        if node.op_type not in ("Mul", "Where") or node.domain not in ("", "ai.onnx"):
            continue
        for place, value in enumerate(node.inputs[: 2 if node.op_type == "Mul" else 1]):
            tensor, other = constant(value), node.inputs[1 - place]
            if tensor is None or other is None or not ones(tensor.numpy()):
                continue
            shape = example.shape(other)
            if shape is None or len(tensor.shape) > len(shape) or shape != example.shape(node.outputs[0]):
                continue
            if other.producer() is None or other.is_graph_output():
                continue
            dropped.append(node.name or node.outputs[0].name or "a mask")
            constants = [each for each in node.inputs if each is not None and each is not other]
            substitute(node.outputs[0], other)
            for each in constants:
                drop(each)
            break
    return dropped


def ones(array: np.ndarray) -> bool:
    """Return whether all entries of `array` [any shape] are 1, or true."""
    return bool((array == 1).all())
