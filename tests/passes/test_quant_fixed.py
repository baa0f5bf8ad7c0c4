from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from models import model, run, snr
from rounded import calibrated, feeds, network, records, weight

from onnxcompress.base import Context
from onnxcompress.data import load_data
from onnxcompress.errors import UsageError
from onnxcompress.layers import constant
from onnxcompress.passes import Encode, QuantFixed
from onnxcompress.registry import runtimes
from onnxcompress.runtimes.interpreter import Interpreter


def scale_of(made: ir.Model, value: str) -> float:
    """Return the scale of the rounded activation that stands for `value`."""
    maker = next(node for node in made.graph if node.outputs[0].name == f"{value}_fixed")
    tensor = constant(maker.inputs[1])
    assert tensor is not None
    return float(tensor.numpy())


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_weights_are_whole_numbers_times_one_power_of_two(bits: int) -> None:
    made = network()
    found = records(QuantFixed(bits=bits, min_size=0), made)
    for layer in ("first", "depthwise", "middle", "turned", "last", "table"):
        before, after = weight(network(), layer), weight(made, layer)
        steps = np.unique(after.astype(np.float64))
        scale = 2.0 ** np.floor(np.log2(np.diff(steps).min()))
        steps /= scale
        np.testing.assert_array_equal(steps, np.rint(steps))
        assert steps.min() >= -(2 ** (bits - 1))
        assert steps.max() < 2 ** (bits - 1)
        assert found[layer].numbers["snr"] == pytest.approx(snr(before, after))
        assert found[layer].numbers["snr"] > 6 * bits - 12
    assert found["turned"].what == "rounded to fixed point"
    assert "activation rounded to fixed point" not in {record.what for record in found.values()}


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_activations_are_rounded_and_onnxruntime_computes_with_just_these(bits: int) -> None:
    made = network()
    found = records(QuantFixed(bits=16, activation_bits=bits, min_size=0), made, calibrated(made))
    added = Counter(node.op_type for node in made.graph) - Counter(node.op_type for node in network().graph)
    assert added == {"Mul": 12, "Round": 6, "Clip": 6}
    rounded = {name for name, record in found.items() if record.what == "activation rounded to fixed point"}
    assert rounded == {"x", "r1", "f", "m", "a", "s"}
    expected, result = (run(each, feeds())[0] for each in (network(), made))
    assert snr(expected, result) > 5 * bits - 14
    again = Interpreter().prepare(made).run(feeds())["y"]
    assert snr(again, result) > snr(expected, result) + 3  # sums may differ by a bit, and round elsewhere


def test_scales_are_powers_of_two_that_hold_what_was_seen_and_positive_numbers_need_no_sign() -> None:
    made = network()
    highest = np.abs(feeds()["x"]).max()
    QuantFixed(activation_bits=6, min_size=0).call(made, calibrated(made))
    assert scale_of(made, "x") == 2.0 ** np.ceil(np.log2(highest / 31))
    lows = {
        node.outputs[0].name: float(low.numpy())
        for node in made.graph
        if node.op_type == "Clip" and (low := constant(node.inputs[1])) is not None
    }
    assert lows["x_clip"] == lows["m_clip"] == -32
    assert lows["r1_clip"] == lows["s_clip"] == 0


def test_leaves_small_excluded_and_where_wanted_end_layers_alone_and_says_so() -> None:
    made = network()
    found = records(QuantFixed(exclude="tu.*", min_size=300, keep_ends=True), made, calibrated(made))
    assert {name: record.what for name, record in found.items() if not record.changed} == {
        "first": "a first or last layer",
        "last": "a first or last layer",
        "table": "too small",
        "depthwise": "too small",
        "turned": "excluded",
        "again": "tied to middle, done there",
    }
    assert {name for name, record in found.items() if record.what.startswith("activation")} == {"f", "m"}


@pytest.mark.parametrize("bits", [8, 6])
def test_a_second_run_is_idle(bits: int) -> None:
    made = network()
    each = QuantFixed(bits=bits, activation_bits=bits, min_size=0)
    assert each.call(made, calibrated(made)).modified
    nodes = len(made.graph)
    again = each.call(made, calibrated(made))
    assert not again.modified
    assert len(made.graph) == nodes
    assert {"input of first", "input of turned"} <= {record.layer for record in again.records}


def test_raises_the_operator_set_only_where_it_must() -> None:
    text = """<ir_version: 8, opset_import: ["": 9]>
    g (float[N,8,6,6] x, int64[N] at) => (float[N,4,6,6] y, int64[N] z) <float[4,8,1,1] w = {}> {
        y = Conv(x, w)
        z = Identity(at)
    }"""
    old = model(text)
    QuantFixed(min_size=0).call(old, Context())
    assert old.opset_imports[""] == 9
    QuantFixed(min_size=0).call(old, calibrated(old))
    assert old.opset_imports[""] == 11
    run(old, feeds(2))


def test_layers_of_branches_keep_their_activations_and_it_is_said() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w = {}, float[4,4] k = {}> {
        [one] a = MatMul(x, w)
        y = If (c) <
            then_branch = g1 () => (float[N,4] t) { [inside] t = MatMul(a, k) },
            else_branch = g2 () => (float[N,4] f) { f = Relu(a) }
        >
    }"""
    made = model(text)
    data = load_data({"x": np.ones((3, 4), np.float32), "c": np.array(True)}, made)
    context = Context(calibration=data, runtime=runtimes()["onnxruntime"].make())
    found = records(QuantFixed(min_size=0), made, context)
    assert found["inside"].changed
    assert found["input of inside"].what.startswith("inside a subgraph")


def test_static_activations_need_data() -> None:
    with pytest.raises(UsageError, match="quant-fixed: activations=static needs calibration data, none was"):
        QuantFixed(activations="static").call(network(), Context())


@pytest.mark.parametrize("bits", [3, 8])
def test_encode_stores_it_in_as_many_bits(bits: int) -> None:
    made = network()
    QuantFixed(bits=bits, min_size=500).call(made, Context())
    result = Encode(format="affine").call(made, Context())
    (record,) = (each for each in result.records if each.layer == "w3")
    assert record.changed
    assert float(record.numbers["stored"]) < 128 * 24 * bits / 8 + 200
    runnable = Interpreter(compressed=True).prepare(made)
    np.testing.assert_allclose(runnable.run(feeds(4))["y"], run(made, feeds(4))[0], rtol=1e-4, atol=1e-5)
    assert "turned (Gemm)" in runnable.counts
