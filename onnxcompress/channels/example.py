"""What every value of a graph is on one example: its shape, and its content where that is small and known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from onnxcompress.errors import CompressError
from onnxcompress.evaluate import array, run_node
from onnxcompress.layers import RANDOM, constant
from onnxcompress.model import opset

Shape = tuple[int, ...]
SMALL = 4096  # elements of a value that is computed to know shapes
OPEN = 1  # the size of a dimension that the model and the caller leave open


class Example:
    """Shapes and small contents of the values of the main graph of `model`, node by node.

    `shapes` gives inputs dimensions; others that are open are taken as OPEN. A value is *fixed* where it is
    the same for every input, *known* where it is the same for every input of these shapes.
    """

    def __init__(self, model: ir.Model, shapes: Mapping[str, Sequence[int | str | None]]) -> None:
        self.version = opset(model)
        self._shapes: dict[ir.Value, Shape] = {}
        self._known: dict[ir.Value, np.ndarray] = {}
        self._fixed: set[ir.Value] = set()
        self._kinds: dict[ir.Value, int] = {}  # the element types that the model leaves out
        for value in model.graph.inputs:
            dims = shapes.get(value.name or "", value.shape)
            if dims is not None:
                self._shapes[value] = tuple(each if isinstance(each, int) else OPEN for each in dims)
        for node in model.graph:
            self._add(node)

    def shape(self, value: ir.Value) -> Shape | None:
        """Return the shape of `value` on the example, or None where it can't be told."""
        tensor = constant(value)
        return tuple(tensor.shape.numpy()) if tensor is not None else self._shapes.get(value)

    def known(self, value: ir.Value | None) -> np.ndarray | None:
        """Return the content of `value` where it is small and follows from shapes and constants."""
        if value is None:
            return None
        tensor = constant(value)
        if tensor is not None:
            return array(tensor) if tensor.size <= SMALL else None
        return self._known.get(value)

    def fixed(self, value: ir.Value | None) -> bool:
        """Return whether `value` is a constant or computed from constants alone."""
        return value in self._fixed or constant(value) is not None

    def content(self, value: ir.Value) -> np.ndarray:
        """Return the content of the `fixed` value, computed where needed."""
        tensor = constant(value)
        if tensor is not None:
            return array(tensor)
        node = value.producer()
        assert node is not None
        inputs = [None if each is None else self.content(each) for each in node.inputs]
        return run_node(node, inputs, self.version)[list(node.outputs).index(value)]

    def _add(self, node: ir.Node) -> None:
        """Find the shapes of the outputs of `node`, and what they hold where that can be known."""
        given = [each for each in node.inputs if each is not None]
        standard = node.domain in ("", "ai.onnx")
        pure = standard and node.op_type not in RANDOM and not any(map(_body, node.attributes.values()))
        if pure and all(map(self.fixed, given)) and (given or node.op_type == "Constant"):
            self._fixed.update(node.outputs)
        for output, shape in zip(node.outputs, self._infer(node, given, standard), strict=True):
            if shape is not None:
                self._shapes[output] = shape
        if pure:
            self._compute(node)

    def kind(self, value: ir.Value) -> int:
        """Return the element type of `value` as a number, 0 where it isn't known."""
        tensor = constant(value)
        kind = value.dtype if tensor is None else tensor.dtype
        return int(kind) if kind is not None else self._kinds.get(value, 0)

    def _compute(self, node: ir.Node) -> None:
        output = node.outputs[0]
        if node.op_type in ("Shape", "Size"):
            source = self.shape(node.inputs[0]) if node.inputs[0] is not None else None
            if source is not None:
                self._known[output] = measured(node, source)
            return
        inputs = [self.known(each) for each in node.inputs]
        given = [(each, known) for each, known in zip(node.inputs, inputs, strict=True) if each is not None]
        if not given or any(known is None for _, known in given) or np.prod(self.shape(output) or ()) > SMALL:
            return
        try:
            results = run_node(node, inputs, self.version)
        except CompressError:  # an operator the interpreter lacks: the value stays unknown
            return
        for output, result in zip(node.outputs, results, strict=False):
            if isinstance(result, np.ndarray) and result.size <= SMALL:
                self._known[output], self._shapes[output] = result, result.shape

    def _infer(
        self, node: ir.Node, given: Sequence[ir.Value], standard: bool
    ) -> list[tuple[int, ...] | None]:
        declared = [_declared(each) for each in node.outputs]
        schema = _schema(node.op_type, self.version) if standard else None
        kinds = {each: self.kind(each) for each in given}
        if schema is None or not all(kinds.values()) or any(self.shape(each) is None for each in given):
            return declared
        proto = onnx.NodeProto(op_type=node.op_type)
        names = {each: f"v{place}" for place, each in enumerate(given)}
        proto.input.extend("" if each is None else names[each] for each in node.inputs)
        proto.output.extend(f"o{place}" for place in range(len(node.outputs)))
        proto.attribute.extend(
            ir.serde.serialize_attribute(each)
            for each in node.attributes.values()
            if each.name != "value" or node.op_type == "ConstantOfShape"
        )
        types = {
            name: onnx.helper.make_tensor_type_proto(kinds[each], self.shape(each))
            for each, name in names.items()
        }
        data = {
            name: onnx.numpy_helper.from_array(known)
            for each, name in names.items()
            if (known := self.known(each)) is not None and known.dtype.kind in "if" and known.ndim < 2
        }
        try:
            found = shape_inference.infer_node_outputs(schema, proto, types, data)
        except (RuntimeError, ValueError, shape_inference.InferenceError):
            return declared
        for place, each in enumerate(node.outputs):
            kind = found.get(f"o{place}")
            if kind is not None:
                self._kinds[each] = kind.tensor_type.elem_type
        dims = [_dims(found.get(f"o{place}")) for place in range(len(node.outputs))]
        return [known if own is None else own for own, known in zip(dims, declared, strict=True)]


def measured(node: ir.Node, shape: Shape) -> np.ndarray:
    """Return what the Shape or Size `node` computes for an input of `shape`."""
    if node.op_type == "Size":
        return np.array(np.prod(shape, dtype=np.int64))
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    return np.array(shape[start:end], np.int64)


@cache
def _schema(op: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return None


def _body(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _declared(value: ir.Value) -> Shape | None:
    """Return the shape the model says `value` has, open dimensions taken as OPEN."""
    return None if value.shape is None else tuple(d if isinstance(d, int) else OPEN for d in value.shape)


def _dims(kind: onnx.TypeProto | None) -> Shape | None:
    """Return the shape in `kind` where all of it is known."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(each.dim_value for each in dims) if all(d.HasField("dim_value") for d in dims) else None
