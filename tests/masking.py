"""The model a pruned one must equal, built from the pass's records alone: removed channels times zero."""

import json
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper

from onnxcompress.base import Context, Record
from onnxcompress.model import clone, signature, to_proto
from onnxcompress.passes import PruneChannels

AXES = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1, "LSTM": 2, "GRU": 2, "RNN": 2, "Gather": -1}


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


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
        if "outputs_removed" in figures and node.op_type in GATES:
            silence(after, node, figures)
        elif "outputs_removed" in figures and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
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
        found = [len(each.dims) for each in model.graph.initializer if each.name == node.input[1]]
        mask = mask.reshape(1, -1, *[1] * ((found or [4])[0] - 2))
    elif data_along_rows(model, node, side):
        mask = mask.reshape(-1, 1)
    model.graph.initializer.append(numpy_helper.from_array(mask, f"{name}_mask"))
    return helper.make_node("Mul", [value, f"{name}_mask"], [f"{name}_masked"], name=f"{name}_mask")


def data_along_rows(model: onnx.ModelProto, node: onnx.NodeProto, side: str) -> bool:
    left = node.op_type == "MatMul" and node.input[0] in {each.name for each in model.graph.initializer}
    return left or (side == "inputs" and any(each.name == "transA" and each.i for each in node.attribute))


def silence(model: onnx.ModelProto, node: onnx.NodeProto, figures: dict) -> None:
    """Zero the weights of hidden units: their state stays at the zero it starts from."""
    gates = GATES[node.op_type]
    stored = {each.name: each for each in model.graph.initializer}
    for place, times_over in ((1, gates), (2, gates), (3, 2 * gates)):
        if place == len(node.input) or not node.input[place]:
            continue
        weight = numpy_helper.to_array(stored[node.input[place]]).copy()
        size = weight.shape[1] // times_over
        for number in numbers(figures["outputs_removed"]):
            direction, unit = divmod(number, size)
            weight[direction, unit::size] = 0
            if place == 2:
                weight[direction, :, unit] = 0
        stored[node.input[place]].CopyFrom(numpy_helper.from_array(weight, node.input[place]))


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return what onnxruntime makes of a valid model, without a last Softmax: a saturated one hides much."""
    onnx.checker.check_model(proto, full_check=True)
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    makers = {name: node for node in bare.graph.node for name in node.output}
    for output in bare.graph.output:
        if makers[output.name].op_type == "Softmax":
            output.CopyFrom(helper.make_tensor_value_info(makers[output.name].input[0], 1, None))
    return list(onnxruntime.InferenceSession(bare.SerializeToString()).run(None, feeds))


def feeds(made: ir.Model, batch: int = 2) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    found = {}
    for port in signature(made).inputs:
        assert port.shape is not None
        dims = [each if isinstance(each, int) else batch for each in port.shape]
        found[port.name] = draw.standard_normal(dims).astype(np.float32)
    return found


def pruned_and_masked(
    made: ir.Model, options: dict[str, object] | None = None
) -> tuple[ir.Model, list[Record]]:
    """Prune, and see that the outputs are those of the model of the same size whose channels are masked."""
    after = clone(made)
    result = PruneChannels(**(options or {})).call(after, Context())
    given = feeds(made)
    expected = outputs(masked(to_proto(made), result.records), given)
    found = outputs(to_proto(after), given)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()
    assert signature(after) == signature(made)
    return after, result.records
