"""Hidden units of LSTM, GRU and RNN as channels. Source: the ONNX operator specification."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.flow import Flow, Rule
from onnxcompress.channels.labels import in_rows

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(flow: Flow, node: ir.Node) -> None:
    """A hidden unit of each direction is a channel; directions keep equally many."""
    gates = _GATES[node.op_type]
    shapes = [flow.shape(value) for value in node.inputs[:3]]
    if (
        not all(value is None or flow.example.fixed(value) for value in node.inputs[1:4])
        or any(shape is None for shape in shapes)
        or node.attributes.get_int("layout", 0) == 1
        or node in flow.refusals
    ):
        flow.unknown(node, flow.refusals.get(node, "its weights are no constants, or batches come first"))
        return
    given = flow.vector(node, 0, 2)
    if given is None:
        flow.unknown(node, "reads channels along several axes")
        return
    if flow.varies(node.inputs[0]):
        flow.ride(node, 1, (2,), given, "in")
    recurrence = shapes[2]
    assert recurrence is not None
    directions, size = recurrence[0], recurrence[2]
    made = in_rows(flow.fresh(node, directions * size), directions)
    if directions > 1:
        flow.divide(node, made, np.broadcast_to(np.arange(directions)[:, None], made.shape), "rows")
    flow.ride(node, 1, (0, 1), np.tile(made, (1, gates)), "out")
    flow.ride(node, 2, (0, 1), np.tile(made, (1, gates)))
    flow.ride(node, 2, (0, 2), made, "in")
    flow.ride(node, 3, (0, 1), np.tile(made, (1, 2 * gates)))
    flow.ride(node, 7, (0, 1), np.tile(made, (1, 3)))
    flow.spell(node, "hidden_size", [made.shape[1]])
    for place, value in enumerate(node.inputs[5:7], 5):
        if value is not None and flow.example.fixed(value):
            flow.ride(node, place, (0, 2), made)
        elif value is not None:
            flow.tie(node, flow.labels(value), made[:, None, :])
    states = made[:, None, :]
    for output, labels in zip(node.outputs, (states[None], states, states), strict=False):
        flow.put(output, labels)


RECURRENT: dict[str, Rule] = dict.fromkeys(_GATES, recurrent)
