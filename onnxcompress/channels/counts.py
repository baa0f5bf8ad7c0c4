"""Parameters and multiply-accumulates of the layers of a graph, before and after a removal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.find import Channels, Plan

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Counts(NamedTuple):
    """Elements of the constants that layers read, and multiply-accumulates of one run of the example."""

    parameters: float
    macs: float


def counts(channels: Channels, plan: Plan | None = None) -> Counts:
    """Return the counts of a model's main graph, once `plan` is done where one is given."""
    example = channels.flow.example
    parameters = macs = 0
    for node in channels.model.graph:
        for place, value in enumerate(node.inputs):
            if value is None or not example.fixed(value) or example.fixed(node.outputs[0]):
                continue
            shape = example.shape(value) or ()
            cut = plan.cuts.get((node, place)) if plan is not None else None
            size = int(np.prod(shape if cut is None else cut.shape(shape)))
            parameters += size
            if node.op_type in _LAYERS and place < 2 and len(shape) > 1:
                macs += size * _positions(channels, plan, node)
    return Counts(parameters, macs)


def _positions(channels: Channels, plan: Plan | None, node: ir.Node) -> int:
    """Return how often each weight of a layer is used in one run of the example."""
    value = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    assert value is not None
    shape = channels.flow.shape(value) if plan is None else plan.removal.target(value)
    if shape is None or len(shape) < 2:
        return 1
    if node.op_type in ("Conv", "ConvTranspose"):
        return int(shape[0] * np.prod(shape[2:]))
    channel = -2 if channels.flow.example.fixed(node.inputs[0]) else -1
    return int(np.prod(shape) // shape[channel])
