"""Every data type keeps its bytes."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from files import proto, weights, written
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxcompress.model import (
    load,
    save,
    to_proto,
)

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
