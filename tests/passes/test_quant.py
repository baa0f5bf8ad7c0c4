from pathlib import Path

import models
import numpy as np
import pytest
from quantized import NETWORK, agree, calibrated, dtypes, nodes, run, samples

from onnxcompress import compress
from onnxcompress.base import Context
from onnxcompress.data import load_data
from onnxcompress.errors import CompressError
from onnxcompress.model import clone, load, save, to_proto
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

TESTDATA = Path(__file__).parent.parent.parent / "testdata"


# Weights only


def test_weights_are_stored_as_int8_and_expanded_when_the_model_is_loaded(tmp_path: Path) -> None:
    made = models.model(NETWORK)
    after = clone(made)
    records = run(after, activations="none")
    assert {record.what for record in records.values()} == {"stored as int8"}
    assert dtypes(after)["w1_int8"] == dtypes(after)["w3_int8"] == "INT8"
    assert not {"w1", "w2", "w3"} & set(after.graph.initializers)
    agree(made, after, samples()[0], 35)
    assert models.operators(after, tmp_path) == models.operators(
        made, tmp_path
    )  # nothing is left to do later
    save(made, tmp_path / "before.onnx")
    save(after, tmp_path / "after.onnx")
    assert (tmp_path / "after.onnx").stat().st_size < 0.35 * (tmp_path / "before.onnx").stat().st_size


def test_one_scale_for_a_channel_serves_the_small_ones_better_than_one_for_the_tensor() -> None:
    sizes = np.logspace(-2, 0, 16, dtype=np.float32).reshape(-1, 1, 1, 1)
    weights = {"w": sizes * np.random.default_rng(0).normal(0, 1, (16, 4, 3, 3)).astype(np.float32)}
    made = models.model("net (float[N, 4, 8, 8] x) => (float[N, 16, 6, 6] y) { y = Conv(x, w) }", weights)
    expected = models.run(made, samples()[0])[0][:, 0]  # the smallest channel
    by_channel, by_tensor = clone(made), clone(made)
    run(by_channel, activations="none")
    run(by_tensor, activations="none", per_channel=False)
    assert models.snr(expected, models.run(by_channel, samples()[0])[0][:, 0]) > 35
    assert models.snr(expected, models.run(by_tensor, samples()[0])[0][:, 0]) < 15
    assert by_tensor.graph.initializers["w_scale"].shape == (1, 1, 1, 1)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_other_kinds_are_stored_and_come_back_in_theirs(kind: type) -> None:
    name = {np.float16: "float16", np.float64: "double"}[kind]
    weights = {"w": np.random.default_rng(0).normal(0, 1e-3, (32, 32)).astype(kind)}
    made = models.model(f"net ({name}[N, 32] x) => ({name}[N, 32] y) {{ y = MatMul(x, w) }}", weights)
    after = clone(made)
    records = run(after)
    assert [record.what for record in records.values()] == ["stored as int8"]
    agree(made, after, {"x": samples(1, (4, 32))[0]["x"].astype(kind)}, 35)


def test_recurrent_layers_and_look_up_tables_are_stored() -> None:
    made = models.model(
        """net (int64[5, N] i) => (float[5, 1, N, 16] y)
        <float[40, 24] table = {}, float[1, 64, 24] w = {}, float[1, 64, 16] r = {}>
        { [embed] x = Gather(table, i) [lstm] y, h = LSTM<hidden_size = 16>(x, w, r) }"""
    )
    after = clone(made)
    records = run(after)
    assert {name: record.what for name, record in records.items()} == dict.fromkeys(
        ("embed", "lstm", "lstm#2"), "stored as int8"
    )
    agree(made, after, {"i": np.arange(15).reshape(5, 3)}, 30)


def test_weights_in_the_bodies_of_if_and_loop_are_stored(tmp_path: Path) -> None:
    made = models.model(
        """net (float[N, 32] x, bool which) => (float[N, 32] y) <float[32, 32] shared = {}>
        {
            y = If(which) <
                then_branch = one () => (float[N, 32] p) { p = MatMul(x, shared) },
                else_branch = two () => (float[N, 32] q) <float[32, 32] own = {}> {
                    s = MatMul(x, shared)
                    q = MatMul(s, own)
                }
            >
        }"""
    )
    for context, options in (
        (Context(), {}),
        (calibrated(made, pairs := which()), {"activations": "static"}),
    ):
        after = clone(made)
        records = run(after, context, **options)
        assert len(records) == 3
        assert all(record.changed for record in records.values())
        for feeds in pairs if options else which():
            agree(made, after, feeds, 30)


def which() -> list[dict[str, np.ndarray]]:
    return [{"x": samples(1, (3, 32))[0]["x"], "which": np.array(side)} for side in (True, False)]


# Dynamic


@pytest.mark.parametrize(
    ("product", "weights"),
    [
        ("MatMul(x, w)", "float[48, 32] w = {}"),
        ("Gemm(x, w, b)", "float[48, 32] w = {}, float[32] b = {}"),
        ("Gemm<transB = 1>(x, w, b)", "float[32, 48] w = {}, float[32] b = {}"),
        ("Gemm<alpha = -0.5, beta = 3.0>(x, w, b)", "float[48, 32] w = {}, float[1, 32] b = {}"),
        ("Gemm(x, w)", "float[48, 32] w = {}"),
    ],
)
def test_matrix_products_multiply_integers_in_one_kernel(product: str, weights: str, tmp_path: Path) -> None:
    made = models.model(f"net (float[N, 48] x) => (float[N, 32] y) <{weights}> {{ y = {product} }}")
    after = clone(made)
    records = run(after)
    assert [record.what for record in records.values()] == ["multiplied as int8"]
    assert "Transpose" not in nodes(after)  # a transposed weight is stored as it is multiplied
    assert models.operators(after, tmp_path)["DynamicQuantizeMatMul"] == 1
    agree(made, after, samples(1, (5, 48))[0], 35)


def test_stacks_of_matrices_are_multiplied_each_with_its_scales(tmp_path: Path) -> None:
    made = models.model(
        "net (float[N, 3, 5, 24] x) => (float[N, 3, 5, 16] y) <float[3, 24, 16] w = {}> { y = MatMul(x, w) }"
    )
    after = clone(made)
    run(after)
    assert models.operators(after, tmp_path)["MatMul"] == 0
    agree(made, after, samples(1, (2, 3, 5, 24))[0], 35)


def test_products_of_the_same_input_quantize_it_once() -> None:
    made = models.model(
        """net (float[N, 32] x) => (float[N, 32] y) <float[32, 32] u = {}, float[32, 32] v = {}>
        { a = MatMul(x, u) b = MatMul(x, v) y = Add(a, b) }"""
    )
    after = clone(made)
    run(after)
    assert nodes(after).count("DynamicQuantizeLinear") == 1
    agree(made, after, samples(1, (3, 32))[0], 30)


@pytest.mark.parametrize("product", ["Gemm<transA = 1>(x, w)", "MatMul(w, x)"])
def test_products_of_other_forms_are_stored(product: str) -> None:
    made = models.model(
        f"net (float[32, 32] x) => (float[32, 32] y) <float[32, 32] w = {{}}> {{ y = {product} }}"
    )
    after = clone(made)
    assert [record.what for record in run(after).values()] == ["stored as int8"]
    agree(made, after, samples(1, (32, 32))[0], 35)


def test_a_tied_weight_is_kept_once_for_a_table_and_a_product(tmp_path: Path) -> None:
    made = models.model(
        """net (int64[N] i) => (float[N, 50] y) <float[50, 16] table = {}>
        { [embed] x = Gather(table, i) [logits] y = Gemm<transB = 1>(x, table) }"""
    )
    after = clone(made)
    records = run(after)
    assert (records["embed"].what, records["logits"].what) == ("stored as int8", "multiplied as int8")
    assert list(dtypes(after).values()).count("INT8") == 1
    assert models.operators(after, tmp_path) == {"Gather": 1, "DynamicQuantizeMatMul": 1}
    agree(made, after, {"i": np.array([3, 1, 49])}, 30)


# What stays


@pytest.mark.parametrize("static", [False, True])
def test_excluded_layers_stay_in_float_and_what_is_around_them_does_not(static: bool) -> None:
    made = models.model(NETWORK)
    for options, context in (({"exclude": "sec.*"}, ()), ({}, ("sec.*",))):
        after = clone(made)
        data = load_data(samples(), made) if static else None
        given = Context(calibration=data, runtime=OnnxRuntime(), exclude=context)
        records = run(after, given, **options)
        assert (records["second"].changed, records["second"].what) == (False, "excluded")
        assert records["first"].changed
        assert dtypes(after)["w2"] == "FLOAT"
        agree(made, after, samples()[0], 25)


def test_small_overridable_and_computed_weights_stay_and_it_says_so() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 13]>
        net (float[N, 4, 8, 8] x, float[8, 4, 3, 3] given = {}) => (float[N, 8, 8, 8] y)
        <float[4, 4, 1, 1] small = {}, float[8, 8, 3, 3] half = {}>
        {
            [tiny] a = Conv(x, small)
            [open] b = Conv<pads = [1, 1, 1, 1]>(a, given)
            w = Neg(half)
            [made] y = Conv<pads = [1, 1, 1, 1]>(b, w)
        }"""
    )
    records = run(made)
    assert not any(record.changed for record in records.values())
    assert {name: record.what for name, record in records.items()} == {
        "tiny": "fewer than 256 elements",
        "open": "its weight is also a graph input, which callers may override",
        "made": "its weight is computed by Neg",
    }


def test_a_weight_shared_with_an_excluded_layer_stays() -> None:
    made = models.model(
        """net (float[N, 32] x) => (float[N, 32] y) <float[32, 32] w = {}>
        { [one] a = MatMul(x, w) [two] y = MatMul(a, w) }"""
    )
    records = run(made, exclude="two")
    assert {record.what for record in records.values()} == {"its weight is shared with an excluded layer"}


def test_float_operators_between_integer_ones_are_named() -> None:
    made = models.model(NETWORK.replace("e = Relu(d)", "[gap] e = Softplus(d)"))
    records = run(made, calibrated(made))
    assert (records["gap"].changed, records["gap"].what) == (False, "no 8-bit Softplus")


@pytest.mark.parametrize("static", [False, True])
def test_a_second_run_changes_nothing(static: bool) -> None:
    made = models.model(NETWORK)
    context = calibrated(made) if static else Context()
    run(made, context)
    kept = to_proto(made).SerializeToString()
    records = run(made, context)
    assert not any(record.changed for record in records.values())
    assert {record.what for record in records.values()} <= {"already quantized"}
    assert to_proto(made).SerializeToString() == kept


@pytest.mark.parametrize("options", [{}, {"activations": "none"}])
def test_weights_that_are_not_finite_are_refused(options: dict[str, object]) -> None:
    weights = {"w": np.full((32, 32), np.nan, np.float32)}
    made = models.model("net (float[N, 32] x) => (float[N, 32] y) { y = MatMul(x, w) }", weights)
    with pytest.raises(CompressError, match="w: the weight holds NaN or infinity"):
        run(made, **options)


# Trained models


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize(
    "name", ["lenet5_digits", "residual_digits", "depthwise_digits", "transformer_digits"]
)
def test_trained_networks_keep_their_accuracy(name: str, activations: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    data = load_data(TESTDATA / "digits_calib.npz", made)
    held_out = np.load(TESTDATA / "digits_test.npz")
    feeds = {"image": held_out["image"]}
    before = (models.run(made, feeds)[0].argmax(axis=1) == held_out["labels"]).mean()
    run(made, Context(calibration=data, runtime=OnnxRuntime()), activations=activations)
    after = (models.run(made, feeds)[0].argmax(axis=1) == held_out["labels"]).mean()
    assert after >= before - 0.01


@pytest.mark.parametrize("calibrator", ["min-max", "mse", "average", "percentile", "entropy"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_way_to_compute_with_integers_runs_on_a_trained_network(
    per_channel: bool, calibrator: str
) -> None:
    passes = [Quant(gate="off", per_channel=per_channel, calibrator=calibrator)]
    report = compress(
        TESTDATA / "lenet5_digits.onnx",
        passes,
        data=str(TESTDATA / "digits_calib.npz") + "[:16]",
        measure_latency=False,
    ).report
    assert report.comparison is not None
    assert report.comparison.snr > 15
