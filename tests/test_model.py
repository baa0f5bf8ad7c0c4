"""Loading and saving: what must survive, what must be refused, what must not be touched."""

import gc
import math
import resource
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import onnx_ir as ir
import onnxruntime
import pytest
from hostile import CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import (
    ComputedTensor,
    MappedTensor,
    Port,
    SparseTensor,
    check,
    clone,
    convert_up,
    external_files,
    graphs,
    lazy,
    load,
    materialise,
    nonzeros,
    notes,
    opset,
    save,
    signature,
    to_proto,
    weight_bytes,
)
from onnxcompress.model.writing import evaluated

TWO_LAYERS = """
<ir_version: 8, opset_import: ["": 17]>
graph (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w = {0}, float[64] b = {0}>
{
    t = MatMul(x, w)
    u = Relu(t)
    v = MatMul(u, w)
    y = Add(v, b)
}
"""
EVERYWHERE = """
<ir_version: 8, opset_import: ["": 17, "own": 1]>
graph (float[N, 64] x, bool c) => (float[N, 512] y) <float[64, 512] w = {0}>
{
    k = Constant<value: tensor = float[1] {2}>()
    t = MatMul(x, w)
    u = If(c)<then_branch = then () => (float[N, 512] p) <float[512] s = {0}> { p = Add(t, s) },
              else_branch = else () => (float[N, 512] q) { q = Mul(t, k) }>
    y = own.shift(u)
}
<opset_import: ["": 17], domain: "own">
shift (a) => (z)
{
    m = Constant<value: tensor = float[1] {3}>()
    z = Sub(a, m)
}
"""


def proto(text: str, seed: int = 0, **values: np.ndarray) -> onnx.ModelProto:
    """Return the model of an ONNX `text`; initializers without values there get `values` or seeded ones."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        given = values.get(tensor.name, rng.standard_normal(list(tensor.dims)).astype(np.float32))
        tensor.CopyFrom(onnx.numpy_helper.from_array(given, tensor.name))
    return model


def everywhere() -> onnx.ModelProto:
    """Return a model with weights in its graph, a Constant, a subgraph and a function."""
    model = proto(EVERYWHERE)
    constant, _, choice, _ = model.graph.node
    branch = next(each.g for each in choice.attribute if each.name == "then_branch")
    rng = np.random.default_rng(1)
    for tensor in (constant.attribute[0].t, branch.initializer[0], model.functions[0].node[0].attribute[0].t):
        value = rng.standard_normal(512).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return model


def run(model: onnx.ModelProto | Path, **feeds: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of plain onnxruntime."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def written(folder: Path, model: onnx.ModelProto, name: str = "in.onnx", external: bool = False) -> Path:
    """Write `model` with the tools of onnx itself."""
    if external:
        onnx.save(
            model,
            folder / name,
            save_as_external_data=True,
            location=f"{name}.bin",
            size_threshold=0,
            convert_attribute=True,
        )
    else:
        onnx.save(model, folder / name)
    return folder / name


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# loading


def test_loads_the_same_from_a_path_a_text_path_a_proto_and_an_ir_model(tmp_path: Path) -> None:
    source = proto(TWO_LAYERS)
    path = written(tmp_path, source)
    for each in (path, str(path), source, ir.from_proto(source)):
        assert weights(to_proto(load(each))).keys() == {"w", "b"}
        np.testing.assert_array_equal(weights(to_proto(load(each)))["w"], weights(source)["w"])


def test_leaves_a_proto_it_was_given_as_it_was(tmp_path: Path) -> None:
    source = proto(TWO_LAYERS)
    before = source.SerializeToString()
    model = load(source)
    model.graph.initializers["w"].name = "renamed"
    model.graph.initializers["b"].const_value = ir.tensor(np.zeros(64, np.float32))
    save(model, tmp_path / "out.onnx")
    assert source.SerializeToString() == before
    assert weights(onnx.load(tmp_path / "out.onnx")).keys() == {"renamed", "b"}


def test_leaves_an_ir_model_it_was_given_as_it_was(tmp_path: Path) -> None:
    source = ir.from_proto(everywhere())
    before = ir.to_proto(source).SerializeToString()
    model = load(source)
    convert_up(model, 21)
    model.graph.remove(list(model.graph)[-1], safe=False)
    save(load(source), tmp_path / "out.onnx", external_data=True)
    assert ir.to_proto(source).SerializeToString() == before


def test_keeps_large_weights_in_the_files_they_are_in(tmp_path: Path) -> None:
    for external in (False, True):
        path = written(tmp_path, proto(TWO_LAYERS), f"{external}.onnx", external)
        tensor = load(path).graph.initializers["w"].const_value
        assert isinstance(tensor, MappedTensor)
        assert tensor.file.path == (tmp_path / "True.onnx.bin" if external else path)
        np.testing.assert_array_equal(tensor.numpy(), weights(proto(TWO_LAYERS))["w"])


def test_maps_what_other_tools_left_external_in_an_ir_model(tmp_path: Path) -> None:
    path = written(tmp_path, proto(TWO_LAYERS), external=True)
    model = load(ir.load(path))
    assert isinstance(model.graph.initializers["w"].const_value, MappedTensor)
    save(model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(
        weights(onnx.load(tmp_path / "out.onnx"))["w"], weights(proto(TWO_LAYERS))["w"]
    )


def test_refuses_a_proto_whose_weights_lie_elsewhere(tmp_path: Path) -> None:
    path = written(tmp_path, proto(TWO_LAYERS), external=True)
    with pytest.raises(CompressError, match="tensor 'w' has external data, expected the path"):
        load(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("out_external", [False, True])
def test_keeps_weights_wherever_they_are(tmp_path: Path, external: bool, out_external: bool) -> None:
    source = everywhere()
    feeds = {"x": np.ones((2, 64), np.float32), "c": np.array(True)}
    expected = run(source, **feeds)
    (tmp_path / "elsewhere").mkdir()
    save(
        load(written(tmp_path, source, external=external)),
        tmp_path / "elsewhere" / "out.onnx",
        external_data=out_external,
    )
    for path in tmp_path.glob("in.onnx*"):
        path.unlink()
    np.testing.assert_array_equal(run(tmp_path / "elsewhere" / "out.onnx", **feeds), expected)
    assert (tmp_path / "elsewhere" / "out.onnx.data").exists() == out_external


def test_makes_constants_of_initializers_that_are_all_listed_as_inputs_and_says_so() -> None:
    source = proto(TWO_LAYERS)
    for name, dims in (("w", [64, 64]), ("b", [64])):
        source.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    model = load(source)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert notes(model) == ["2 initializers that were listed as inputs are constants now"]


def test_keeps_a_few_initializers_listed_as_inputs_for_callers_to_override() -> None:
    source = proto(TWO_LAYERS)
    source.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [64]))
    model = load(source)
    assert [value.name for value in model.graph.inputs] == ["x", "b"]
    assert [port.name for port in signature(model).inputs] == ["x"]
    assert notes(model) == []
    feeds = {"x": np.ones((1, 64), np.float32), "b": np.full(64, 7, np.float32)}
    np.testing.assert_array_equal(run(to_proto(model), **feeds), run(source, **feeds))


def test_keeps_the_only_initializer_overridable_where_listing_it_was_a_choice() -> None:
    source = proto(TWO_LAYERS)
    source.graph.initializer.pop(0)
    source.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 64]))
    (kept,) = (each.name for each in source.graph.initializer)
    dims = list(source.graph.initializer[0].dims)
    source.graph.input.append(onnx.helper.make_tensor_value_info(kept, onnx.TensorProto.FLOAT, dims))
    model = load(source)
    assert [value.name for value in model.graph.inputs] == ["x", "w", kept]
    assert notes(model) == []
    source.ir_version = 3
    assert notes(load(source)) == ["1 initializers that were listed as inputs are constants now"]


def test_raises_an_old_ir_version_whose_initializers_had_to_be_inputs() -> None:
    source = proto(TWO_LAYERS)
    source.ir_version = 3
    source.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [64]))
    model = load(source)
    assert model.ir_version == 4
    assert len(notes(model)) == 1
    onnx.checker.check_model(to_proto(model))


def test_leaves_training_information_out_and_says_so() -> None:
    source = proto(TWO_LAYERS)
    source.training_info.add()
    assert notes(load(source)) == ["the training information was left out"]


@pytest.mark.parametrize("case", CASES)
def test_refuses_a_hostile_file_in_one_line(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = CASES[case](folder)
    before = {each: each.lstat().st_size for each in folder.iterdir()}
    with pytest.raises(CompressError) as raised:
        load(path)
    message = str(raised.value)
    assert raised.value.exit_code == 1
    assert message.startswith(f"{path.name}: ")
    assert message.isprintable()
    assert len(message) < 500
    assert {each: each.lstat().st_size for each in folder.iterdir()} == before


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match="is not a file"):
        load(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="Not a directory"):
        load(tmp_path / "file" / "model.onnx")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_is_read_or_refused_in_one_line(damage: list[tuple[int, int]]) -> None:
    data = bytearray(proto(EVERYWHERE).SerializeToString())
    for place, value in damage:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.onnx"
        path.write_bytes(data)
        try:
            load(path)
        except CompressError as error:
            assert str(error).isprintable()  # noqa: PT017


# sparse tensors


def sparse_proto(name: str, coordinates: bool) -> onnx.SparseTensorProto:
    """Return the [64, 64] tensor with 1.5 at (0, 3) and -2 at (63, 0)."""
    values = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [2], [1.5, -2])
    places, shape = ([0, 3, 63, 0], [2, 2]) if coordinates else ([3, 63 * 64], [2])
    indices = onnx.helper.make_tensor(f"{name}_i", onnx.TensorProto.INT64, shape, places)
    return onnx.helper.make_sparse_tensor(values, indices, [64, 64])


def sparse_model(coordinates: bool) -> onnx.ModelProto:
    """Return a model with sparse tensors as an initializer, a Constant, in a subgraph and in a function."""
    model = proto(
        """
        <ir_version: 8, opset_import: ["": 17, "own": 1]>
        graph (float[N, 64] x, bool c) => (float[N, 64] y)
        {
            k = Constant<value: tensor = float[1] {0}>()
            t = MatMul(x, w)
            u = If(c)<then_branch = then () => (float[N, 64] p) { p = MatMul(t, s) },
                      else_branch = else () => (float[N, 64] q) { q = MatMul(t, k) }>
            y = own.turn(u)
        }
        <opset_import: ["": 17], domain: "own">
        turn (a) => (z) { m = Constant<value: tensor = float[1] {0}>() z = MatMul(a, m) }
        """
    )
    model.graph.sparse_initializer.append(sparse_proto("w", coordinates))
    constant, _, choice, _ = model.graph.node
    branch = next(each.g for each in choice.attribute if each.name == "then_branch")
    branch.sparse_initializer.append(sparse_proto("s", coordinates))
    for node in (constant, model.functions[0].node[0]):
        node.attribute[0].CopyFrom(
            onnx.AttributeProto(
                name="sparse_value",
                type=onnx.AttributeProto.SPARSE_TENSOR,
                sparse_tensor=sparse_proto("", coordinates),
            )
        )
    return model


def sparse_parts(model: onnx.ModelProto) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
    """Return dims, values and indices of the four sparse tensors of `sparse_model`."""
    constant, _, choice, _ = model.graph.node
    branch = next(each.g for each in choice.attribute if each.name == "then_branch")
    found = [
        *model.graph.sparse_initializer,
        *branch.sparse_initializer,
        *(node.attribute[0].sparse_tensor for node in (constant, model.functions[0].node[0])),
    ]
    read = onnx.numpy_helper.to_array
    return [(list(each.dims), read(each.values), read(each.indices)) for each in found]


@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_keeps_sparse_tensors_as_they_were_stored(tmp_path: Path, coordinates: bool, external: bool) -> None:
    source = sparse_model(coordinates)
    save(load(written(tmp_path, source)), tmp_path / "out.onnx", external_data=external)
    result = onnx.load(tmp_path / "out.onnx")
    for before, after in zip(sparse_parts(source), sparse_parts(result), strict=True):
        for first, second in zip(before, after, strict=True):
            np.testing.assert_array_equal(first, second)
    assert result.graph.sparse_initializer[0].values.name == "w"
    feeds = {"x": np.ones((1, 64), np.float32), "c": np.array(True)}
    del source.functions[:], result.functions[:]  # which onnxruntime can't inline with a sparse Constant
    for model in (source, result):
        model.graph.node[-1].CopyFrom(onnx.helper.make_node("Relu", ["u"], ["y"]))
    np.testing.assert_array_equal(run(result, **feeds), run(source, **feeds))


def test_shows_sparse_tensors_as_dense_ones_everywhere() -> None:
    model = load(sparse_model(coordinates=False))
    expected = np.zeros((64, 64), np.float32)
    expected[0, 3], expected[63, 0] = 1.5, -2
    nodes = [node for graph in graphs(model) for node in graph if node.op_type == "Constant"]
    shown = [
        model.graph.initializers["w"].const_value,
        *(node.attributes["value"].as_tensor() for node in nodes),
    ]
    assert len(shown) == 3
    for tensor in shown:
        assert isinstance(tensor, SparseTensor)
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_writes_a_sparse_tensor_that_was_replaced_as_a_dense_one() -> None:
    model = load(sparse_model(coordinates=False))
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, lambda weight: weight * 2)
    result = to_proto(model)
    assert not result.graph.sparse_initializer
    assert weights(result)["w"][0, 3] == 3


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0),
        elements=st.sampled_from([0, 1, 2]),
    ),
    st.booleans(),
)
def test_a_sparse_tensor_is_the_dense_one(dense: np.ndarray, coordinates: bool) -> None:
    places = np.argwhere(dense) if coordinates else np.flatnonzero(dense)
    tensor = SparseTensor(ir.tensor(dense[dense != 0]), ir.tensor(places), dense.shape)
    np.testing.assert_array_equal(tensor.numpy(), dense)
    assert tensor.dtype == ir.DataType.FLOAT
    assert tensor.stored_bytes == np.count_nonzero(dense) * 4 + places.nbytes


# data types

NUMBERS = sorted(set(ir.DataType) - {ir.DataType.UNDEFINED, ir.DataType.STRING})


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(NUMBERS),
    shape=arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    large=st.booleans(),
    external=st.booleans(),
    seed=st.integers(0, 9),
)
def test_keeps_the_bytes_of_every_data_type(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    large: bool,
    external: bool,
    seed: int,
) -> None:
    shape = (*shape, 20_001) if large else shape
    size = math.ceil(math.prod(shape) * dtype.bitwidth / 8)
    stored = np.random.default_rng(seed).integers(0, 2 if dtype == ir.DataType.BOOL else 256, size, np.uint8)
    if dtype.bitwidth < 8 and size:
        stored[-1] = 0  # padding
    model = proto('<ir_version: 13, opset_import: ["": 26]> graph (float x) => (float y) { y = Identity(x) }')
    model.graph.initializer.add(name="t", data_type=dtype.value, dims=shape, raw_data=stored.tobytes())
    folder = tmp_path_factory.mktemp("types")
    save(load(written(folder, model)), folder / "out.onnx", external_data=external)
    result = onnx.load(folder / "out.onnx").graph.initializer[0]
    assert (result.data_type, tuple(result.dims)) == (dtype, shape)
    assert result.raw_data == stored.tobytes()
    array = load(folder / "out.onnx").graph.initializers["t"].const_value.numpy()
    assert (array.shape, array.dtype) == (shape, dtype.numpy())
    assert array.flags.aligned


def test_keeps_values_stored_in_typed_fields_and_texts() -> None:
    source = proto('<ir_version: 8, opset_import: ["": 17]> graph (float x) => (float y) { y = Identity(x) }')
    kinds = (
        np.float32,
        np.float64,
        np.int32,
        np.int64,
        np.uint32,
        np.uint64,
        np.int8,
        np.float16,
        np.complex64,
    )
    for kind in kinds:
        values = np.arange(6).reshape(2, 3).astype(kind)
        stored = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        source.graph.initializer.append(
            onnx.helper.make_tensor(np.dtype(kind).name, stored, [2, 3], values.ravel())
        )
    source.graph.initializer.append(
        onnx.helper.make_tensor("texts", onnx.TensorProto.STRING, [2], ["a", "b"])
    )
    result = weights(to_proto(load(source)))
    for kind in kinds:
        np.testing.assert_array_equal(result[np.dtype(kind).name], np.arange(6).reshape(2, 3).astype(kind))
    assert list(result["texts"]) == ["a", "b"]


# saving


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, external: bool) -> None:
    model = load(proto(TWO_LAYERS))
    (tmp_path / "out.onnx").write_bytes(b"old")
    with (
        files_limited_to(8000),
        pytest.raises(CompressError, match=r"out\.onnx: can't be written: File too large"),
    ):
        save(model, tmp_path / "out.onnx", external_data=external)
    assert left(tmp_path) == {"out.onnx"}
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("error", [CompressError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("external", [False, True])
def test_a_check_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException, external: bool
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")

    def refuse(path: Path) -> None:
        assert run(path, x=np.ones((1, 64), np.float32))
        assert path.name == "out.onnx"
        raise error

    with pytest.raises(type(error)):
        save(load(proto(TWO_LAYERS)), tmp_path / "out.onnx", external_data=external, check=refuse)
    assert left(tmp_path) == {"out.onnx"}
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interrupted_weight_leaves_nothing(tmp_path: Path, jobs: int) -> None:
    model = load(proto(TWO_LAYERS))

    def interrupt(weight: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "out.onnx", jobs=jobs)
    assert left(tmp_path) == set()


class Tally:
    """Bytes alive, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.most = max(self.most, self.now)


class Counted(ir.LazyTensor):
    """A tensor of `size` bytes that a `Tally` counts from when it is made until it is done with."""

    def __init__(self, size: int, tally: Tally) -> None:
        super().__init__(self.make, ir.DataType.UINT8, ir.Shape([size]), name=f"of {size}")
        self.tally = tally

    def make(self) -> ir.Tensor:
        array = np.zeros(self.nbytes, np.uint8)
        self.tally.add(self.nbytes)
        weakref.finalize(array, self.tally.add, -self.nbytes)
        time.sleep(0.002)
        return ir.Tensor(array)


@pytest.mark.parametrize(("jobs", "room", "least", "most"), [(1, 5000, 900, 900), (3, 2000, 1100, 2000)])
def test_weights_that_are_computed_ahead_keep_within_their_room(
    jobs: int, room: int, least: int, most: int
) -> None:
    tally, sizes = Tally(), [300, 900, 10, 500, 400, 700, 200, 600] * 5
    found = []
    for tensor, stored in evaluated([Counted(size, tally) for size in sizes], jobs, room):
        found.append((tensor.nbytes, len(stored)))
        time.sleep(0.001)
        del stored
    assert found == [(size, size) for size in sizes]
    assert least <= tally.most <= most
    assert tally.now == 0


def test_a_weight_larger_than_the_room_is_alone() -> None:
    tally = Tally()
    for tensor, stored in evaluated([Counted(size, tally) for size in (100, 5000, 100, 100)], 2, 1000):
        assert tensor.nbytes < 5000 or tally.now == 5000
        del stored
    assert tally.most == 5000


def test_a_weight_that_comes_after_another_waits_for_it() -> None:
    found: list[str] = []

    def slow() -> np.ndarray:
        time.sleep(0.05)
        found.append("first")
        return np.zeros(1, np.int8)

    def told() -> np.ndarray:
        found.append(threading.current_thread().name)
        return np.zeros(1, np.int8)

    first = ComputedTensor(slow, ir.DataType.INT8, [1], "first")
    second = ComputedTensor(told, ir.DataType.INT8, [1], "second", after=first)
    assert [tensor.name for tensor, _ in evaluated([first, second], 2)] == ["first", "second"]
    assert found == ["first", threading.current_thread().name]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (CompressError("w: holds no numbers"), "w: holds no numbers"),
        (MemoryError(), "w: there is too little memory to compute it"),
    ],
)
def test_what_a_worker_refuses_is_said_and_nothing_is_written(
    tmp_path: Path, jobs: int, raised: Exception, said: str
) -> None:
    def refuse(weight: np.ndarray) -> np.ndarray:
        raise raised

    model = load(proto(TWO_LAYERS))
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, refuse)
    with pytest.raises(CompressError, match=f"^{said}$"):
        save(model, tmp_path / "out.onnx", jobs=jobs)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("external", [False, True])
def test_tells_how_many_bytes_are_written(tmp_path: Path, external: bool) -> None:
    told: list[tuple[int, int | None, str]] = []
    save(
        load(proto(TWO_LAYERS)),
        tmp_path / "out.onnx",
        external_data=external,
        progress=lambda *step: told.append(step),
    )
    assert told == [(0, 16384, "writing"), (16384, 16384, "writing")]


def test_refuses_targets_that_are_no_files(tmp_path: Path) -> None:
    model = load(proto(TWO_LAYERS))
    with pytest.raises(UsageError, match=r"the folder .*missing does not exist"):
        save(model, tmp_path / "missing" / "out.onnx")
    with pytest.raises(UsageError, match="is not a file"):
        save(model, tmp_path)
    with pytest.raises(UsageError, match="is not a file"):
        save(model, "/dev/null")


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("jobs", [1, 4])
def test_replaces_the_file_the_model_is_read_from(tmp_path: Path, external: bool, jobs: int) -> None:
    path = tmp_path / "model.onnx"
    save(load(proto(TWO_LAYERS)), path, external_data=external)
    model = load(path)
    early = model.graph.initializers["w"].const_value.numpy()
    value = model.graph.initializers["b"]
    value.const_value = lazy(value.const_value, lambda weight: weight + 1)
    save(model, path, external_data=external, jobs=jobs)
    source = weights(proto(TWO_LAYERS))
    result = weights(onnx.load(path))
    np.testing.assert_array_equal(result["w"], source["w"])
    np.testing.assert_array_equal(result["b"], source["b"] + 1)
    for array in (early, model.graph.initializers["w"].const_value.numpy()):
        np.testing.assert_array_equal(array, source["w"])  # the model in memory reads its old file
    save(model, path, external_data=external)
    np.testing.assert_array_equal(weights(onnx.load(path))["w"], source["w"])
    assert left(tmp_path) == {"model.onnx", "model.onnx.data"} if external else {"model.onnx"}


def test_saving_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = load(sparse_model(coordinates=True))
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    before = to_proto(model).SerializeToString()
    save(model, tmp_path / "out.onnx", external_data=True)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == tensors
    assert to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("external", [False, True])
def test_writes_the_same_bytes_each_time_and_with_any_number_of_jobs(tmp_path: Path, external: bool) -> None:
    model = load(everywhere())
    for name, jobs in (("a", 1), ("b", 1), ("c", 3), ("d", 0)):
        (tmp_path / name).mkdir()
        save(model, tmp_path / name / "out.onnx", external_data=external, jobs=jobs)
    for name in ("b", "c", "d"):
        for path in (tmp_path / "a").iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


def test_names_a_tensor_in_two_places_as_each_place_does(tmp_path: Path) -> None:
    model = load(proto(TWO_LAYERS))
    shared = model.graph.initializers["w"].const_value
    model.graph.register_initializer(ir.Value(name="w2", const_value=shared))
    list(model.graph)[2].replace_input_with(1, model.graph.initializers["w2"])
    feeds = {"x": np.ones((1, 64), np.float32)}
    for external in (False, True):
        save(model, tmp_path / "out.onnx", external_data=external)
        np.testing.assert_array_equal(run(tmp_path / "out.onnx", **feeds), run(proto(TWO_LAYERS), **feeds))
    assert (tmp_path / "out.onnx.data").stat().st_size < 64 * 64 * 4 + 64


# what all models have


def test_the_signature_names_types_and_dimensions() -> None:
    found = signature(load(everywhere()))
    assert found.inputs == (Port("x", ir.DataType.FLOAT, ("N", 64)), Port("c", ir.DataType.BOOL, ()))
    assert found.outputs == (Port("y", ir.DataType.FLOAT, ("N", 512)),)
    assert found == signature(load(everywhere()))


def test_yields_every_graph_once() -> None:
    model = load(everywhere())
    found = list(graphs(model))
    assert [getattr(each, "name", None) for each in found][1:] == ["then", "else", "shift"]
    assert found[0] is model.graph
    assert len({id(each) for each in found}) == 4


def test_a_clone_shares_tensors_and_nothing_else() -> None:
    model = load(proto(TWO_LAYERS))
    notes(model).append("said")
    copy = clone(model)
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value
    assert notes(copy) == ["said"]
    copy.graph.initializers["w"].const_value = None
    copy.graph.remove(list(copy.graph)[-1], safe=False)
    notes(copy).append("later")
    assert len(model.graph) == 4
    assert model.graph.initializers["w"].const_value is not None
    assert notes(model) == ["said"]


def test_counts_bytes_without_reading_them(tmp_path: Path) -> None:
    model = load(sparse_model(coordinates=True))
    assert weight_bytes(model) == 4 * (2 * 4 + 4 * 8)
    model = load(proto(TWO_LAYERS))
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, pytest.fail)
    assert weight_bytes(model) == (64 * 64 + 64) * 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, bool])
def test_counts_what_is_not_zero(dtype: type) -> None:
    array = np.array([0, -0.0, 1, -1, np.nan, np.inf, 6e-8, 0] if dtype != np.int8 else [0, 1, -1], dtype)
    for each in (np.tile(array, (3, 2**17 + 1)).T, array, array[:0], array[1]):
        assert nonzeros(ir.tensor(each)) == np.count_nonzero(each)


def test_external_data_counts_where_it_is_used(tmp_path: Path) -> None:
    path = written(tmp_path, proto(TWO_LAYERS))
    assert external_files(load(path), path) == {}
    path = written(tmp_path, proto(TWO_LAYERS), "external.onnx", external=True)
    data = tmp_path / "external.onnx.bin"
    used = (64 * 64 + 64) * 4
    data.write_bytes(data.read_bytes() + bytes(1000))
    assert external_files(load(path), path) == {data: used}
    out = tmp_path / "out.onnx"
    assert save(load(path), out) == out.stat().st_size
    size = save(load(path), out, external_data=True)
    assert size == out.stat().st_size + (tmp_path / "out.onnx.data").stat().st_size


def test_a_lazy_tensor_is_made_when_it_is_read_and_each_time() -> None:
    calls = []

    def halve(weight: np.ndarray) -> np.ndarray:
        calls.append(weight)
        return weight / 2

    tensor = lazy(ir.tensor(np.ones((2, 3), np.float32), name="w"), halve)
    assert (tensor.name, tensor.dtype, tuple(tensor.shape.numpy()), calls) == (
        "w",
        ir.DataType.FLOAT,
        (2, 3),
        [],
    )
    np.testing.assert_array_equal(tensor.numpy(), np.full((2, 3), 0.5, np.float32))
    tensor.numpy()
    assert len(calls) == 2


def test_a_lazy_tensor_holds_its_transform_to_what_was_declared() -> None:
    source = ir.tensor(np.ones((2, 3), np.float32), name="w")
    assert lazy(source, lambda w: w.T.astype(np.int8), ir.DataType.INT8, (3, 2)).numpy().shape == (3, 2)
    for wrong in (lambda w: w.T, lambda w: w.astype(np.float64)):
        with pytest.raises(ValueError, match="tensor 'w' became"):
            lazy(source, wrong).numpy()


def test_arrays_stay_good_when_a_lazy_tensor_gives_its_source_back(tmp_path: Path) -> None:
    path = written(tmp_path, proto(TWO_LAYERS), external=True)
    source = load(path).graph.initializers["w"].const_value
    before = source.numpy()
    same = lazy(source, lambda weight: weight).numpy()
    part = lazy(source, lambda weight: weight[:1], shape=(1, 64)).numpy()
    source.release()
    expected = weights(proto(TWO_LAYERS))["w"]
    np.testing.assert_array_equal(before, expected)
    np.testing.assert_array_equal(same, expected)
    np.testing.assert_array_equal(part, expected[:1])


def test_lazy_tensors_of_small_types_are_written(tmp_path: Path) -> None:
    model = load(proto(TWO_LAYERS))
    source = ir.tensor(np.ones(64, np.float32))
    for dtype in (ir.DataType.BFLOAT16, ir.DataType.INT4, ir.DataType.UINT2):
        made = lazy(source, partial(np.ndarray.astype, dtype=dtype.numpy()), dtype)
        extra = ir.Value(name=dtype.name, const_value=made)
        model.graph.register_initializer(extra)
    model.ir_version = 13
    for external in (False, True):
        save(model, tmp_path / "out.onnx", external_data=external)
        again = load(tmp_path / "out.onnx")
        for dtype in (ir.DataType.BFLOAT16, ir.DataType.INT4, ir.DataType.UINT2):
            tensor = again.graph.initializers[dtype.name].const_value
            assert tensor.dtype == dtype
            np.testing.assert_array_equal(tensor.numpy().astype(np.float32), np.ones(64))


def test_a_model_that_is_gone_holds_no_file_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("asks Linux what is open")
    path = written(tmp_path, proto(TWO_LAYERS), external=True)
    tensors = [load(path).graph.initializers["w"].const_value for _ in range(3)]
    open_now = len(list(descriptors.iterdir()))
    tensors.clear()
    gc.collect()
    assert len(list(descriptors.iterdir())) <= open_now - 3


def test_materialising_evaluates_each_lazy_tensor_once_and_leaves_others(tmp_path: Path) -> None:
    model = load(written(tmp_path, proto(TWO_LAYERS)))
    calls = []
    mapped, small = (model.graph.initializers[name].const_value for name in ("w", "b"))
    made = lazy(small, lambda weight: calls.append(1) or weight * 2)
    model.graph.initializers["b"].const_value = made
    model.graph.register_initializer(ir.Value(name="b2", const_value=made))
    materialise(model)
    assert calls == [1]
    assert model.graph.initializers["w"].const_value is mapped
    result = model.graph.initializers["b"].const_value
    assert isinstance(result, ir.Tensor)
    assert result is model.graph.initializers["b2"].const_value
    np.testing.assert_array_equal(result.numpy(), small.numpy() * 2)


def test_checks_a_changed_model_without_reading_its_weights() -> None:
    model = load(proto(TWO_LAYERS))
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, pytest.fail)
    check(model)
    next(iter(model.graph)).replace_input_with(1, ir.Value(name="nowhere"))
    with pytest.raises(CompressError, match="nowhere"):
        check(model)


def test_reads_a_model_of_very_many_data_files_and_notices_when_one_is_replaced(tmp_path: Path) -> None:
    model = proto('<ir_version: 8, opset_import: ["": 17]> graph (float x) => (float y) { y = Identity(x) }')
    for number in range(100):
        tensor = onnx.numpy_helper.from_array(np.full(8, number, np.float32), f"t{number}")
        onnx.external_data_helper.set_external_data(tensor, f"t{number}")
        model.graph.initializer.append(tensor)
    onnx.external_data_helper.write_external_data_tensors(model, str(tmp_path))
    tensors = [value.const_value for value in load(written(tmp_path, model)).graph.initializers.values()]
    assert [tensor.numpy()[0] for tensor in tensors] == list(range(100))
    (tmp_path / "t99").write_bytes(bytes(64))
    with pytest.raises(CompressError, match="t99: was replaced"):
        tensors[99].numpy()
    (tmp_path / "t98").unlink()
    with pytest.raises(CompressError, match="t98: can't be read any more"):
        tensors[98].numpy()


# operator sets

OLD = """
<ir_version: 6, opset_import: ["": 11]>
graph (float[N, 64] x, bool c) => (float[N, 64] y) <float[64, 64] w = {0}>
{
    t = MatMul(x, w)
    s = Unsqueeze<axes = [0]>(t)
    u = If(c)<then_branch = then () => (float[N, 64] p) { p = Squeeze<axes = [0]>(s) },
              else_branch = else () => (float[N, 64] q) { q = Relu(t) }>
    y = Softmax<axis = 1>(u)
}
"""


def test_raises_the_operator_set_in_subgraphs_too_and_says_so() -> None:
    source = proto(OLD)
    model = load(source)
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, pytest.fail)  # large weights aren't read for it
    before = signature(model)
    assert convert_up(model, 17)
    value = model.graph.initializers["w"]
    value.const_value = load(source).graph.initializers["w"].const_value
    assert opset(model) == 17
    assert model.ir_version == 8
    assert signature(model) == before
    feeds = {"x": np.ones((2, 64), np.float32), "c": np.array(True)}
    np.testing.assert_allclose(run(to_proto(model), **feeds), run(source, **feeds), rtol=1e-6)


def test_leaves_a_model_with_a_newer_operator_set_alone() -> None:
    model = load(proto(TWO_LAYERS))
    assert not convert_up(model, 17)
    assert not convert_up(model, 13)
    assert opset(model) == 17
    assert notes(model) == []


def test_raising_the_operator_set_keeps_sparse_tensors_and_metadata() -> None:
    source = sparse_model(coordinates=True)
    source.graph.node[1].metadata_props.add(key="made by", value="hand")
    model = load(source)
    convert_up(model, 21)
    result = to_proto(model)
    for before, after in zip(sparse_parts(source), sparse_parts(result), strict=True):
        np.testing.assert_array_equal(before[1], after[1])
    assert opset(model) == result.functions[0].opset_import[0].version == 21
    assert result.graph.node[1].metadata_props[0].value == "hand"


SOFTMAX = """
<ir_version: 8, opset_import: ["": 11, "own": 1]>
graph (float[N, 64] x) => (float[N, 64] y) { y = own.soft<axis = 1>(x) }
<opset_import: ["": 11], domain: "own">
soft AXIS (a) => (z)
{
    k = Constant<value: tensor = float[1] {3}>()
    m = Mul(a, k)
    z = Softmax<axis: int = VALUE>(m)
}
"""


def test_raises_the_operator_set_of_functions() -> None:
    source = proto(SOFTMAX.replace("AXIS", "").replace("<axis = 1>", "").replace("VALUE", "1"))
    model = load(source)
    assert convert_up(model, 13)
    result = to_proto(model)
    assert result.functions[0].opset_import[0].version == 13
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)}
    np.testing.assert_allclose(run(result, **feeds), run(source, **feeds), rtol=1e-6)


def test_names_the_function_that_can_not_be_converted() -> None:
    model = load(proto(SOFTMAX.replace("AXIS", "<axis>").replace("VALUE", "@axis")))
    with pytest.raises(CompressError, match=r"function own\.soft: operator set 11 can't be raised"):
        convert_up(model, 13)
    assert opset(model) == 11
    assert notes(model) == []


def test_says_what_the_converter_can_not_convert_and_leaves_the_model() -> None:
    source = proto(OLD)
    source.graph.node.append(onnx.helper.make_node("Foo", ["y"], ["z"], domain="com.other"))
    source.opset_import.add(domain="com.other", version=1)
    model = load(source)
    model.graph.append(ir.Node("", "Gone", [model.graph.inputs[0]]))
    before = to_proto(model).SerializeToString()
    with pytest.raises(CompressError, match="operator set 11 can't be raised to 17"):
        convert_up(model, 17)
    assert to_proto(model).SerializeToString() == before
