from pathlib import Path

import models
import numpy as np
import pytest
from factored import NETWORK, apart, calibrated, images, run

from onnxcompress import compress
from onnxcompress.base import Context
from onnxcompress.data import Data, load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import clone
from onnxcompress.runtimes.onnxruntime import OnnxRuntime


def test_full_rank_on_data_computes_the_same() -> None:
    for method in ("svd", "separable", "tucker", "depthwise"):
        given = models.model(NETWORK)
        made = clone(given)
        run(made, calibrated(given, images()), method=method, energy=1.0, when="always")
        assert apart(given, made, images(1, seed=9)[0]) < 1e-4


@pytest.mark.parametrize("method", ["svd", "separable", "tucker", "depthwise", "two-3x3"])
def test_calibration_data_lower_the_error_of_the_outputs(method: str) -> None:
    given = models.model(
        """net (float[N, 6, 10, 9] x) => (float[N, A, B, C] y) <float[24, 6, 5, 5] w = {}>
        { [conv] y = Conv<pads = [2, 2, 2, 2]>(x, w) }"""
    )
    plain, aware = clone(given), clone(given)
    options = {"method": method, "params": 0.3}
    blind, seen = run(plain, **options), run(aware, calibrated(given, images(16)), **options)
    assert seen["conv"].numbers["energy"] > blind["conv"].numbers["energy"]
    for feeds in images(2, seed=77):
        (expected,), (first,), (second,) = (models.run(each, feeds) for each in (given, plain, aware))
        assert models.snr(expected, second) > models.snr(expected, first) + 1


LAYERS = {  # the dims of x, a layer, and whether there is a place for a bias
    "Gemm": ("N, 40", "y = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)", True),
    "MatMul": ("N, 40", "y = MatMul(x, w)", True),
    "MatMul of vectors, and Add": ("N, 6, 40", "m = MatMul(x, w) y = Add(b, m)", True),
    "MatMul of vectors": ("N, 6, 40", "y = MatMul(x, w)", False),
    "Conv": ("N, 40, 5, 5", "y = Conv(x, k, b)", True),
}


@pytest.mark.parametrize(("dims", "body", "takes_bias"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("widest", [0, 4608])
def test_the_bias_takes_up_what_inputs_with_a_large_mean_lose(
    dims: str, body: str, takes_bias: bool, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcompress.moments.WIDEST", widest)
    given = models.model(
        f"""net (float[{dims}] x) => (float[{", ".join("NABC"[: dims.count(",") + 1])}] y)
        <float[40, 30] w = {{}}, float[30, 40, 2, 2] k = {{}}, float[30] b = {{}}> {{ {body} }}"""
    )
    draw = np.random.default_rng(4)
    shape, axis = (8, *(int(dim) for dim in dims.split(",")[1:])), 1 if "Conv" in body else -1
    mean, direction = draw.normal(50, 20, 40), draw.standard_normal(40)

    def sample() -> np.ndarray:
        main = draw.standard_normal((*shape[:-1], 1) if axis == -1 else (8, 1, 1, 1))
        values = np.moveaxis(0.1 * draw.standard_normal(shape), axis, -1)
        return np.moveaxis(values + np.moveaxis(main, axis, -1) * direction + mean, -1, axis)

    feeds = [{"x": sample().astype(np.float32)} for _ in range(9)]
    plain, aware = clone(given), clone(given)
    run(plain, rank=1, method="svd", when="always")
    run(aware, calibrated(given, feeds[:8]), rank=1, method="svd", when="always")
    expected, blind, found = (models.run(each, feeds[8])[0] for each in (given, plain, aware))
    varying = np.linalg.norm(expected - expected.mean(axis=0))
    error = np.linalg.norm(found - expected)
    assert error < 0.1 * np.linalg.norm(blind - expected)
    assert (error < 0.4 * varying) == takes_bias


def test_the_data_lower_the_error_of_products_too_wide_for_their_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = models.model(
        """net (float[N, 60] x) => (float[N, 30] y) <float[60, 30] w = {}, float[30] b = {}>
        { [fc] y = Gemm(x, w, b) }"""
    )
    draw = np.random.default_rng(4)
    mix = draw.standard_normal((60, 60)) * 0.8 ** np.arange(60)[:, None]
    feeds = [{"x": (draw.standard_normal((50, 60)) @ mix).astype(np.float32)} for _ in range(9)]
    errors = {}
    for widest in (0, 100):
        monkeypatch.setattr("onnxcompress.moments.WIDEST", widest)
        made = clone(given)
        run(made, calibrated(given, feeds[:8]), rank=6)
        errors[widest] = models.snr(models.run(given, feeds[8])[0], models.run(made, feeds[8])[0])
    plain = clone(given)
    run(plain, rank=6)
    blind = models.snr(models.run(given, feeds[8])[0], models.run(plain, feeds[8])[0])
    assert errors[0] == pytest.approx(errors[100], abs=1e-3)
    assert errors[0] > blind + 3


def test_layers_are_calibrated_in_as_many_runs_as_memory_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    given = models.model(NETWORK)
    told: list[tuple[int, int | None]] = []
    context = Context(
        calibration=load_data(images(), given),
        runtime=OnnxRuntime(),
        progress=lambda done, total, _: told.append((done, total)),
    )
    once, thrice = clone(given), clone(given)
    run(once, context, params=0.4)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    monkeypatch.setattr("onnxcompress.moments.BUDGET", 1)
    run(thrice, context, params=0.4)
    assert len(told) == 5 * 4
    assert apart(once, thrice, images(1)[0]) < 1e-3


def test_bodies_of_if_are_factorised_without_data() -> None:
    given = models.model(
        """net (float[N, 32] x, bool b) => (float[N, 32] y)
        {
            y = If(b) <
                then_branch = yes () => (float[N, 32] t) <float[32, 32] w = {}> { [inner] t = MatMul(x, w) },
                else_branch = no () => (float[N, 32] e) { e = Relu(x) }
            >
        }"""
    )
    made = clone(given)
    feeds = {"x": np.random.default_rng(0).random((4, 32), np.float32)}
    context = calibrated(given, [{**feeds, "b": np.array(True)}])
    assert run(made, context, energy=1.0, when="always")["inner"].changed
    assert apart(given, made, {**feeds, "b": np.array(True)}) < 1e-4


def test_calibration_without_data_or_without_end_is_refused() -> None:
    made = models.model(NETWORK)
    empty = Data("nothing", lambda: iter(()), 0)
    with pytest.raises(UsageError, match="calibration: there are no data"):
        run(made, Context(calibration=empty, runtime=OnnxRuntime()))
    endless = [{"x": np.full((1, 6, 10, 9), np.inf, np.float32)}]
    with pytest.raises(CompressError, match="calibration: x holds NaN or infinity"):
        run(made, calibrated(made, endless))


def test_inputs_that_are_always_zero_count_as_white() -> None:
    given = models.model(NETWORK)
    made = clone(given)
    dark = [{"x": np.zeros((1, 6, 10, 9), np.float32)}]
    records = run(made, calibrated(given, dark), energy=0.9, when="always")
    assert 0.9 <= records["first"].numbers["energy"] < 1


def test_the_loss_of_a_run_is_small_on_a_trained_model_with_data() -> None:
    folder = Path(__file__).parent.parent.parent / "testdata"
    report = compress(
        folder / "lenet5_digits.onnx",
        "factorise(energy=0.97)",
        data=folder / "digits_calib.npz",
        evaluation=folder / "digits_test.npz",
        measure_latency=False,
    ).report
    assert report.evaluation is not None
    assert report.evaluation.top1 is not None
    assert report.after is not None
    before, after = report.evaluation.top1
    assert before - after < 0.02
    assert report.after.parameters < 0.5 * report.before.parameters
