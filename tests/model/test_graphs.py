"""What all models have: a signature, graphs, tensors, their sizes."""

import gc
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
import onnx_ir as ir
import pytest
from files import TWO_LAYERS, everywhere, proto, sparse_model, weights, written

from onnxcompress.errors import CompressError
from onnxcompress.model import (
    Port,
    check,
    clone,
    external_files,
    graphs,
    lazy,
    load,
    materialise,
    nonzeros,
    notes,
    save,
    signature,
    weight_bytes,
)


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
