"""Masks in place of a removal: removed channels are multiplied by zero where they are read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.find import Channels, Plan
from onnxcompress.edit import Edit


def mask(channels: Channels, plan: Plan) -> None:
    """Put a Mul by a constant of 0 and 1 before the layers and sums that read removed channels.

    What reads one activation shares its mask. What the units of recurrent layers hand on to themselves is
    masked where they read it: in the weight of their recurrence.
    """
    edit, flow, kept = Edit(channels.model), channels.flow, plan.removal.kept
    reads = dict.fromkeys(flow.summed)
    for ride in flow.rides.values():
        if ride.role == "in" and ride.place == 2:
            _mask(edit, channels, {}, (ride.node, 2), kept[ride.labels][:, None, :])
        elif ride.role == "in":
            reads[ride.node, 0 if ride.place else 1] = None
    masked: dict[ir.Value, ir.Value] = {}
    for node, place in reads:
        _mask(edit, channels, masked, (node, place), kept[flow.labels(node.inputs[place])])


def _mask(
    edit: Edit,
    channels: Channels,
    masked: dict[ir.Value, ir.Value],
    read: tuple[ir.Node, int],
    kept: np.ndarray,
) -> None:
    """Multiply `read`, an input of a node, by 1 where `kept` [its labels, bool] says so, else by 0."""
    node, place = read
    value = node.inputs[place]
    assert value is not None
    if kept.all():
        return
    if value not in masked:
        kind = ir.DataType(channels.flow.example.kind(value) or 1)
        factor = edit.constant(edit.model.graph, f"{value.name}_mask", kept.astype(kind.numpy()))
        product = edit.node("Mul", [value, factor], f"{value.name}_masked", dtype=kind, shape=value.shape)
        edit.after(value, [product], edit.model.graph)
        masked[value] = product.outputs[0]
    node.replace_input_with(place, masked[value])
