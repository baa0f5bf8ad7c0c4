"""Model protobufs without their tensors, and back.

``onnx_ir`` loses sparse tensors, copies what it writes and doesn't say which tensor it fails at. So the
tensors are taken out before it reads a model and put in after it wrote one: a *skeleton* is a ModelProto in
which every tensor is an empty placeholder that carries its number.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.model.sparse import SparseTensor

Source = onnx.TensorProto | onnx.SparseTensorProto
Put = Callable[[ir.TensorProtocol], None]

_NUMBER = "onnxcompress.tensor"  # metadata key of a placeholder
_DEEP: dict[type, set[str]] = {
    onnx.ModelProto: {"graph", "functions"},
    onnx.FunctionProto: {"node", "attribute_proto"},
    onnx.GraphProto: {"node", "initializer", "sparse_initializer"},
    onnx.NodeProto: {"attribute"},
    onnx.AttributeProto: {"t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors"},
}
_DENSE = {"sparse_initializer": "initializer", "sparse_tensor": "t", "sparse_tensors": "tensors"}


def skeleton(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Source]]:
    """Return `proto` without its tensors, and the tensors by number; `proto` stays as it is.

    Sparse initializers are found among the initializers, Constant's ``sparse_value`` as ``value``.
    """
    sources: list[Source] = []
    light = onnx.ModelProto()
    _lighten(proto, light, sources)
    return light, sources


def _lighten(source: Any, target: Any, sources: list[Source]) -> None:
    """Copy `source` to the empty `target` and number the tensors found."""
    if isinstance(source, onnx.TensorProto | onnx.SparseTensorProto):
        header = source.values if isinstance(source, onnx.SparseTensorProto) else source
        target.name, target.data_type = header.name, header.data_type
        target.dims.extend(source.dims)
        target.metadata_props.add(key=_NUMBER, value=str(len(sources)))
        sources.append(source)
        return
    if isinstance(source, onnx.NodeProto) and not any(map(_is_deep, source.attribute)):
        target.CopyFrom(source)
        return
    for field, value in source.ListFields():
        if field.name not in _DEEP[type(source)]:
            _copy(target, field.name, value)
            continue
        place = getattr(target, _DENSE.get(field.name, field.name))
        if hasattr(value, "CopyFrom"):
            _lighten(value, place, sources)
        else:
            for each in value:
                _lighten(each, place.add(), sources)
    if isinstance(source, onnx.AttributeProto) and source.type == onnx.AttributeProto.SPARSE_TENSOR:
        target.type = onnx.AttributeProto.TENSOR
    if isinstance(source, onnx.AttributeProto) and source.type == onnx.AttributeProto.SPARSE_TENSORS:
        target.type = onnx.AttributeProto.TENSORS
    if isinstance(source, onnx.NodeProto) and source.op_type == "Constant":
        for attribute in target.attribute:
            attribute.name = "value" if attribute.name == "sparse_value" else attribute.name


def _is_deep(attribute: onnx.AttributeProto) -> bool:
    return any(field.name in _DEEP[onnx.AttributeProto] for field, _ in attribute.ListFields())


def _copy(target: Any, name: str, value: Any) -> None:
    if hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    elif hasattr(value, "MergeFrom"):
        getattr(target, name).MergeFrom(value)
    else:
        setattr(target, name, value)


def placeholders(light: onnx.ModelProto) -> Iterator[tuple[int, onnx.TensorProto]]:
    """Yield number and placeholder of every tensor taken out of the skeleton `light`."""
    for owner in _owners(light):
        yield from holders(owner)


def holders(owner: Any) -> Iterator[tuple[int, onnx.TensorProto]]:
    """Yield number and placeholder of every tensor taken out of `owner`, a graph or an attribute."""
    if isinstance(owner, onnx.GraphProto):
        found = owner.initializer
    else:
        found = [owner.t] if owner.HasField("t") else owner.tensors
    for tensor in found:
        if tensor.metadata_props and tensor.metadata_props[-1].key == _NUMBER:
            yield int(tensor.metadata_props[-1].value), tensor


def _owners(light: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.AttributeProto]:
    """Yield every graph and every attribute that may hold tensors."""
    for body in _bodies(light):
        if isinstance(body, onnx.GraphProto):
            yield body
        else:
            yield from body.attribute_proto
        for node in body.node:
            yield from filter(_is_deep, node.attribute)


def _bodies(light: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    pending: list[Any] = [light.graph, *light.functions]
    while pending:
        body = pending.pop()
        yield body
        for node in body.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else attribute.graphs


def number(tensor: ir.TensorProtocol) -> int | None:
    """Return the number of the tensor that `tensor` is the placeholder of; None where it is none."""
    text = tensor.metadata_props.get(_NUMBER)
    return None if text is None else int(text)


def copied(model: ir.Model) -> ir.Model:
    """Return a copy of `model` that shares its tensors; CompressError where a node reads what isn't there."""
    try:
        return model.clone()
    except RuntimeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if not isinstance(cause, ValueError | KeyError):
            raise
        reason = textwrap.shorten(str(cause), 200, placeholder=" ...")
        raise CompressError(f"a node reads what is not in its graph: {reason}") from error


def to_skeleton(model: ir.Model) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """Return `model` without its tensors, and the tensors by number; `model` is used up."""
    held: list[ir.TensorProtocol] = []
    for tensor, put in places(model):
        holder = onnx.TensorProto(dims=tensor.shape.numpy(), data_type=tensor.dtype.value)
        holder.metadata_props.add(key=_NUMBER, value=str(len(held)))
        put(ir.serde.TensorProtoTensor(holder))
        held.append(tensor)
    return ir.to_proto(model), held


def put_sparse(light: onnx.ModelProto, held: list[ir.TensorProtocol]) -> None:
    """Write the sparse ones of `held` in place of their placeholders, Constant's as ``sparse_value``."""
    if not any(isinstance(tensor, SparseTensor) for tensor in held):
        return
    for owner in list(_owners(light)):
        _put_sparse(owner, held)
    for body in _bodies(light):
        for node in body.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("sparse_tensor"):
                    attribute.name = "sparse_value"


def _put_sparse(owner: Any, held: list[ir.TensorProtocol]) -> None:
    """Write the sparse tensors among those of `owner`, a graph or an attribute."""
    real = {number: held[number] for number, _ in holders(owner)}
    sparse = {number: tensor for number, tensor in real.items() if isinstance(tensor, SparseTensor)}
    if not sparse:
        return
    if isinstance(owner, onnx.GraphProto):
        dense = [holder for number, holder in holders(owner) if number not in sparse]
        for number, holder in holders(owner):
            if number in sparse:
                sparse[number].write(owner.sparse_initializer.add(), holder.name)
        del owner.initializer[:]
        owner.initializer.extend(dense)
    elif owner.HasField("t"):
        next(iter(sparse.values())).write(owner.sparse_tensor, "")
        owner.type = onnx.AttributeProto.SPARSE_TENSOR
        owner.ClearField("t")
    else:
        for tensor in sparse.values():
            tensor.write(owner.sparse_tensors.add(), tensor.name or "")
        owner.type = onnx.AttributeProto.SPARSE_TENSORS
        owner.ClearField("tensors")


def bodies(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, the subgraphs in it, then every function and the subgraphs in it; each once."""
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in roots:
        yield body
        yield from body.subgraphs()


def places(model: ir.Model) -> Iterator[tuple[ir.TensorProtocol, Put]]:
    """Yield every tensor in initializers and attributes of all graphs, and what puts another in its place.

    A tensor that is in several places is yielded for each.
    """
    for body in bodies(model):
        if isinstance(body, ir.Graph):
            for value in body.initializers.values():
                if value.const_value is not None:
                    yield value.const_value, partial(setattr, value, "const_value")
        else:
            yield from _attribute_places(body.attributes)
        for node in body:
            yield from _attribute_places(node.attributes)


def _attribute_places(attributes: MutableMapping[str, ir.Attr]) -> Iterator[tuple[ir.TensorProtocol, Put]]:
    for name, attribute in list(attributes.items()):
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor(), partial(_put_attribute, attributes, name)
        elif attribute.type == ir.AttributeType.TENSORS:
            for place, tensor in enumerate(attribute.as_tensors()):
                yield tensor, partial(_put_attribute, attributes, name, place=place)


def _put_attribute(
    attributes: MutableMapping[str, ir.Attr], name: str, tensor: ir.TensorProtocol, place: int | None = None
) -> None:
    old = attributes[name]
    if place is None:
        attributes[name] = ir.AttrTensor(name, tensor, old.doc_string)
    else:
        values = list(old.as_tensors())
        values[place] = tensor
        attributes[name] = ir.AttrTensors(name, values, old.doc_string)
