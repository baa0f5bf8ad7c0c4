"""Which nodes can compute with 16-bit floats, and the nodes that go between them and others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.edit import Edit, replace_uses, same_ports
from onnxcompress.layers import RANDOM, constant, put_constant
from onnxcompress.model import graphs, lazy, opset

LIMITS: dict[type, tuple[float, float]] = {  # what is above is infinite, below digits get lost
    np.float16: (65504.0, 2.0**-14),
    ml_dtypes.bfloat16: (2.0**128 - 2.0**120, 2.0**-126),
}
_HALF, _FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_TYPED = tuple(name for name in RANDOM if name != "Dropout")

# Operators whose inputs need all their digits, and why.
PRECISE = {
    **dict.fromkeys(("Cast", "CastLike"), "whole numbers above 2,048 need more digits"),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "scales are float32"),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), "scales are float32"),
    **dict.fromkeys(("Resize", "Upsample", "GridSample", "AffineGrid", "RoiAlign"), "it computes positions"),
    **dict.fromkeys(("Range", "NonMaxSuppression", "TopK", "MaxRoiPool"), "it computes positions"),
}

# Operators that compute with float32 whatever the numbers, and why.
KEPT = {
    **PRECISE,
    **dict.fromkeys((*_TYPED, "ConstantOfShape", "EyeLike"), "an attribute gives its type"),
    **dict.fromkeys(("DFT", "STFT", "MelWeightMatrix", "Det", "CumSum"), "onnxruntime has it in float32"),
    **dict.fromkeys(("ScatterElements", "ScatterND"), "onnxruntime reduces in float32 only"),
    "BitCast": "the bits are its result",
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "errors add up from step to step"),
    **dict.fromkeys(("ReduceMean", "GlobalAveragePool"), "it sums up on the way, beyond what it returns"),
    **dict.fromkeys(("ReduceL2", "LpPool", "LpNormalization", "LRN"), "it sums up squares on the way"),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), "it sums up squares on the way"),
    **dict.fromkeys(("MeanVarianceNormalization", "GlobalLpPool"), "it sums up squares on the way"),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp"), "it sums up on the way, beyond what it returns"),
}

# Operators whose results are known to leave the range of float16, and why; calibration data tell.
RISKY = {
    **dict.fromkeys(("Exp", "Pow", "Softplus"), "it grows beyond float16"),
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceProd"), "it sums up"),
    **dict.fromkeys(("Reciprocal", "Log"), "small numbers matter"),
    "Attention": "masks lie beyond float16",
}


@dataclass(frozen=True)
class Places:
    """Which inputs and outputs of a node can be float16."""

    inputs: Sequence[bool]
    outputs: Sequence[bool]


def infer_types(model: ir.Model) -> None:
    """Give the values of `model` the types that follow from its inputs; those of sequences stay open."""
    with same_ports(model):
        ShapeInferencePass()(model)  # takes sequences and optional values for tensors
    version = opset(model)
    for graph in graphs(model):
        for node in graph:
            for place, value in enumerate(node.outputs):
                if isinstance(value.type, ir.TensorType) and not _makes_tensor(node, place, version):
                    value.type = None


def _makes_tensor(node: ir.Node, place: int, version: int) -> bool:
    bodies = [each.as_graph() for each in node.attributes.values() if each.type == ir.AttributeType.GRAPH]
    if bodies:
        inner = bodies[0].outputs[place + (node.op_type == "Loop")]
        return isinstance(inner.type, ir.TensorType | None)
    if node.op_type == "Identity" and node.inputs[0] is not None:
        return isinstance(node.inputs[0].type, ir.TensorType)
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, version):
        return True
    formal = onnx.defs.get_schema(node.op_type, version).outputs
    return any(kind.startswith("tensor(") for kind in formal[min(place, len(formal) - 1)].types)


def places(node: ir.Node, version: int) -> Places | str:
    """Return which float32 inputs and outputs of `node`, of opset `version`, can be float16; or why none."""
    if node.domain not in ("", "ai.onnx"):
        return f"an operator of {node.domain}"
    if any(each.type in _GRAPHS for each in node.attributes.values()):
        return "it has bodies, which stay"
    if node.op_type in KEPT:
        return KEPT[node.op_type]
    makers = {value.producer() for value in node.inputs if value is not None}
    readers = {use.node for value in node.outputs for use in value.uses()}
    if "DequantizeLinear" in _operators(makers) or "QuantizeLinear" in _operators(readers):
        return "quantized already"
    values = [*node.inputs, *node.outputs]
    if any(
        value is not None and value.type is not None and not isinstance(value.type, ir.TensorType)
        for value in values
    ):
        return "it has sequences or optional values"
    if any(value is not None and value.name and value.dtype is None for value in values):
        return "its types aren't known"
    if not onnx.defs.has(node.op_type, version):
        return "not an operator of its opset"
    schema = onnx.defs.get_schema(node.op_type, version)
    able = {
        each.type_param_str for each in schema.type_constraints if "tensor(float16)" in each.allowed_type_strs
    }
    found = Places(_able(node.inputs, schema.inputs, able), _able(node.outputs, schema.outputs, able))
    return found if any((*found.inputs, *found.outputs)) else "no float16 in its opset"


def _operators(nodes: Iterable[ir.Node | None]) -> set[str]:
    return {node.op_type for node in nodes if node is not None}


def _able(
    values: Sequence[ir.Value | None],
    formal: Sequence[onnx.defs.OpSchema.FormalParameter],
    able: Collection[str],
) -> list[bool]:
    last = len(formal) - 1
    return [
        value is not None and value.dtype == _FULL and formal[min(place, last)].type_str in able
        for place, value in enumerate(values)
    ]


def unfit(numbers: float | np.ndarray, plain: type = np.float16) -> str | None:
    """Return why float32 `numbers`, or numbers up to that magnitude, can't be `plain`, or None.

    `plain` is float16 or bfloat16. Infinity stays what it is in both.
    """
    (high, low), name = LIMITS[plain], np.dtype(plain).name
    sizes = np.abs(numbers)
    largest = float(np.max(sizes, initial=0.0, where=np.isfinite(sizes)))
    if np.isnan(sizes).any():
        return "it holds NaN"
    if largest > high:
        return f"its numbers go beyond {name}"
    return f"its numbers are too small for {name}" if 0 < largest < low else None


@dataclass
class Halves:
    """Makes nodes of the main graph compute with float16: `chosen` says which inputs and outputs of which."""

    edit: Edit
    chosen: Mapping[ir.Node, Places]
    _made: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def write(self) -> None:
        """Give the chosen inputs and outputs float16, with Casts where they meet float32."""
        outputs = [
            value
            for node, found in self.chosen.items()
            for value, able in zip(node.outputs, found.outputs, strict=True)
            if able
        ]
        for output in outputs:
            self._narrow(output)
        for node, found in self.chosen.items():
            for place, value in enumerate(node.inputs):
                if found.inputs[place] and value is not None and value.dtype == _FULL:
                    node.replace_input_with(place, self._half(value))
        for value in self._made:
            maker, idle = value.producer(), not value.uses() and not value.is_graph_output()
            if idle and maker is not None and maker.op_type == "Cast":
                self.edit.model.graph.remove(maker, safe=True)

    def _takes(self, node: ir.Node, place: int) -> bool:
        return node in self.chosen and self.chosen[node].inputs[place]

    def _narrow(self, value: ir.Value) -> None:
        """Make `value`, that of a chosen node, float16, and cast it back for those that want float32."""
        graph = self.edit.model.graph
        value.type = ir.TensorType(_HALF)  # a new one: values may share theirs
        wide = [
            use
            for use in value.uses()
            if not self._takes(use.node, use.idx) and use.node.op_type != "Cast"  # which takes any type
        ]
        if not wide and not value.is_graph_output():
            return
        cast = self._cast(value, value.name or "", _FULL, "float32")
        for node, place in wide:
            node.replace_input_with(place, cast)
        if value.is_graph_output():
            for place, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[place] = cast
            name = value.name
            value.name, cast.name = self.edit.name(f"{name}_float16"), name

    def _half(self, value: ir.Value) -> ir.Value:
        """Return the float32 `value` as float16, made once."""
        if value in self._made:
            return self._made[value]
        maker, tensor = value.producer(), constant(value)
        origin = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else None
        made: ir.Value = value
        if origin is not None and origin.dtype == _HALF:
            made = origin  # a Cast there and one back cancel
        elif (
            tensor is not None
            and not value.is_graph_output()
            and all(self._takes(use.node, use.idx) for use in value.uses())
        ):
            put_constant(value, lazy(tensor, lambda weight: weight.astype(np.float16), _HALF))
        else:
            made = self._cast(value, value.name or "", _HALF, "float16")
        self._made[value] = made
        return made

    def _cast(self, value: ir.Value, name: str, to: ir.DataType, suffix: str) -> ir.Value:
        node = self.edit.node(
            "Cast", [value], f"{name}_{suffix}", {"to": int(to)}, dtype=to, shape=value.shape
        )
        self.edit.after(value, [node], self.edit.model.graph)
        return node.outputs[0]


def store(edit: Edit, value: ir.Value, tensor: ir.TensorProtocol, graph: ir.Graph) -> ir.Value:
    """Let all that reads `value`, a constant of `graph`, read `tensor`, cast back to float32; return that."""
    name = value.name or ""
    stored = edit.constant(graph, f"{name}_{str(tensor.dtype).lower()}", tensor)
    cast = edit.node("Cast", [stored], f"{name}_float32", {"to": int(_FULL)}, dtype=_FULL, shape=value.shape)
    edit.after(value, [cast], graph)
    replace_uses(value, cast.outputs[0])
    return cast.outputs[0]
