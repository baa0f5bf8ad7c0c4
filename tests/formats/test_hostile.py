"""Damaged files: unpacking them is an error or gives arrays, and takes bounded memory."""

import itertools
import tracemalloc
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from encoded import CASES, kept, model
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import CompressError
from onnxcompress.formats import FORMATS
from onnxcompress.formats.storing import store
from onnxcompress.formats.unpack import ledger, unpack
from onnxcompress.model import load, to_proto

NAMES = (
    "dense, 255 values and zero",
    "sparse, 16 values",
    "half zero, int8",
    "ternary by channel",
    "blocks of few values, cut off",
    "tables by group, sparse",
    "scales by channel",
    "powers of two",
    "sparse, all different",
)
MOST = 2**27  # bytes that reading a file of 30 kB may take


@cache
def encoded(name: str) -> bytes:
    """A file with one weight, stored in the shortest ways there are."""
    ways = {way.text: way for _, way in kept(name)}
    shortest = sorted(ways.values(), key=lambda way: way.bytes)[:7]
    made = model({f"w{place}": CASES[name] for place in range(len(shortest))})
    values = made.graph.initializers
    store(made, {values[f"w{place}"]: way.make() for place, way in enumerate(shortest)}, {}, 64)
    return bytes(to_proto(made).SerializeToString())


def test_the_files_have_all_formats_but_one() -> None:
    used = {
        node.op_type
        for name in NAMES
        for node in onnx.ModelProto.FromString(encoded(name)).graph.node
        if node.domain == "onnxcompress"
    }
    missing = {name for name, each in FORMATS.items() if each.functions(13)} - used
    assert missing == {"Huffman32", "Huffman128", "Binary"}


Change = Callable[[st.DataObject, onnx.ModelProto], None]


def flip(data: st.DataObject, proto: onnx.ModelProto) -> None:
    tensor = data.draw(st.sampled_from([each for each in proto.graph.initializer if each.raw_data]))
    raw = bytearray(tensor.raw_data)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=20)):
        raw[place] = data.draw(st.integers(0, 255))
    tensor.raw_data = bytes(raw)


def resize(data: st.DataObject, proto: onnx.ModelProto) -> None:
    tensor = data.draw(st.sampled_from(proto.graph.initializer))
    size = data.draw(st.integers(0, 3000))
    array = onnx.numpy_helper.to_array(tensor)
    shape = data.draw(st.sampled_from([(size,), (1, size), (size, 1), (0, size), ()]))
    new = np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)
    tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))


def retype(data: st.DataObject, proto: onnx.ModelProto) -> None:
    tensor = data.draw(st.sampled_from(proto.graph.initializer))
    kinds = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.uint16, np.int32, np.int64, np.uint64]
    kind = data.draw(st.sampled_from([*kinds, np.bool_, np.str_]))
    with np.errstate(all="ignore"):
        new = onnx.numpy_helper.to_array(tensor).astype(kind)
    if kind is np.str_:
        new = new.astype(object)
    tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))


def swap(data: st.DataObject, proto: onnx.ModelProto) -> None:
    first, second = (data.draw(st.sampled_from(proto.graph.initializer)) for _ in range(2))
    first.name, second.name = second.name, first.name


def remove(data: st.DataObject, proto: onnx.ModelProto) -> None:
    field = data.draw(st.sampled_from([proto.graph.initializer, proto.graph.node, proto.functions]))
    del field[data.draw(st.integers(0, len(field) - 1))]


def attribute(data: st.DataObject, proto: onnx.ModelProto) -> None:
    node = data.draw(st.sampled_from([each for each in proto.graph.node if each.attribute]))
    place = data.draw(st.integers(0, len(node.attribute) - 1))
    name = node.attribute[place].name
    number = (
        st.integers(-3, 70) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**31 - 1, 2**31, 2**32])
    )
    value = data.draw(
        number | st.lists(number, max_size=5) | st.just(1.5) | st.just("x") | st.just(None) | st.just([])
    )
    del node.attribute[place]
    if value == []:
        node.attribute.add(name=name, type=onnx.AttributeProto.INTS)
    elif value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))


def element(data: st.DataObject, proto: onnx.ModelProto) -> None:
    """Change one number of a list, such as a size of the Split, a block count, or a dimension."""
    lists = [each for node in proto.graph.node for each in node.attribute if each.ints]
    ints = data.draw(st.sampled_from(lists)).ints
    place = data.draw(st.integers(0, len(ints) - 1))
    ints[place] = data.draw(
        st.sampled_from([0, 1, ints[place] + 1, max(0, ints[place] - 1), -1, 2**31 - 1, 2**40])
    )


def rewire(data: st.DataObject, proto: onnx.ModelProto) -> None:
    node = data.draw(st.sampled_from([each for each in proto.graph.node if each.input]))
    place = data.draw(st.integers(0, len(node.input) - 1))
    names = [each.name for each in proto.graph.initializer]
    names += [name for each in proto.graph.node for name in each.output] + ["", "s"]
    change = data.draw(st.sampled_from(["another", "less", "more"]))
    if change == "another":
        node.input[place] = data.draw(st.sampled_from(names))
    elif change == "less":
        del node.input[place]
    else:
        node.input.append(data.draw(st.sampled_from(names)))


def rename(data: st.DataObject, proto: onnx.ModelProto) -> None:
    node = data.draw(st.sampled_from(proto.graph.node))
    node.op_type = data.draw(st.sampled_from([*FORMATS, "Identity", "Split", "Constant", "Relu", "Zip"]))
    node.domain = data.draw(st.sampled_from(["", "onnxcompress"]))


def outputs(data: st.DataObject, proto: onnx.ModelProto) -> None:
    node = data.draw(st.sampled_from(proto.graph.node))
    if node.output and data.draw(st.booleans()):
        del node.output[data.draw(st.integers(0, len(node.output) - 1))]
    else:
        node.output.append("another_output")


CHANGES: dict[str, Change] = {
    each.__name__: each
    for each in (flip, resize, retype, swap, remove, attribute, element, rewire, rename, outputs)
}


def unpacked(proto: onnx.ModelProto, watched: bool) -> None:
    """Unpack `proto`; fail where that raises what isn't for users, or takes much memory, if `watched`."""
    if watched:
        tracemalloc.start()
    try:
        broken = load(proto)
        try:
            ledger(broken)
        except CompressError as error:
            assert "\n" not in str(error)  # noqa: PT017
        unpack(broken, sparse=True)
    except CompressError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1] if watched else 0
        tracemalloc.stop()
    assert peak < MOST


@pytest.mark.parametrize("change", list(CHANGES))
@settings(max_examples=15)
@given(data=st.data())
def test_a_changed_file_is_an_error_or_arrays(change: str, data: st.DataObject) -> None:
    proto = onnx.ModelProto.FromString(encoded(data.draw(st.sampled_from(NAMES))))
    for _ in range(data.draw(st.integers(1, 2))):
        CHANGES[change](data, proto)
    unpacked(proto, watched=change in ("resize", "attribute", "element"))


@settings(max_examples=30)
@given(st.data())
def test_a_file_with_wrong_bytes_is_an_error_or_arrays(data: st.DataObject) -> None:
    raw = bytearray(encoded(data.draw(st.sampled_from(NAMES))))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=8)):
        raw[place] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(0, len(raw)) | st.just(len(raw))) :]
    try:
        proto = onnx.ModelProto.FromString(bytes(raw))
    except Exception:  # noqa: BLE001  not a file of protobuf: for others to say
        return
    unpacked(proto, watched=False)


def calls(nodes: list[onnx.NodeProto], result: str) -> onnx.ModelProto:
    """A model that hands out what calls of formats make of x, four codes, and t, a table."""
    graph = onnx.helper.make_graph(
        [*nodes, onnx.helper.make_node("Relu", [result], ["y"])],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, ["n"])],
        [
            onnx.numpy_helper.from_array(np.zeros(size, np.uint8), name)
            for name, size in (("x", 4), ("t", 256))
        ],
    )
    imports = [onnx.helper.make_opsetid("", 14), onnx.helper.make_opsetid("onnxcompress", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def call(name: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(name, inputs, [output], domain="onnxcompress", **attributes)


def test_deep_nesting_and_repeated_reading_are_refused() -> None:
    names = ["x", *(f"v{place}" for place in range(3000))]
    deep = [call("Lookup", [a, "t"], b) for a, b in itertools.pairwise(names)]
    wide = [call("Bitmask", [a, a], b, shape=[4]) for a, b in itertools.pairwise(names[:14])]
    for nodes, result in ((deep, names[-1]), (wide, names[13])):
        for read in (unpack, ledger):
            with pytest.raises(CompressError, match="nested deeper than 16 functions, or read by"):
                read(load(calls(nodes, result)))


@pytest.mark.parametrize(
    "nodes",
    [
        [
            call("CSR", ["x", "x"], "p", n=1, columns=2**31 - 1),
            call("Scatter", ["p", "t", "t"], "r", shape=[2**31 - 1]),
        ],
        [call("CSR", ["x", "x"], "r", n=2**31 - 1, columns=1)],
        [call("Joint", ["x", "t", "t"], "r", n=4, shape=[2**31 - 1])],
        [call("Codebook", ["x", "t"], "r", shape=[2**31 - 1])],
        [call("Affine", ["x", "t", "t"], "r", shape=[2**31 - 1], grid=[1, 2**31 - 1, 1, 1], to=1)],
        [call("Huffman64", ["x", "x", "t", "t"], "r", blocks=[2**31 - 1], least=[0], first=[0])],
    ],
)
def test_small_files_of_huge_arrays_are_refused(nodes: list[onnx.NodeProto]) -> None:
    tracemalloc.start()
    with pytest.raises(CompressError):
        unpack(load(calls(nodes, "r")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22
