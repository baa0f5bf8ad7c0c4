import numpy as np
import pytest
from models import model, run, snr
from rounded import LEFT, calibrated, feeds, left, network, quality, records, weight

from onnxcompress.base import Context
from onnxcompress.errors import CompressError
from onnxcompress.passes import Binarise, Encode, Ternarise
from onnxcompress.runtimes.interpreter import Interpreter


def test_each_output_channel_holds_the_mean_of_its_magnitudes_with_the_signs_it_had() -> None:
    made = network()
    found = records(Binarise(min_size=0), made)
    for layer, axis in (("middle", 0), ("turned", 1)):
        before, after = weight(network(), layer), weight(made, layer)
        np.testing.assert_array_equal(np.sign(after), np.sign(before))
        means = np.abs(before).mean(axis=axis, keepdims=True)
        np.testing.assert_allclose(np.abs(after), np.broadcast_to(means, after.shape), rtol=1e-6)
        assert (found[layer].changed, found[layer].what) == (True, "binarised")
        assert found[layer].numbers["snr"] == pytest.approx(snr(before, after))
    records(Binarise(min_size=0, per_channel=False), made := network())
    assert len(np.unique(weight(made, "turned"))) == 2


def test_leaves_first_last_small_and_excluded_layers_alone_and_says_so() -> None:
    assert left(Binarise(exclude="tu.*", min_size=300), network()) == LEFT
    assert list(left(Binarise(keep_ends=False, min_size=0), network())) == ["again"]


@pytest.mark.parametrize("importance", ["equal", "inputs"])
def test_a_second_run_is_idle(importance: str) -> None:
    made = network()
    each = Binarise(min_size=0, keep_ends=False, importance=importance)
    assert each.call(made, calibrated(made)).modified
    assert not each.call(made, calibrated(made)).modified


def test_ternary_weights_are_kept_and_binary_ones_are_ternary() -> None:
    made = network()
    Binarise(min_size=0).call(made, Context())
    assert not Ternarise(min_size=0).call(made, Context()).modified


def test_outputs_are_nearer_where_errors_of_outputs_are_made_least() -> None:
    found = {
        importance: quality(Binarise(importance=importance, min_size=0, exclude="depthwise|middle"))
        for importance in ("equal", "inputs")
    }
    assert found["inputs"] > found["equal"] + 3


def test_refuses_importance_without_data() -> None:
    with pytest.raises(CompressError, match="importance=inputs needs calibration data, none was given"):
        Binarise(importance="inputs", min_size=0).call(network(), Context())


def test_encode_stores_it_in_one_bit_and_the_interpreter_multiplies_by_magnitudes_only() -> None:
    made = network()
    Binarise(min_size=500).call(made, Context())
    result = Encode(format="binary").call(made, Context())
    (record,) = (each for each in result.records if each.layer == "w3")
    assert record.changed
    assert float(record.numbers["stored"]) < 128 * 24 / 8 + 128 * 4 + 150  # bits, magnitudes, names
    runnable = Interpreter(compressed=True).prepare(made)
    found = runnable.run(feeds(4))
    np.testing.assert_allclose(found["y"], run(made, feeds(4))[0], rtol=1e-4, atol=1e-5)
    counts = runnable.counts["turned (Gemm)"]
    assert counts.multiply_adds == 4 * 128
    assert counts.adds == 4 * 128 * 24


def expected_output(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return what a product of signs makes, scaled by the mean magnitude of what isn't zero in each row."""
    magnitude = np.abs(x).sum(axis=1, keepdims=True) / np.maximum((x != 0).sum(axis=1, keepdims=True), 1)
    return (np.sign(x) @ weight) * magnitude + bias


def test_signs_are_multiplied_and_scaled_by_the_magnitude_of_each_row() -> None:
    text = """g (float[N,6] x) => (float[N,4] y, float[N,4] z)
    <float[4,6] w = {}, float[4] b = {1, 2, 3, 4}, float[6,4] v = {}> {
        [gemm] y = Gemm<transB = 1, beta = 0.5>(x, w, b)
        [product] z = MatMul(x, v)
    }"""
    made = model(text)
    weights = weight(made, "gemm"), weight(made, "product")
    found = records(Binarise(activations="sign", keep_ends=False, min_size=0), made)
    assert found["input of gemm"].what == found["input of product"].what == "activation binarised"
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    x[1, :3], x[2] = 0, 0
    binary = [
        np.sign(each) * np.abs(each).mean(axis=1 - axis, keepdims=True) for axis, each in enumerate(weights)
    ]
    y, z = run(made, {"x": x})
    np.testing.assert_allclose(y, expected_output(x, binary[0].T, np.arange(1, 5) / 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, expected_output(x, binary[1], np.zeros(4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "window", ["pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER", strides = [2,1]', "dilations = [2,2]"]
)
def test_convolutions_of_one_magnitude_by_one_sign_stay_what_they_are(window: str) -> None:
    text = """g (float[N,3,7,7] x) => (float[N,4,H,W] y) <float[4,3,3,3] w = {}, float[4] b = {}> {
        [conv] y = Conv<WINDOW>(x, w, b)
    }"""
    made = model(text.replace("WINDOW", window))
    Binarise(keep_ends=False, min_size=0).call(made, Context())
    signs = np.sign(np.random.default_rng(0).standard_normal((2, 3, 7, 7)))
    feed = {"x": (3 * signs).astype(np.float32)}
    expected = run(made, feed)[0]
    Binarise(activations="sign", keep_ends=False, min_size=0).call(made, Context())
    assert "Sign" in {node.op_type for node in made.graph}
    np.testing.assert_allclose(run(made, feed)[0], expected, rtol=1e-5, atol=1e-5)
    feed["x"] *= np.array([1, 2], np.float32)[:, None, None, None]
    bias = run(made, {"x": np.zeros_like(feed["x"])})[0][1]
    np.testing.assert_allclose(run(made, feed)[0][1] - bias, 2 * (expected[1] - bias), rtol=1e-5, atol=1e-5)


def test_inputs_that_have_no_signs_to_multiply_are_left_and_it_is_said() -> None:
    each = Binarise(activations="sign", min_size=0)
    made = network()
    found = records(each, made)
    assert found["input of depthwise"].what == "Conv of 24 groups, expected a Conv of one, Gemm or MatMul"
    assert {"input of middle", "input of again", "input of turned"} <= {
        name for name, record in found.items() if record.changed
    }
    nodes = [node.op_type for node in made.graph]
    again = each.call(made, Context())
    assert not again.modified
    assert [node.op_type for node in made.graph] == nodes
    assert {"binary already", "magnitudes, which have one sign"} <= {record.what for record in again.records}
    assert np.isfinite(run(made, feeds())[0]).all()


def test_signs_of_an_old_model_are_multiplied_without_the_bias_that_its_gemm_needs() -> None:
    made = model(
        """<ir_version: 4, opset_import: ["": 9]> net (float[N, 8] x) => (float[N, 4] y)
        <float[8, 4] w = {}, float[4] b = {}> { [one] y = Gemm(x, w, b) }"""
    )
    found = records(Binarise(activations="sign", keep_ends=False, min_size=0), made)
    assert found["input of one"].changed
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    bias = made.graph.initializers["one_bias"].const_value
    assert bias is not None
    product = np.sign(x) @ weight(made, "one") * np.abs(x).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(run(made, {"x": x})[0], product + bias.numpy(), rtol=1e-5, atol=1e-6)
