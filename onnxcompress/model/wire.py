"""Model files read without the weights in them.

A protobuf parser copies all it reads, twice. So the bytes of larger tensors are taken out before parsing:
what is parsed is the same model whose large ``raw_data`` are external data, at their place in this very file.
Source: Protocol Buffers encoding; field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

HERE = "\0here"  # the location that stands for the model file itself
LARGE = 2**14  # bytes from which on data stay in the file
_DEPTH = 100  # of nested messages, as protobuf's own parsers allow
_INSIDE = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_RAW_DATA = 9
_BYTES = 2  # wire type of what has a length


def without_weights(model: np.ndarray) -> bytes:
    """Return the ModelProto `model` [bytes, uint8] with its large raw data made external, at :data:`HERE`.

    What is no protobuf, or is cut short, comes back as it is as far as it can't be read.
    """
    return _cut(model.data, 0, len(model), "Model", 0)


def tag(field: int, length: int) -> bytes:
    """Return what precedes a length-delimited field: its number and wire type, and its length."""
    return _varint(field << 3 | _BYTES) + _varint(length)


def _cut(view: memoryview, start: int, stop: int, kind: str, depth: int) -> bytes:
    parts: list[bytes | memoryview] = []
    done = start
    for number, field, body, end in _large_fields(view, start, stop):
        inside = _INSIDE[kind].get(number)
        if kind == "Tensor" and number == _RAW_DATA:
            new = _external(body, end - body)
        elif inside is not None and depth < _DEPTH:
            new = _cut(view, body, end, inside, depth + 1)
            new = tag(number, len(new)) + new
        else:
            continue
        parts += [view[done:field], new]
        done = end
    return b"".join([*parts, view[done:stop]])


def _large_fields(view: memoryview, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, begin, begin of content and end of the fields of a message that have LARGE bytes or more.

    Stops at what is no field, or reaches beyond the message.
    """
    at = start
    while at < stop:
        field = at
        key, at = _read_varint(view, at, stop)
        wire = key & 7
        length = {0: 0, 1: 8, 5: 4}.get(wire, -1)
        if wire in (0, _BYTES):
            value, at = _read_varint(view, at, stop)
            length = value if wire == _BYTES else 0
        if not 0 <= length <= stop - at or at > stop:
            return
        if length >= LARGE:
            yield key >> 3, field, at, at + length
        at += length


def _read_varint(view: memoryview, at: int, stop: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends; an end beyond `stop` where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            break
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    return 0, stop + 1


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes(digits) + bytes([value])


def _external(offset: int, length: int) -> bytes:
    """Return the fields of a TensorProto that say its data are external."""
    parts = []
    for key, text in (("location", HERE), ("offset", str(offset)), ("length", str(length))):
        entry = b"".join(
            tag(number, len(each)) + each for number, each in ((1, key.encode()), (2, text.encode()))
        )
        parts.append(tag(13, len(entry)) + entry)
    return b"".join([*parts, _varint(14 << 3), _varint(1)])
