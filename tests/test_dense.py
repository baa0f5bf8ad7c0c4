"""The dense operators agree with onnxruntime, whatever their attributes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcompress.dense import OPERATORS
from onnxcompress.evaluate import run_node
from onnxcompress.windows import conv

many = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def both(op, inputs, attributes, opset=17):
    """Return what onnxruntime and we compute for one node."""
    names = [f"x{i}" for i in range(len(inputs))]
    proto = onnx.helper.make_node(op, names, ["y"], **attributes)
    types = [onnx.helper.np_dtype_to_tensor_dtype(x.dtype) for x in inputs]
    graph = onnx.helper.make_graph(
        [proto],
        "g",
        [onnx.helper.make_tensor_value_info(*each, None) for each in zip(names, types, strict=True)],
        [onnx.ValueInfoProto(name="y")],
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    expected = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return expected, run_node(ir.from_proto(model).graph[0], inputs, opset)[0]


def agree(op, inputs, attributes, opset=17):
    expected, found = both(op, inputs, attributes, opset)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def normal(draw, shape, dtype=np.float32):
    return np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype(dtype)


@st.composite
def windows(draw):
    """Draw spatial sizes and the attributes of a window operator, such that a window fits.

    With SAME there are no dilations (onnxruntime refuses them in Conv and forgets them in pools), and no
    strides above the kernel's size (the padding would be negative, and its operators disagree on that).
    """
    rank = draw(st.integers(1, 3))
    auto_pad = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    same = auto_pad.startswith("SAME")
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    dilations = [1 if same else draw(st.integers(1, 2)) for _ in kernel]
    sizes = [(k - 1) * d + 1 + draw(st.integers(0, 5)) for k, d in zip(kernel, dilations, strict=True)]
    attributes = {"kernel_shape": kernel, "auto_pad": auto_pad, "dilations": dilations}
    attributes["strides"] = [draw(st.integers(1, k if same else 3)) for k in kernel]
    if auto_pad == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    return sizes, attributes


@many
@given(st.data(), windows(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_conv_agrees_with_onnxruntime(data, window, group, inner, outer, biased):
    sizes, attributes = window
    x = normal(data.draw, (2, group * inner, *sizes))
    w = normal(data.draw, (group * outer, inner, *attributes["kernel_shape"]))
    b = [normal(data.draw, group * outer)] if biased else []
    agree("Conv", [x, w, *b], {**attributes, "group": group})


@many
@given(st.data(), windows(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_conv_transpose_agrees_with_onnxruntime(data, window, group, inner, outer, biased):
    sizes, attributes = window
    x = normal(data.draw, (2, group * inner, *sizes))
    w = normal(data.draw, (group * inner, outer, *attributes["kernel_shape"]))
    b = [normal(data.draw, group * outer)] if biased else []
    more = [data.draw(st.integers(0, s - 1)) for s in attributes["strides"]]
    agree("ConvTranspose", [x, w, *b], {**attributes, "group": group, "output_padding": more})


@many
@given(st.data(), windows(), st.integers(0, 1), st.sampled_from([np.float32, np.uint8, np.int8]))
def test_max_pool_agrees_with_onnxruntime(data, window, ceil, dtype):
    sizes, attributes = window
    x = (normal(data.draw, (2, 3, *sizes)) * 50).clip(-128, 127)
    agree("MaxPool", [x.astype(dtype)], {**attributes, "ceil_mode": ceil})


@many
@given(st.data(), windows(), st.integers(0, 1), st.integers(0, 1))
def test_average_pool_agrees_with_onnxruntime(data, window, ceil, counted):
    sizes, attributes = window
    x = normal(data.draw, (2, 3, *sizes))
    agree("AveragePool", [x], {**attributes, "ceil_mode": ceil, "count_include_pad": counted}, opset=19)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("shape", [[7, 9], [8, 11], [9, 10]])
def test_conv_transpose_gives_the_output_shape_asked_for(auto_pad, shape):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((1, 2, 4, 5), (2, 3, 3, 3)))
    agree("ConvTranspose", [x, w], {"strides": [2, 2], "output_shape": shape, "auto_pad": auto_pad})


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
def test_batch_normalization_uses_the_given_statistics_in_every_opset(opset):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    statistics = [rng.uniform(0.5, 2, 3).astype(np.float32) for _ in range(4)]
    agree("BatchNormalization", [x, *statistics], {"epsilon": 0.01}, opset)


AXES = [(opset, axis) for opset in (7, 11, 12, 13) for axis in (None, 0, 2)] + [(11, -1), (13, -1)]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(("opset", "axis"), AXES)
def test_softmax_takes_the_axes_that_its_opset_says(op, opset, axis):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    agree(op, [x], {} if axis is None else {"axis": axis}, opset)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn_sums_over_neighbouring_channels(size):
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 3)).astype(np.float32)
    agree("LRN", [x], {"size": size, "alpha": 0.1, "beta": 0.6, "bias": 2.0})


@pytest.mark.parametrize("spatial", [(5,), (4, 5), (2, 3, 4)], ids=str)
def test_global_max_pool_reduces_every_spatial_axis(spatial):
    agree("GlobalMaxPool", [np.random.default_rng(0).normal(size=(2, 3, *spatial)).astype(np.float32)], {})


def test_half_precision_is_accumulated_in_single():
    x = np.full((1, 4096, 1, 1), 1.0, np.float16)
    w = np.full((1, 4096, 1, 1), 1.0009765625, np.float16)
    assert conv(x, w).item() == np.float16(4100)


def test_a_weight_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit an input of 3 channels"):
        conv(np.zeros((1, 3, 4, 4)), np.zeros((2, 2, 1, 1)))


def test_a_kernel_larger_than_its_input_is_refused():
    with pytest.raises(ValueError, match="does not fit an input of"):
        conv(np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 3, 3)))


def test_every_operator_is_one_of_onnx():
    assert all(onnx.defs.has(op) for op in OPERATORS)


@many
@given(st.data())
def test_gathered_elements_agree_above_the_32_that_numpy_can_choose_from(data):
    rank = data.draw(st.integers(1, 3))
    axis = data.draw(st.integers(-rank, rank - 1))
    shape = data.draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank))
    shape[axis] = data.draw(st.integers(1, 50))
    taken = [data.draw(st.integers(1, size)) for size in shape]
    taken[axis] = data.draw(st.integers(1, 60))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    kind = data.draw(st.sampled_from([np.int32, np.int64]))
    indices = draw.integers(-shape[axis], shape[axis], taken).astype(kind)
    agree("GatherElements", [draw.normal(size=shape).astype(np.float32), indices], {"axis": axis})
