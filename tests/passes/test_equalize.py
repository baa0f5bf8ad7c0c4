from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.model import clone, load
from onnxcompress.passes import Equalize
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
NETWORK = """net (float[N, 4, 8, 8] x) => (float[N, 10] y)
<float[16, 4, 3, 3] w1 = {}, float[16] b1 = {}, float[16, 1, 3, 3] w2 = {}, float[16] b2 = {},
 float[16, 16, 1, 1] w3 = {}, float[16] b3 = {}, float[16] slope = {}, float[256, 10] w4 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    a = Relu(c)
    [depthwise] d = Conv<group = 16, pads = [1, 1, 1, 1]>(a, w2, b2)
    axes = Constant<value_ints = [1, 2]>()
    sloped = Unsqueeze(slope, axes)
    e = LeakyRelu(d)
    [pointwise] f = Conv(e, w3, b3)
    g = Add(f, d)
    h = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(g)
    i = Flatten(h)
    [last] y = MatMul(i, w4)
}"""


def feeds(count: int = 2) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(3)
    return [{"x": draw.standard_normal((2, 4, 8, 8)).astype(np.float32)} for _ in range(count)]


def calibrated(made: ir.Model) -> Context:
    return Context(calibration=load_data(feeds(), made), runtime=OnnxRuntime())


def run(made: ir.Model, context: Context | None = None, **options: str) -> dict[str, Record]:
    result = Equalize(**options).call(made, context or Context())
    return {record.layer: record for record in result.records}


def uneven(text: str = NETWORK, weight: str = "w1") -> ir.Model:
    """The model of `text` with channels of `weight` of very different sizes."""
    made = models.model(text)
    value = made.graph.initializers[weight]
    old = value.const_value.numpy()  # type: ignore[union-attr]
    sizes = np.geomspace(0.05, 20, len(old)).reshape(-1, *[1] * (old.ndim - 1))
    value.const_value = ir.tensor((old * sizes).astype(np.float32), name=weight)
    return made


def weight(made: ir.Model, name: str) -> np.ndarray:
    found: np.ndarray = made.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
    return found


def outputs(
    made: ir.Model, feed: dict[str, np.ndarray], names: list[str] | None = None
) -> dict[str, np.ndarray]:
    return OnnxRuntime().prepare(made, outputs=names).run(feed)


@pytest.mark.parametrize("data", [False, True])
def test_channels_get_even_ranges_and_outputs_stay(data: bool) -> None:
    given = uneven()
    made = clone(given)
    records = run(made, calibrated(made) if data else None)
    assert records["first"].what == records["pointwise"].what == "outputs equalized"
    assert records["first"].numbers["factor"] > 2
    before, after = (outputs(each, feeds()[0], ["d", "y"]) for each in (given, made))
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-4, atol=1e-4)
    tops = [np.abs(each["d"]).max(axis=(0, 2, 3)) for each in (before, after)]
    assert np.std(np.log(tops[1])) < 0.9 * np.std(np.log(tops[0]))


def test_a_second_run_finds_less_to_do() -> None:
    made = uneven()
    first, again = (
        max([1.0, *(record.numbers["factor"] for record in run(made).values() if record.changed)])  # type: ignore[type-var]
        for _ in range(2)
    )
    assert again - 1 < (first - 1) / 2


def test_channels_that_are_even_stay() -> None:
    made = models.model(
        "net (float[N, 4] x) => (float[N, 3] y) <float[4, 8] a = {}, float[8, 3] b = {}>"
        "{ [one] h = MatMul(x, a) r = Relu(h) [two] y = MatMul(r, b) }"
    )
    for name in ("a", "b"):
        made.graph.initializers[name].const_value = ir.tensor(np.ones_like(weight(made, name)), name=name)
    assert run(made)["one"].what == "its channels are as they should be"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        ("s = Sigmoid(h)", "Sigmoid is not positively homogeneous"),
        ("s = Clip(h, low, high)", "Clip is not positively homogeneous"),
        ("s = Mul(h, h)", "Mul of two activations is not homogeneous"),
        ("s = Add(h, high)", "a number is added to all channels"),
        ("s = Div(high, h)", "Div of two activations is not homogeneous"),
        ("m = ReduceSum(h, last) s = Mul(h, m)", "ReduceSum is not positively homogeneous"),
    ],
)
def test_what_is_not_homogeneous_keeps_the_units_and_is_named(between: str, reason: str) -> None:
    made = uneven(
        "net (float[N, 4] x) => (float[N, 3] y)"
        "<float[4, 8] a = {}, float[8, 3] b = {}, float low = {0}, float high = {6}, int64[1] last = {-1}>"
        f"{{ [one] h = MatMul(x, a) {between} [two] y = MatMul(s, b) }}",
        "b",
    )
    before = weight(made, "b").copy()
    assert run(made)["one"].what == reason
    np.testing.assert_array_equal(weight(made, "b"), before)


def test_constants_that_go_along_are_counted_in_the_same_units() -> None:
    made = uneven(
        "net (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y)"
        "<float[8, 4, 1, 1] a = {}, float[3, 8, 1, 1] b = {}, float[8] scale = {}, float[8] shift = {},"
        " float[8] mean = {}, float[8] var = {1, 2, 3, 4, 5, 6, 7, 8}, float[8, 1, 1] slope = {},"
        " float[8, 1, 1] more = {}, float[8, 1, 1] times = {}>"
        "{ [one] c = Conv(x, a) n = BatchNormalization(c, scale, shift, mean, var) p = PRelu(n, slope)"
        "  q = Add(more, p) r = Mul(q, times) s = Pad(r, places) [two] y = Conv(s, b) }".replace(
            "s = Pad(r, places)", "s = Identity(r)"
        ),
        "a",
    )
    given = clone(made)
    assert run(made)["one"].changed
    first = feeds()[0]["x"][:, :, :6, :6]
    before, after = (outputs(each, {"x": first})["y"] for each in (given, made))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_excluded_layers_and_shared_weights_keep_theirs() -> None:
    made = uneven()
    before = weight(made, "w1").copy()
    assert run(made, exclude="first")["pointwise"].changed is False
    np.testing.assert_array_equal(weight(made, "w1"), before)
    shared = uneven(
        "net (float[N, 8] x) => (float[N, 8] y) <float[8, 8] a = {}>"
        "{ [one] h = MatMul(x, a) r = Relu(h) [two] y = MatMul(r, a) }",
        "a",
    )
    assert not any(record.changed for record in run(shared).values())


@pytest.mark.parametrize("name", sorted(path.stem for path in TESTDATA.glob("*.onnx")))
def test_trained_networks_compute_the_same(name: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    given, data = clone(made), load_data(TESTDATA / "digits_test.npz", made, batch=64)
    run(made)
    for feed in data.take(1):
        before, after = (outputs(each, dict(feed)) for each in (given, made))
        for output, array in before.items():
            np.testing.assert_allclose(after[output], array, rtol=1e-3, atol=1e-3)
