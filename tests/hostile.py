"""Files that are no valid models, each made by a function of the folder it goes into."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
from onnx import TensorProto, parser

GOOD = """
<ir_version: 8, opset_import: ["": 17]>
graph (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
    y = MatMul(x, w)
}
"""


def good() -> onnx.ModelProto:
    """Return a valid model of one MatMul, its weight ``w`` in raw data."""
    model = parser.parse_model(GOOD)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    return model


def write(folder: Path, data: bytes | onnx.ModelProto, name: str = "bad.onnx") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return path


def text(body: str, *, inputs: str = "float[N] x", imports: str = '"": 17') -> Callable[[Path], Path]:
    """Return what writes the model with nodes `body` and output y."""
    source = f"<ir_version: 8, opset_import: [{imports}]> graph ({inputs}) => (float[N] y) {{ {body} }}"
    return lambda folder: write(folder, parser.parse_model(source))


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], Path]:
    """Return what writes the good model after `change`."""

    def make(folder: Path) -> Path:
        model = good()
        change(model)
        return write(folder, model)

    return make


def weight(**fields: object) -> Callable[[Path], Path]:
    """Return what writes the good model with a weight that has only name, type, shape and `fields`."""

    def change(model: onnx.ModelProto) -> None:
        given = {"name": "w", "data_type": TensorProto.FLOAT, "dims": [4, 3], **fields}
        model.graph.initializer[0].CopyFrom(TensorProto(**given))

    return changed(change)


def external(location: str, offset: object = 0, length: object = 48) -> Callable[[Path], Path]:
    """Return what writes the good model with its weight in the file `location`; `bad.bin` holds 48 bytes."""
    entries = {"location": location, "offset": offset, "length": length}
    fields = [onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items()]
    make = weight(data_location=TensorProto.EXTERNAL, external_data=fields)

    def written(folder: Path) -> Path:
        (folder / "bad.bin").write_bytes(bytes(48))
        return make(folder)

    return written


def sparse(indices: list[int], dims: list[int], count: int = 2) -> Callable[[Path], Path]:
    """Return what writes the good model with a sparse weight of `count` values."""

    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[:]
        values = onnx.helper.make_tensor("w", TensorProto.FLOAT, [count], [1.0] * count)
        places = onnx.helper.make_tensor("", TensorProto.INT64, [len(indices)], indices)
        model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, dims))

    return changed(change)


def _link_out(folder: Path) -> Path:
    outside = folder.parent / f"{folder.name}-outside.bin"
    outside.write_bytes(bytes(48))
    (folder / "link.bin").symlink_to(outside)
    return external("link.bin")(folder)


def _folder_link_out(folder: Path) -> Path:
    outside = folder.parent / f"{folder.name}-outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(48))
    (folder / "sub").symlink_to(outside)
    return external("sub/w.bin")(folder)


def _link_circle(folder: Path) -> Path:
    (folder / "link.bin").symlink_to("link.bin")
    return external("link.bin")(folder)


def _data_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    return external("data")(folder)


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.bin")
    return external("pipe.bin")(folder)


def _cut(share: float) -> Callable[[Path], Path]:
    """Return what writes the first `share` of a model with a weight of 160 kB."""

    def make(folder: Path) -> Path:
        model = good()
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((200, 200), np.float32), "big"))
        data = model.SerializeToString()
        return write(folder, data[: int(len(data) * share)])

    return make


def _nested(inner: bytes) -> Callable[[Path], Path]:
    """Return what writes a graph in a graph, 2,000 deep, around the bytes `inner`."""

    def make(folder: Path) -> Path:
        graph = inner
        for _ in range(2000):
            for field in (6, 5, 1):  # of AttributeProto, NodeProto, GraphProto
                graph = _field(field, graph)
        return write(folder, b"\x08\x08" + _field(7, graph))

    return make


def _field(number: int, data: bytes) -> bytes:
    """Return `data` as a length-delimited field of a protobuf."""
    length, digits = len(data), []
    while length > 127:
        digits.append(length % 128 + 128)
        length //= 128
    return bytes([number * 8 + 2, *digits, length]) + data


def _overlapping_fields(folder: Path) -> Path:
    """A graph that claims to be longer than the file."""
    return write(folder, b"\x08\x08\x3a\xff\xff\xff\xff\x07" + bytes(20000))


def _recursive_function(folder: Path) -> Path:
    function = onnx.helper.make_function(
        "own", "f", ["a"], ["b"], [onnx.helper.make_node("f", ["a"], ["b"], domain="own")], []
    )
    function.opset_import.append(onnx.helper.make_opsetid("own", 1))
    path = text("y = own.f(x)", imports='"": 17, "own": 1')(folder)
    model = onnx.load(path)
    model.functions.append(function)
    return write(folder, model)


def _constant(folder: Path) -> Path:
    node = onnx.helper.make_node("Constant", [], ["k"])
    tensor = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[2], raw_data=bytes(4))
    node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    model = good()
    model.graph.node.insert(0, node)
    return write(folder, model)


PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(40)

CASES: dict[str, Callable[[Path], Path]] = {
    # no ONNX at all
    "an empty file": lambda folder: write(folder, b""),
    "a text": lambda folder: write(folder, b"This is a text and not a model.\n" * 100),
    "a picture": lambda folder: write(folder, PNG),
    "an archive": lambda folder: write(folder, b"PK\x03\x04" + bytes(range(256)) * 100),
    "random bytes": lambda folder: write(folder, np.random.default_rng(0).bytes(50_000)),
    "zeros": lambda folder: write(folder, bytes(50_000)),
    "a model cut in its weights": _cut(0.5),
    "a model cut at its end": _cut(0.9999),
    "a graph longer than its file": _overlapping_fields,
    "a model without a graph": lambda folder: write(folder, onnx.ModelProto(ir_version=8)),
    "graphs nested too deep": _nested(b""),
    "graphs nested too deep around much": _nested(bytes(20_000)),
    # graphs that are none
    "a cyclic graph": text("a = Relu(b) b = Relu(a) y = Add(a, x)"),
    "nodes out of order": text("y = Relu(a) a = Relu(x)"),
    "an input that isn't there": text("y = Relu(q)"),
    "an output nobody makes": text("z = Relu(x)"),
    "no nodes": text(""),
    "a value made twice": text("a = Relu(x) a = Relu(x) y = Relu(a)"),
    "an input listed twice": changed(lambda model: model.graph.input.append(model.graph.input[0])),
    "two initializers of one name": changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
    "an initializer without a name": weight(name="", raw_data=bytes(48)),
    "an input without a type": changed(lambda model: model.graph.input[0].type.Clear()),
    "a function that calls itself": _recursive_function,
    # operators used wrongly
    "an unknown operator": text("y = Transmogrify(x)"),
    "an unknown domain": text("y = com.nowhere.F(x)"),
    "too many inputs": text("y = Relu(x, x)"),
    "an attribute of the wrong type": text('y = Transpose<perm="abc">(x)'),
    "an attribute that is missing": text("y = Concat(x, x)"),
    "integers where floats must be": text("y = MatMul(x, i)", inputs="float[N] x, int64[N] i"),
    "an operator set of the future": text("y = Relu(x)", imports='"": 999'),
    "an operator set of the past": text("y = Relu(x)", imports='"": 3'),
    "no operator set": changed(lambda model: model.ClearField("opset_import")),
    "an IR version of the future": changed(lambda model: setattr(model, "ir_version", 999)),
    # tensors whose data don't fit
    "an unknown data type": weight(data_type=99, raw_data=bytes(48)),
    "no data type": weight(data_type=0, raw_data=bytes(48)),
    "a negative dimension": weight(dims=[-4, 3], raw_data=bytes(48)),
    "dimensions beyond all memory": weight(dims=[2**62, 2**62]),
    "dimensions that overflow to zero": weight(dims=[2**32, 2**32]),
    "no elements of a huge shape": weight(dims=[0, 2**62], raw_data=b""),
    "more dimensions than arrays have": weight(dims=[1] * 100, raw_data=bytes(4)),
    "too few bytes": weight(raw_data=bytes(44)),
    "too many bytes": weight(raw_data=bytes(52)),
    "no data": weight(),
    "too few values": weight(float_data=[1.0] * 11),
    "values of another type": weight(int64_data=[1] * 12),
    "values twice": weight(float_data=[1.0] * 12, raw_data=bytes(48)),
    "part of a tensor": weight(raw_data=bytes(48), segment=TensorProto.Segment(begin=0, end=48)),
    "a constant with too few bytes": _constant,
    "sparse indices outside": sparse([0, 12], [4, 3]),
    "negative sparse indices": sparse([-1, 3], [4, 3]),
    "sparse indices of another count": sparse([0, 1, 2], [4, 3]),
    "a sparse tensor beyond all memory": sparse([0, 1], [2**40, 2**20]),
    # external data
    "missing external data": external("nowhere.bin"),
    "external data at an absolute path": external("/etc/passwd", 0, 48),
    "external data in the folder above": external("../bad.bin"),
    "external data in a folder above a folder": external("sub/../../bad.bin"),
    "external data behind a link that leads out": _link_out,
    "external data in a linked folder": _folder_link_out,
    "external data behind a link to itself": _link_circle,
    "external data in a folder": _data_folder,
    "external data in a pipe": _pipe,
    "external data without a location": external(""),
    "external data at a name with a NUL": external("bad.bin\0"),
    "external data at a name too long": external("x" * 5000),
    "external data beyond the end": external("bad.bin", 4, 48),
    "external data at a huge offset": external("bad.bin", 2**63, 48),
    "external data at a negative offset": external("bad.bin", -48, 48),
    "external data at no number": external("bad.bin", "zero", 48),
    "external data of another length": external("bad.bin", 0, 44),
}
