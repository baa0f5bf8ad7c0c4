"""Run one node on numpy arrays, by ``onnx.reference`` or, where that won't do, by ``dense.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeContextError

from onnxcompress.dense import OPERATORS
from onnxcompress.errors import CompressError

Operator = Callable[[Sequence[Any]], list[Any]]

_LIBRARIES = {
    "": "onnx.reference.ops",
    "ai.onnx.ml": "onnx.reference.ops.aionnxml",
    "ai.onnx.preview": "onnx.reference.ops.aionnx_preview",
    "ai.onnx.preview.training": "onnx.reference.ops.aionnx_preview_training",
}
_OLDEST = {"DequantizeLinear": 19}  # the first version there is, where it does all that earlier ones did
# What the operators of onnx.reference raise on inputs they don't take: nearly anything.
_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def run_node(node: ir.Node, inputs: Sequence[np.ndarray | None], version: int) -> list[np.ndarray]:
    """Return the outputs of `node` for its `inputs` (None: left out); `version` is the opset of its domain.

    Raises CompressError naming the node where its operator is unknown or refuses the inputs.
    """
    return operator(node, version)(inputs)


def operator(node: ir.Node, version: int, attributes: Mapping[str, ir.Attr] | None = None) -> Operator:
    """Return `node`, of opset `version`, as a function from its inputs to its outputs.

    `attributes` stand for the node's own (in a function the call's are needed). Subgraphs are not run here. A
    sequence is a list, an absent optional is None.
    """
    attributes = node.attributes if attributes is None else attributes
    if node.domain == "" and node.op_type == "Constant":
        return partial(_constant, next(iter(attributes.values())))
    return guarded(node, _dense(node, version, attributes) or _reference(node, version, attributes))


def guarded(node: ir.Node, found: Operator) -> Operator:
    """Return the operator `found` of `node` with all that it raises made CompressError naming the node."""

    def run(inputs: Sequence[Any]) -> list[Any]:
        try:
            with np.errstate(all="ignore"):
                return found(inputs)
        except _FAILURES as error:
            raise CompressError(f"{label(node)}: {_reason(error)}") from error

    return run


def label(node: ir.Node) -> str:
    """Return what messages call `node`: its name, or that of its first output, and its operator."""
    return f"{node.name or (node.outputs and node.outputs[0].name) or 'a node'} ({node.op_type})"


def _reason(error: BaseException) -> str:
    """Return the first line of the error that started it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _constant(attribute: ir.Attr, inputs: Sequence[Any]) -> list[Any]:
    """Return what a Constant holds, read when asked for."""
    value = attribute.value
    if attribute.type in (ir.AttributeType.STRING, ir.AttributeType.STRINGS):
        return [np.array(value, dtype=np.str_)]
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return [np.array(value, dtype=np.int64)]
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return [np.array(value, dtype=np.float32)]
    return [array(value)]


def array(tensor: ir.TensorProtocol) -> np.ndarray:
    """Return the values of `tensor`; strings as numpy's own."""
    values = tensor.numpy()
    return np.char.decode(values.astype(np.bytes_), "utf-8") if tensor.dtype == ir.DataType.STRING else values


def _dense(node: ir.Node, version: int, attributes: Mapping[str, ir.Attr]) -> Operator | None:
    """Return the operator of dense.py for `node`, or None where onnx.reference is to be used."""
    if node.domain or node.op_type not in OPERATORS:
        return None
    function, mended = OPERATORS[node.op_type]
    values = {name: attribute.value for name, attribute in attributes.items()}
    more = any(each.name for each in node.outputs[1:])
    if more or values.get("training_mode") or (mended is not None and version >= mended):
        return None
    return lambda inputs: [function(*inputs, **values)]


def _reference(node: ir.Node, version: int, attributes: Mapping[str, ir.Attr]) -> Operator:
    """Return the operator of onnx.reference for `node`."""
    if node.domain not in _LIBRARIES:
        raise CompressError(f"{label(node)}: no operators of domain {node.domain} are known here")
    version = max(version, _OLDEST.get(node.op_type, 0)) if node.domain == "" else version
    library = import_module(_LIBRARIES[node.domain])
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name or "")
    proto.input.extend("" if value is None else f"input{i}" for i, value in enumerate(node.inputs))
    proto.output.extend(value.name or "" for value in node.outputs)
    proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in attributes.values())
    settings = {
        "log": lambda *_: None,
        "opsets": {node.domain: version},
        "verbose": 0,
        "new_ops": None,
        "existing_functions": {},
        "evaluator_cls": ReferenceEvaluator,
    }

    def load(**more: Any) -> Any:
        if node.domain:
            return library.load_op(node.domain, node.op_type, version)(proto, settings)
        kind = library.load_op("", node.op_type, version, evaluator_cls=ReferenceEvaluator, **more)
        return kind(proto, settings)

    def typed(inputs: Sequence[Any]) -> list[Any]:
        return list(load(node=proto, input_types=[_type(each) for each in inputs]).run(*inputs))

    try:
        loaded = load()
    except RuntimeContextError:  # the operator's body depends on the types of its inputs
        return typed
    except _FAILURES as error:
        raise CompressError(f"{label(node)}: opset {version}: {_reason(error)}") from error
    return lambda inputs: list(loaded.run(*inputs))


def _type(value: Any) -> onnx.TypeProto:
    """Return the type of an input, as the schemas of onnx want it."""
    if not isinstance(value, np.ndarray):
        return onnx.TypeProto()
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
