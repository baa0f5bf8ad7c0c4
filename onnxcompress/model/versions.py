"""Raising a model's default operator set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.model import protos
from onnxcompress.model.sparse import SparseTensor
from onnxcompress.model.storage import tensor_bytes

_SMALL = 1024  # bytes; tensors the converter may have to read, such as shapes and scales, are smaller
_DEFAULT = ("", "ai.onnx")


def convert(model: ir.Model, version: int) -> None:
    """Give `model` the default operator set `version`, newer than its own; after an error it is half changed.

    Where none of its operators was revised since, only the number changes. Else ``onnx.version_converter``
    rewrites the main graph with its subgraphs, and the bodies of functions. CompressError where it can't.
    """
    model.graph = _raised(model.graph, model.ir_version, version)
    for key, function in model.functions.items():
        try:
            body = _raised(function.graph, model.ir_version, version)
        except CompressError as error:
            raise CompressError(f"function {function.domain}.{function.name}: {error}") from error
        model.functions[key] = ir.Function(*key, graph=body, attributes=function.attributes)
    imports = [onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()]
    model.ir_version = max(
        model.ir_version, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True)
    )


def _raised(graph: ir.Graph, ir_version: int, new: int) -> ir.Graph:
    """Return `graph` with the operator set `new`, or as it is where it has a newer one, or none."""
    old = next((graph.opset_imports[domain] for domain in _DEFAULT if domain in graph.opset_imports), new)
    if old >= new:
        return graph
    bodies = (graph, *graph.subgraphs())
    if any(_is_revised(node, old, new) for body in bodies for node in body):
        nodes = [node for body in bodies for node in body]
        if any(attribute.is_ref() for node in nodes for attribute in node.attributes.values()):
            raise CompressError(f"operator set {old} can't be raised to {new}: it uses its attributes")
        graph = _converted(graph, ir_version, old, new)
    graph.opset_imports.pop("ai.onnx", None)
    graph.opset_imports[""] = new
    return graph


def _is_revised(node: ir.Node, old: int, new: int) -> bool:
    """Return whether the operator of `node` isn't the same in the operator sets `old` and `new`."""
    if node.domain not in _DEFAULT:
        return False
    versions = [
        onnx.defs.get_schema(node.op_type, version).since_version
        for version in (old, new)
        if onnx.defs.has(node.op_type, version)
    ]
    return len(versions) < 2 or versions[0] != versions[1]


def _converted(graph: ir.Graph, ir_version: int, old: int, new: int) -> ir.Graph:
    """Return `graph`, which is used up, as ``onnx.version_converter`` rewrites it."""
    model = ir.Model(graph, ir_version=ir_version)
    held: list[ir.TensorProtocol] = []
    for tensor, put in protos.places(model):
        if isinstance(tensor, SparseTensor) or tensor_bytes(tensor) > _SMALL:
            shape, name = ir.Shape(tensor.shape.numpy()), tensor.name or ""
            put(ir.ExternalTensor(str(len(held)), None, None, tensor.dtype, shape=shape, name=name))
            held.append(tensor)
    before = ir.to_proto(model)
    raised = (onnx.version_converter.ConvertError, onnx.shape_inference.InferenceError, RuntimeError)
    try:
        after = onnx.version_converter.convert_version(before, new)
    except raised as error:
        reason = " ".join(str(error).split())
        raise CompressError(f"operator set {old} can't be raised to {new}: {reason}") from error
    known = {each.name for each in before.graph.value_info}
    _replace(after.graph.input, before.graph.input)  # what the converter inferred isn't what was declared
    _replace(after.graph.output, before.graph.output)
    _replace(after.graph.value_info, [each for each in after.graph.value_info if each.name in known])
    result = ir.from_proto(after).graph
    for tensor, put in protos.places(ir.Model(result, ir_version=ir_version)):
        if isinstance(tensor, ir.ExternalTensor):
            put(held[int(str(tensor.location))])
    _carry_over(graph, result)
    return result


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    del field[:]
    field.extend(values)


def _carry_over(old: ir.Graph, new: ir.Graph) -> None:
    """Give `new` and what has kept its name in it the metadata of `old`, which the converter leaves out."""
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    values = {value.name: value for value in _values(old)}
    for value in _values(new):
        if value.name in values:
            value.metadata_props.update(values[value.name].metadata_props)
            value.meta.update(values[value.name].meta)
            node, before = value.producer(), values[value.name].producer()
            if node is not None and before is not None:
                node.metadata_props.update(before.metadata_props)
                node.meta.update(before.meta)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the inputs, initializers and node outputs of `graph` and its subgraphs."""
    for each in (graph, *graph.subgraphs()):
        yield from each.inputs
        yield from each.initializers.values()
        for node in each:
            yield from node.outputs
