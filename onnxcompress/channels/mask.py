"""Masks in place of a removal: removed channels are multiplied by zero where layers read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.find import Channels, Plan
from onnxcompress.edit import Edit


def mask(channels: Channels, plan: Plan) -> int:
    """Put a Mul by a constant of 0 and 1 before the layers that read removed channels; return how many.

    The layers that read one activation share its mask. What the units of recurrent layers hand on to
    themselves stays.
    """
    edit, flow = Edit(channels.model), channels.flow
    masked: dict[ir.Value, ir.Value] = {}
    for ride in flow.rides.values():
        place = 0 if ride.place else 1
        value = ride.node.inputs[place]
        if ride.role != "in" or value is None or ride.place == 2:
            continue
        labels = flow.arrays[value]
        kept = plan.removal.kept[labels]
        if kept.all():
            continue
        if value not in masked:
            masked[value] = _masked(edit, value, kept, ir.DataType(flow.example.kind(value) or 1))
        ride.node.replace_input_with(place, masked[value])
    return len(masked)


def _masked(edit: Edit, value: ir.Value, kept: np.ndarray, kind: ir.DataType) -> ir.Value:
    """Return `value` times a constant that is 1 where `kept` [label array, bool] is true, else 0."""
    graph = edit.model.graph
    factor = edit.constant(graph, f"{value.name}_mask", kept.astype(kind.numpy()))
    node = edit.node("Mul", [value, factor], f"{value.name}_masked", dtype=kind, shape=value.shape)
    edit.after(value, [node], graph)
    return node.outputs[0]
