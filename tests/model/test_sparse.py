"""Sparse tensors: kept as they were stored, dense to all who look."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from files import run, sparse_model, sparse_parts, weights, written
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxcompress.model import (
    SparseTensor,
    graphs,
    lazy,
    load,
    save,
    to_proto,
)


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
