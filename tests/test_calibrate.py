from collections.abc import Iterator

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.calibrate import METHODS, calibrate
from onnxcompress.data import Data, load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.histogram import BINS, Histogram, entropy_range, error_range, percentile_range
from onnxcompress.model import clone
from onnxcompress.observing import never_negative
from onnxcompress.runtimes.interpreter import Interpreter
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

MAGNITUDES = st.floats(2.0**-40, 2.0**30, width=32)  # products of smaller ones underflow
CHUNKS = st.lists(
    hnp.arrays(
        np.float32,
        st.integers(0, 40),
        elements=st.just(0.0) | MAGNITUDES | MAGNITUDES.map(lambda number: -number),
    ),
    min_size=1,
    max_size=5,
)
TEXT = """net (float[N, 2, 6, 6] x) => (float[N, 3] y)
<float[3, 2, 3, 3] w = {}, float[3] b = {}>
{
    c = Conv(x, w, b)
    r = Relu(c)
    l = LeakyRelu(c)
    s = Add(r, l)
    g = GlobalAveragePool(s)
    y = Flatten(g)
}"""
NAMES = ["x", "r", "l", "y"]
MODEL = models.model(TEXT)


def histogram(chunks: list[np.ndarray]) -> Histogram:
    made = Histogram()
    for chunk in chunks:
        made.add(chunk)
    return made


@given(CHUNKS, st.randoms())
def test_a_histogram_does_not_depend_on_the_order(chunks: list[np.ndarray], random: object) -> None:
    first = histogram(chunks)
    whole = histogram([np.concatenate(chunks)])
    random.shuffle(chunks)  # type: ignore[attr-defined]
    second = histogram(chunks)
    for other in (whole, second):
        assert other.width == first.width
        np.testing.assert_array_equal(other.counts, first.counts)


@given(CHUNKS)
def test_every_number_is_counted_in_the_bin_it_lies_in(chunks: list[np.ndarray]) -> None:
    made, values = histogram(chunks), np.concatenate(chunks).astype(np.float64)
    places = np.floor(values / made.width).astype(int) + BINS
    np.testing.assert_array_equal(made.counts, np.bincount(places, minlength=2 * BINS))
    if np.abs(values).max(initial=0) > 1e-30:
        assert np.abs(values).max() >= made.width * BINS / 2 * 0.999  # no finer bins were possible


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_histogram_refuses_what_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        Histogram().add(np.float32([1.0, bad, 2.0]))


@given(CHUNKS, st.floats(50, 100))
def test_a_percentile_range_holds_that_share_and_zero(chunks: list[np.ndarray], percentile: float) -> None:
    made, values = histogram(chunks), np.concatenate(chunks).astype(np.float64)
    if not values.size:
        return
    low, high = percentile_range(made.counts, made.width, percentile)
    assert low <= 0 <= high
    inside = (values >= low - made.width) & (values <= high + made.width)
    assert inside.mean() >= percentile / 100 - 1e-9
    assert low >= min(values.min(), 0) - made.width
    assert high <= max(values.max(), 0) + made.width


def test_a_percentile_leaves_rare_numbers_out() -> None:
    values = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
    values[:20] = 1000
    made = histogram([values])
    low, high = percentile_range(made.counts, made.width, 99.0)
    np.testing.assert_allclose([low, high], np.percentile(values, [0.5, 99.5]), atol=made.width)


def test_entropy_keeps_an_even_spread_and_cuts_a_long_tail() -> None:
    draw = np.random.default_rng(0)
    even = histogram([draw.uniform(-2, 6, 200_000).astype(np.float32)])
    low, high = entropy_range(even.counts, even.width)
    assert (low, high) == pytest.approx((-2, 6), rel=0.02)
    tail = draw.exponential(1.0, 200_000).astype(np.float32)
    tail[:4] = [100, 120, 150, 200]
    cut = entropy_range(*(lambda made: (made.counts, made.width))(histogram([tail])))
    assert cut[0] == 0
    assert 5 < cut[1] < 60


def test_zeros_of_a_relu_do_not_move_the_entropy_range() -> None:
    draw = np.random.default_rng(0)
    values = np.abs(draw.normal(0, 1, 50_000)).astype(np.float32)
    without = histogram([values])
    zeros = histogram([values, np.zeros(500_000, np.float32)])
    assert entropy_range(zeros.counts, zeros.width) == entropy_range(without.counts, without.width)


@pytest.mark.parametrize("side", [1, -1])
def test_mse_takes_the_range_that_rounds_and_clips_with_the_least_error(side: int) -> None:
    draw = np.random.default_rng(0)
    values = draw.exponential(1.0, 50_000).astype(np.float32) * np.float32(side)
    values[:50] -= np.float32(side)
    made = histogram([values])
    low, high = error_range(made.counts, made.width)

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        rounded = low + np.rint((values.clip(low, high) - low) / step) * step
        return float(np.sum((values - rounded).astype(np.float64) ** 2))

    ends = [
        (float(values.min()) * a, float(values.max()) * b) for a in (0.5, 0.8, 1) for b in (0.5, 0.7, 0.9, 1)
    ]
    assert error(low, high) < 1.02 * min(error(*each) for each in ends)
    assert max(-low, high) < np.abs(values).max()


@pytest.mark.parametrize("constant", [0.0, 2.5, -2.5])
def test_a_constant_has_a_range(constant: float) -> None:
    made = histogram([np.full(10, constant, np.float32)])
    for low, high in (
        percentile_range(made.counts, made.width, 99.9),
        entropy_range(made.counts, made.width),
        error_range(made.counts, made.width),
    ):
        assert low - made.width <= constant <= high + made.width
        assert max(-low, high) <= abs(constant) + made.width


def data(count: int = 5) -> Data:
    draw = np.random.default_rng(4)
    samples = [{"x": draw.normal(0, 1, (2, 2, 6, 6)).astype(np.float32)} for _ in range(count)]
    return load_data(samples, MODEL)


def activations() -> dict[str, np.ndarray]:
    runnable = OnnxRuntime().prepare(MODEL, outputs=NAMES)
    outputs = [runnable.run(feeds) for feeds in data()]
    return {name: np.stack([each[name] for each in outputs]) for name in NAMES}


@pytest.mark.parametrize("runtime", [OnnxRuntime(), Interpreter()])
def test_min_max_is_that_of_the_activations(runtime: OnnxRuntime | Interpreter) -> None:
    found = calibrate(MODEL, NAMES, data(), runtime).ranges
    for name, values in activations().items():
        expected = min(values.min(), 0), max(values.max(), 0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS[1:])
def test_other_methods_stay_within_min_max(method: str) -> None:
    found = calibrate(MODEL, NAMES, data(), OnnxRuntime(), method).ranges
    for name, values in activations().items():
        low, high = found[name]
        slack = 0.002 * np.abs(values).max()
        assert min(values.min(), 0) - slack <= low <= 0 <= high <= max(values.max(), 0) + slack
        assert high - low > 0.2 * np.ptp(values)


@pytest.mark.parametrize("method", METHODS)
def test_calibration_tells_its_progress_and_leaves_the_model(method: str) -> None:
    made, told = clone(MODEL), []
    calibrate(made, NAMES, data(), OnnxRuntime(), method, progress=lambda *each: told.append(each))
    assert told == [(done, 5, "calibrating") for done in range(1, 6)]
    assert [node.op_type for node in made.graph] == [node.op_type for node in MODEL.graph]


@pytest.mark.parametrize("method", METHODS)
def test_no_data_is_a_wrong_request(method: str) -> None:
    def none() -> Iterator[dict[str, np.ndarray]]:
        yield from ()

    with pytest.raises(UsageError, match="calibration: there are no data"):
        calibrate(MODEL, NAMES, Data("nothing", none, 0), OnnxRuntime(), method)


@pytest.mark.parametrize("method", METHODS)
def test_activations_without_end_are_refused_by_name(method: str) -> None:
    endless = {"x": np.full((1, 2, 6, 6), 3e38, np.float32)}
    with pytest.raises(CompressError, match=r"calibration: (r|l|y) holds NaN or infinity"):
        calibrate(MODEL, ["r", "l", "y"], Data("endless", lambda: iter([endless]), 1), OnnxRuntime(), method)


def test_operators_that_leave_no_negative_numbers_are_known() -> None:
    made = models.model(
        """net (float[2, 4] x) => (float[2, 12] y, float[2, 8] z)
        <float low = {0}, float below = {-1}>
        {
            a = Relu(x)
            b = Clip(x, low)
            c = Clip(x, below)
            d = Sigmoid(a)
            y = Concat<axis=1>(a, b, d)
            z = Concat<axis=1>(a, c)
        }"""
    )
    values = {value.name: value for node in made.graph for value in node.outputs}
    assert {name: never_negative(value) for name, value in values.items()} == {
        "a": True,
        "b": True,
        "c": False,
        "d": True,
        "y": True,
        "z": False,
    }
    assert not never_negative(made.graph.inputs[0])


def test_an_average_is_that_of_the_ends_of_each_run() -> None:
    found = calibrate(MODEL, NAMES, data(), OnnxRuntime(), "average").ranges
    runnable = OnnxRuntime().prepare(MODEL, outputs=NAMES)
    runs = [runnable.run(feed) for feed in data()]
    for name in NAMES:
        low = np.mean([min(float(run[name].min()), 0) for run in runs])
        high = np.mean([max(float(run[name].max()), 0) for run in runs])
        assert found[name] == pytest.approx((low, high))


def test_largest_numbers_and_means_of_channels_are_found_in_the_same_runs() -> None:
    made = models.model(
        "net (float[N, 3, 5, 5] x) => (float[N, 2] y) <float[4, 3, 3, 3] w = {}, float[36, 2] v = {}>"
        "{ c = Conv(x, w) r = Relu(c) z = Constant<value_ints = [0, 36]>() f = Reshape(r, z)"
        "  y = MatMul(f, v) p = Constant<value_ints = [0, 0, 1, 1, 0, 0, 1, 1]>()"
        "  q = Pad(r, p) d = Conv<group = 4>(q, u) }".replace(
            "float[36, 2] v = {}", "float[36, 2] v = {}, float[4, 1, 1, 1] u = {}"
        )
    )
    draw = np.random.default_rng(0)
    feeds = [{"x": draw.standard_normal((2, 3, 5, 5)).astype(np.float32)} for _ in range(3)]
    found = calibrate(made, ["y"], load_data(feeds, made), OnnxRuntime(), maxima=["r"], means=["x", "f"])
    runnable = OnnxRuntime().prepare(made, outputs=["r", "f"])
    runs = [runnable.run(feed) for feed in feeds]
    np.testing.assert_allclose(
        found.maxima["r"], np.max([run["r"].max(axis=(0, 2, 3)) for run in runs], axis=0)
    )
    np.testing.assert_allclose(
        found.means["x"], np.mean([feed["x"].mean(axis=(0, 2, 3)) for feed in feeds], axis=0), atol=1e-6
    )
    np.testing.assert_allclose(
        found.means["f"], np.mean([run["f"].mean(axis=0) for run in runs], axis=0), atol=1e-6
    )
