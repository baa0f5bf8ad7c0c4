from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context
from onnxcompress.data import load_data
from onnxcompress.layers import layers
from onnxcompress.model import clone
from onnxcompress.passes import Quant
from onnxcompress.placement import TABLE, How, Placement, place
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

WEIGHTS = "float[8, 4, 3, 3] w = {}, float[8] b = {}, float[8, 8, 1, 1] v = {}, float[8] d = {}"

# Each stands between two convolutions: c is what the first one makes, m what the second one reads.
BETWEEN = {
    "Add": "e = Conv<pads=[1,1,1,1]>(x, w, b) m = Add(c, e)",
    "AveragePool": "m = AveragePool<kernel_shape=[2, 2]>(c)",
    "Clip": "m = Clip(c, low, high)",
    "Concat": "e = Conv<pads=[1,1,1,1]>(x, w, b) m = Concat<axis=2>(c, e)",
    "DepthToSpace": "f = DepthToSpace<blocksize=2>(c) m = Reshape(f, flat)",
    "Flatten": "f = Flatten(c) m = Reshape(f, back)",
    "Gather": "m = Gather<axis=1>(c, order)",
    "GlobalAveragePool": "m = GlobalAveragePool(c)",
    "Identity": "m = Identity(c)",
    "LeakyRelu": "m = LeakyRelu(c)",
    "MaxPool": "m = MaxPool<kernel_shape=[2, 2]>(c)",
    "Mul": "e = Conv<pads=[1,1,1,1]>(x, w, b) m = Mul(c, e)",
    "Pad": "m = Pad(c, pads)",
    "Relu": "m = Relu(c)",
    "Reshape": "m = Reshape(c, flat)",
    "Resize": 'm = Resize<mode="nearest">(c, , scales)',
    "Sigmoid": "m = Sigmoid(c)",
    "Slice": "m = Slice(c, begin, end)",
    "Split": "f, g = Split<axis=1>(c) m = Concat<axis=1>(g, f)",
    "Squeeze": "f = Unsqueeze(c, axes) m = Squeeze(f, axes)",
    "Transpose": "m = Transpose<perm=[0, 1, 3, 2]>(c)",
    "Unsqueeze": "f = Unsqueeze(c, axes) m = Squeeze(f, axes)",
}
CONSTANTS = """float low = {0}, float high = {6},
    int64[4] flat = {1, 8, 1, -1}, int64[4] back = {1, 8, 10, 10},
    int64[8] order = {7, 6, 5, 4, 3, 2, 1, 0}, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1},
    float[4] scales = {1, 1, 2, 2}, int64[4] begin = {0, 0, 2, 2}, int64[4] end = {1, 8, 9, 9},
    int64[1] axes = {0}"""


def network(between: str) -> ir.Model:
    return models.model(
        f"""net (float[1, 4, 10, 10] x) => (float[1, 8, H, W] y) <{WEIGHTS}, {CONSTANTS}>
        {{
            c = Conv<pads=[1, 1, 1, 1]>(x, w, b)
            {between}
            y = Conv(m, v, d)
        }}"""
    )


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(5)
    return [{"x": draw.normal(0.2, 1, (1, 4, 10, 10)).astype(np.float32)} for _ in range(count)]


def quantized(made: ir.Model, **options: object) -> ir.Model:
    made = clone(made)
    context = Context(calibration=load_data(feeds(), made), runtime=OnnxRuntime())
    Quant(gate="off", reduce_range="off", **options).call(made, context)  # type: ignore[arg-type]
    return made


def placement(made: ir.Model) -> Placement:
    return place(made.graph, {layer.node: layer for layer in layers(made, Context())})


def named(made: ir.Model, name: str) -> ir.Value:
    return next(value for node in made.graph for value in node.outputs if value.name == name)


def test_every_operator_of_the_table_but_layers_is_tried() -> None:
    assert {op for op, (how, _) in TABLE.items() if how is not How.WEIGHTED} == set(BETWEEN)


@pytest.mark.parametrize("op", BETWEEN)
def test_onnxruntime_leaves_no_floats_between_two_convolutions(op: str, tmp_path: Path) -> None:
    made = quantized(network(BETWEEN[op]))
    ran = models.operators(made, tmp_path)
    assert ran["Conv"] + ran["FusedConv"] == 0
    assert ran["QLinearConv"] >= 2
    assert (ran["QuantizeLinear"], ran["DequantizeLinear"]) == (1, 1)  # the input's and the output's


@pytest.mark.parametrize("op", BETWEEN)
def test_outputs_stay_close(op: str) -> None:
    made = network(BETWEEN[op])
    expected = models.run(made, feeds()[0])[0]
    assert models.snr(expected, models.run(quantized(made), feeds()[0])[0]) > 25


def test_values_that_are_only_moved_share_a_scale_and_are_observed_where_they_end_up() -> None:
    made = network("f = MaxPool<kernel_shape=[2, 2]>(c) g = Transpose<perm=[0, 1, 3, 2]>(f) m = Identity(g)")
    found = placement(made)
    assert len({found.group(named(made, name)) for name in ("c", "f", "g", "m")}) == 1
    assert [value.name for value in found.observed()] == ["x", "m", "y"]


def test_a_value_that_is_also_read_as_it_is_is_observed_too() -> None:
    made = network("f = MaxPool<kernel_shape=[1, 1]>(c) m = Add(f, c)")
    assert [value.name for value in placement(made).observed()] == ["x", "c", "f", "m", "y"]


def test_the_range_of_its_output_does_the_work_of_a_relu_and_of_a_clip() -> None:
    for between in (BETWEEN["Relu"], BETWEEN["Clip"], "f = Clip(c, low, high) m = Relu(f)"):
        made = network(between)
        found = placement(made)
        assert {node.op_type for node in found.bounded} <= {"Relu", "Clip"}
        assert [value.name for value in found.observed()] == ["x", "m", "y"]
        assert [node.op_type for node in quantized(made).graph if node.op_type in ("Relu", "Clip")] == []


@pytest.mark.parametrize(
    "between",
    [
        "p = MaxPool<kernel_shape=[2, 2]>(c) m = Relu(p)",
        "p = Pad(c, pads) t = Transpose<perm=[0, 1, 3, 2]>(p) m = Clip(t, low, high)",
        "a = AveragePool<kernel_shape=[1, 1]>(c) e = Conv<pads=[1,1,1,1]>(x, w, b) "
        "f = Concat<axis=2>(a, e) r = Relu(f) m = Clip(r, low, high)",
    ],
)
def test_it_does_so_where_numbers_are_moved_before(between: str, tmp_path: Path) -> None:
    made = network(between)
    found = placement(made)
    assert {value.name for value in found.observed()} - {"c"} == {"x", "m", "y"}
    after = quantized(made)
    ran = models.operators(after, tmp_path)
    assert ran["Relu"] + ran["Clip"] + ran["Conv"] + ran["FusedConv"] == 0
    assert (ran["QuantizeLinear"], ran["DequantizeLinear"]) == (1, 1)
    expected = models.run(made, feeds()[0])[0]
    assert models.snr(expected, models.run(after, feeds()[0])[0]) > 25


@pytest.mark.parametrize(
    "between",
    [
        "r = Relu(c) m = Add(r, c)",  # its input is read elsewhere
        "p = MaxPool<kernel_shape=[1, 1]>(c) r = Relu(p) m = Add(r, c)",  # what it is moved from is
        "f, g = Split<axis=1>(c) r = Relu(f) m = Concat<axis=1>(r, g)",
        "m = Clip(c, high, high)",  # does not hold zero
        "k = ReduceMax<keepdims=0>(c) m = Clip(c, low, k)",  # bounds that are computed
    ],
)
def test_other_bounds_stay_operators(between: str) -> None:
    made = network(between)
    assert placement(made).bounded == []
    expected = models.run(made, feeds()[0])[0]
    assert models.snr(expected, models.run(quantized(made), feeds()[0])[0]) > 20


def test_a_relu_output_beside_negative_numbers_keeps_its_scale_in_a_concat() -> None:
    made = network("r = Relu(c) e = Conv<pads=[1,1,1,1]>(x, w, b) m = Concat<axis=2>(r, e)")
    found = placement(made)
    assert found.group(named(made, "r")) is not found.group(named(made, "e"))
    assert [node.op_type for node in found.bounded] == ["Relu"]
    expected = models.run(made, feeds()[0])[0]
    assert models.snr(expected, models.run(quantized(made), feeds()[0])[0]) > 25


def test_operators_that_no_integer_operator_feeds_stay() -> None:
    made = models.model(
        f"""net (float[1, 4, 10, 10] x) => (float[1, 8, H, W] y) <{WEIGHTS}>
        {{
            a = Add(x, x)
            p = MaxPool<kernel_shape=[2, 2]>(a)
            y = Conv(p, w, b)
        }}"""
    )
    assert [node.op_type for node in placement(made).nodes] == ["Conv"]
    assert [value.name for value in placement(made).observed()] == ["p", "y"]


def test_float_operators_that_integer_operators_feed_are_named() -> None:
    made = network("m = Softplus(c)")
    assert [node.op_type for node in placement(made).gaps()] == ["Softplus"]


@pytest.mark.parametrize("joined", ["Add", "Concat<axis=1>"])
def test_what_also_reads_a_layer_that_stays_float_stays_and_all_behind_it(joined: str) -> None:
    made = models.model(
        f"""net (float[1, 4, 10, 10] x) => (float[1, C, H, W] y) <{WEIGHTS}>
        {{
            c = Conv<pads=[1, 1, 1, 1]>(x, w, b)
            [floats] e = Conv<pads=[1, 1, 1, 1]>(x, w, b)
            r = Relu(e)
            a = {joined}(c, r)
            p = MaxPool<kernel_shape=[3, 3]>(a)
            q = Conv(x, w, b)
            y = {joined}(q, p)
        }}"""
    )
    weighted = {each.node: each for each in layers(made, Context()) if each.name != "floats"}
    found = place(made.graph, weighted)
    assert [node.op_type for node in found.nodes] == ["Conv", "Conv"]
    assert [node.op_type for node in found.gaps()] == [joined.split("<")[0]] * 2


def test_constants_that_are_added_become_integers_too(tmp_path: Path) -> None:
    made = network("f = Mul(c, high) m = Add(low, f)")
    expected = models.run(made, feeds()[0])[0]
    after = quantized(made)
    assert models.operators(after, tmp_path)["DequantizeLinear"] == 1
    assert models.snr(expected, models.run(after, feeds()[0])[0]) > 25


@pytest.mark.parametrize(
    ("body", "kernel"),
    [
        ("h = Gemm(x, w, b) y = Gemm<transB=1>(h, v)", "QGemm"),
        ("h = Gemm<alpha=0.5, beta=2.0>(x, w, b) r = Relu(h) y = Gemm<transB=1>(r, v)", "QGemm"),
        ("h = Gemm(x, w, b) r = Relu(h) e = Exp(r) y = Gemm<transB=1>(e, v)", "QGemm"),
        ("h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = Gemm<transB=1>(r, v)", "QGemm"),
    ],
)
def test_matrix_products_run_on_integers(body: str, kernel: str, tmp_path: Path) -> None:
    made = models.model(
        f"""net (float[N, 16] x) => (float[N, 4] y)
        <float[16, 8] w = {{}}, float[8] b = {{}}, float[4, 8] v = {{}}> {{ {body} }}"""
    )
    draw = np.random.default_rng(6)
    samples = [{"x": draw.normal(0, 1, (3, 16)).astype(np.float32)} for _ in range(4)]
    after = clone(made)
    Quant(gate="off", reduce_range="off").call(
        after, Context(calibration=load_data(samples, made), runtime=OnnxRuntime())
    )
    ran = models.operators(after, tmp_path)
    assert ran[kernel] == 2
    assert ran["Gemm"] + ran["FusedGemm"] + ran["MatMul"] == 0
    assert models.snr(models.run(made, samples[0])[0], models.run(after, samples[0])[0]) > 25


@pytest.mark.parametrize("dims", ["2, 3, 16", "N, 3, 16"])
def test_stacks_of_products_run_on_integers_and_an_addition_behind_them_does_not_hinder(
    dims: str, tmp_path: Path
) -> None:
    made = models.model(
        f"""net (float[{dims}] x) => (float[A, B, C] y) <float[16, 8] w = {{}}, float[8] b = {{}}>
        {{ h = MatMul(x, w) a = Add(h, b) y = Tanh(a) }}"""
    )
    samples = [{"x": np.random.default_rng(7).normal(0, 1, (2, 3, 16)).astype(np.float32)}]
    after = clone(made)
    Quant(gate="off", reduce_range="off").call(
        after, Context(calibration=load_data(samples, made), runtime=OnnxRuntime())
    )
    ran = models.operators(after, tmp_path)
    assert ran["QLinearMatMul"] + ran["MatMulIntegerToFloat"] == 1
    assert ran["Gemm"] + ran["MatMul"] == 0
    assert models.snr(models.run(made, samples[0])[0], models.run(after, samples[0])[0]) > 25


def test_what_nothing_reads_does_no_harm() -> None:
    made = network(
        "dead = Conv<pads=[1,1,1,1]>(x, w, b) gone = MaxPool<kernel_shape=[2, 2]>(c) m = Identity(c)"
    )
    expected = models.run(made, feeds()[0])[0]
    assert models.snr(expected, models.run(quantized(made), feeds()[0])[0]) > 25
