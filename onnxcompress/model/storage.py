"""How one tensor is stored: read and checked, or written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.model.external import DataFile, MappedTensor, decode, stored_bytes
from onnxcompress.model.sparse import SparseTensor

Files = Callable[[str, str], DataFile]

_DATA = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_RANK, _ELEMENTS = 64, 2**59  # what numpy can index, elements taking up to 16 bytes
_OWN = {
    "FLOAT": "float_data",
    "COMPLEX64": "float_data",
    "STRING": "string_data",
    "INT64": "int64_data",
    "DOUBLE": "double_data",
    "COMPLEX128": "double_data",
    "UINT32": "uint64_data",
    "UINT64": "uint64_data",
}


def read_tensor(
    source: onnx.TensorProto | onnx.SparseTensorProto, files: Files, label: str
) -> ir.TensorProtocol:
    """Return the tensor stored as `source`.

    External data stay where they are, others are copied. ``files(location, what)`` finds a file of external
    data. CompressError, beginning with `label` and naming the tensor, where declaration and data don't agree.
    """
    if isinstance(source, onnx.SparseTensorProto):
        name = source.values.name
        dims = _dims(source.dims, f"{label}: sparse tensor {name!r}")
        values, indices = (read_tensor(part, files, label) for part in (source.values, source.indices))
        return SparseTensor(values, indices, dims, name=name, label=label)
    what = f"{label}: tensor {source.name!r}"
    dtype, dims = _dtype(source.data_type, what), _dims(source.dims, what)
    if source.HasField("segment"):
        raise CompressError(f"{what} is a segment, expected a whole tensor")
    about: dict[str, Any] = {
        "shape": ir.Shape(dims),
        "name": source.name,
        "doc_string": source.doc_string or None,
        "metadata_props": {each.key: each.value for each in source.metadata_props} or None,
    }
    if source.data_location == onnx.TensorProto.EXTERNAL:
        file, offset = _find(source, dtype, dims, files, what)
        return MappedTensor(file, offset, dtype, **about)
    _check_data(source, dtype, dims, what)
    if dtype == ir.DataType.STRING:
        return ir.StringTensor(list(source.string_data), **about)
    if source.HasField("raw_data"):
        return decode(np.frombuffer(source.raw_data, np.uint8), dtype, **about)
    return ir.Tensor(ir.serde.TensorProtoTensor(source).numpy(), dtype=dtype, **about)


def write_header(tensor: ir.TensorProtocol, proto: onnx.TensorProto, name: str) -> None:
    """Make `proto` declare `tensor` under `name`, without data."""
    proto.Clear()
    proto.name = name
    proto.data_type = tensor.dtype.value
    proto.dims.extend(tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, value in tensor.metadata_props.items():
        proto.metadata_props.add(key=key, value=value)


def put_in_line(tensor: ir.TensorProtocol, proto: onnx.TensorProto) -> None:
    """Put the data of `tensor` into `proto`."""
    if tensor.dtype == ir.DataType.STRING:
        texts = tensor.string_data() if isinstance(tensor, ir.StringTensor) else tensor.numpy().reshape(-1)
        proto.string_data.extend(text if isinstance(text, bytes) else str(text).encode() for text in texts)
    else:
        proto.raw_data = bytes(raw(tensor))


def raw(tensor: ir.TensorProtocol) -> memoryview:
    """Return the bytes of `tensor` as a file holds them, little-endian and packed, copying only if needed."""
    if isinstance(tensor, MappedTensor):
        data = tensor.file.read(tensor.offset, tensor.nbytes)
    elif tensor.dtype.bitwidth < 8:
        data = np.frombuffer(tensor.tobytes(), np.uint8)
    else:
        array = np.ascontiguousarray(tensor.numpy())
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8)
    if data.size != tensor.nbytes:
        raise ValueError(f"tensor {tensor.name!r} came out as {data.size} bytes, expected {tensor.nbytes}")
    return data.data


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Return the bytes that the data of `tensor` take in a file, without reading them."""
    if isinstance(tensor, SparseTensor):
        return tensor.stored_bytes
    if tensor.dtype == ir.DataType.STRING:
        return sum(map(len, tensor.string_data())) if isinstance(tensor, ir.StringTensor) else tensor.size
    return tensor.nbytes


def _dtype(code: int, what: str) -> ir.DataType:
    try:
        dtype = ir.DataType(code)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise CompressError(f"{what} has data type {code}, expected one that ONNX defines")
    return dtype


def _dims(dims: Any, what: str) -> tuple[int, ...]:
    if any(dim < 0 for dim in dims):
        raise CompressError(f"{what} has shape {list(dims)}, expected no negative dimension")
    if len(dims) > _RANK or math.prod(dim for dim in dims if dim) >= _ELEMENTS:
        raise CompressError(f"{what} has shape {list(dims)[:8]}, which is more than an array can have")
    return tuple(dims)


def _check_data(source: onnx.TensorProto, dtype: ir.DataType, dims: tuple[int, ...], what: str) -> None:
    """Raise CompressError unless `source` holds exactly the data its shape and type ask for."""
    own = _OWN.get(dtype.name, "int32_data")
    others = [name for name in _DATA if name != own and len(getattr(source, name))]
    if source.HasField("raw_data") and dtype != ir.DataType.STRING:
        has, expected, unit = len(source.raw_data), stored_bytes(dtype, dims), "bytes"
        others += [own] if len(getattr(source, own)) else []
    else:
        has, expected, unit = len(getattr(source, own)), math.prod(dims), "values"
        if dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):
            expected = stored_bytes(dtype, dims)
        if dtype.name.startswith("COMPLEX"):
            expected *= 2
    if others:
        raise CompressError(
            f"{what} of type {dtype} has values in {others[0]}, expected {own} or raw_data alone"
        )
    if has != expected:
        raise CompressError(f"{what} of shape {list(dims)} holds {has} {unit}, expected {expected}")


def _find(
    source: onnx.TensorProto, dtype: ir.DataType, dims: tuple[int, ...], files: Files, what: str
) -> tuple[DataFile, int]:
    """Return the file and the offset where the external data of `source` are."""
    entries = {each.key: each.value for each in source.external_data}
    if dtype == ir.DataType.STRING:
        raise CompressError(f"{what} of type STRING has external data, expected them in the model")
    offset = _natural(entries.get("offset", "0"), "offset", what)
    size = stored_bytes(dtype, dims)
    length = _natural(entries.get("length", str(size)), "length", what)
    if length != size:
        raise CompressError(
            f"{what} of shape {list(dims)} has {length} bytes of external data, expected {size}"
        )
    file = files(entries.get("location", ""), what)
    if offset + size > file.size:
        raise CompressError(
            f"{what} takes bytes {offset} to {offset + size} of {file.path.name}, which has {file.size}"
        )
    return file, offset


def _natural(text: str, key: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 40):
        raise CompressError(f"{what} has external data with {key} {text[:40]!r}, expected a whole number")
    return int(text)
