"""The model a pruned one must equal, built from the pass's records alone: removed channels times zero."""

import json
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcompress.base import Record

AXES = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1, "LSTM": 2, "GRU": 2, "RNN": 2, "Gather": -1}


def numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def masked(model: onnx.ModelProto, records: Iterable[Record]) -> onnx.ModelProto:
    """Multiply the channels that `records` say were removed by zero, where layers make and read them."""
    after = onnx.ModelProto()
    after.CopyFrom(model)
    records = json.loads(json.dumps([[each.layer, each.changed, each.numbers] for each in records]))
    gone = {layer: figures for layer, changed, figures in records if changed}
    stored = {each.name for each in after.graph.initializer}
    nodes = []
    for node in after.graph.node:
        figures = gone.pop(node.name, {})
        data = next((place for place, name in enumerate(node.input) if name not in stored), 0)
        if "inputs_removed" in figures:
            nodes.append(times(after, node, node.input[data], f"{node.name}_in", figures, "inputs"))
            node.input[data] = nodes[-1].output[0]
        nodes.append(node)
        if "outputs_removed" in figures and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            made = f"{node.name}_unmasked"
            nodes.append(times(after, node, made, f"{node.name}_out", figures, "outputs"))
            nodes[-1].output[0], node.output[0] = node.output[0], made
    assert not gone, f"records of layers that are not there: {list(gone)}"
    del after.graph.node[:]
    after.graph.node.extend(nodes)
    del after.graph.value_info[:]
    return after


def times(
    model: onnx.ModelProto, node: onnx.NodeProto, value: str, name: str, figures: dict, side: str
) -> onnx.NodeProto:
    mask = np.ones(figures[f"{side}_before"], np.float32)
    mask[numbers(figures[f"{side}_removed"])] = 0
    assert mask.sum() == figures[side] > 0
    if AXES[node.op_type] == 1:
        rank = next(len(each.dims) for each in model.graph.initializer if each.name == node.input[1])
        mask = mask.reshape(1, -1, *[1] * (rank - 2))
    model.graph.initializer.append(numpy_helper.from_array(mask, f"{name}_mask"))
    return helper.make_node("Mul", [value, f"{name}_mask"], [f"{name}_masked"], name=f"{name}_mask")
