from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime import quantization

from onnxcompress import compress
from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import clone, load, opset, save, signature, to_proto
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
NETWORK = """net (float[N, 4, 8, 8] x) => (float[N, 10] y)
<float[16, 4, 3, 3] w1 = {}, float[16] b1 = {}, float[16, 16, 3, 3] w2 = {}, float[16] b2 = {},
 float[576, 10] w3 = {}, float[10] b3 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    a = Relu(c)
    [second] d = Conv(a, w2, b2)
    e = Relu(d)
    f = Flatten(e)
    [last] y = Gemm(f, w3, b3)
}"""


def samples(count: int = 8, dims: tuple[int, ...] = (2, 4, 8, 8)) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(8)
    return [{"x": draw.normal(0.1, 1, dims).astype(np.float32)} for _ in range(count)]


def calibrated(made: ir.Model, feeds: list[dict[str, np.ndarray]] | None = None) -> Context:
    return Context(calibration=load_data(feeds or samples(), made), runtime=OnnxRuntime())


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Quant(**{"gate": "off", "reduce_range": "off", **options}).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def nodes(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def dtypes(made: ir.Model) -> dict[str, str]:
    return {name: str(value.dtype) for name, value in made.graph.initializers.items()}


def agree(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray], decibels: float) -> None:
    for expected, found in zip(models.run(before, feeds), models.run(after, feeds), strict=True):
        assert models.snr(expected, found) > decibels


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


# Static


def test_static_layers_run_on_integers_alone(tmp_path: Path) -> None:
    made = models.model(NETWORK)
    after = clone(made)
    records = run(after, calibrated(made))
    assert {name: record.what for name, record in records.items()} == dict.fromkeys(
        ("first", "second", "last"), "computes with int8"
    )
    ran = models.operators(after, tmp_path)
    assert (ran["QLinearConv"], ran["QGemm"]) == (2, 1)
    assert ran["Conv"] + ran["Gemm"] + ran["DequantizeLinear"] + ran["Relu"] == 0
    agree(made, after, samples()[0], 30)


def test_static_models_hold_only_standard_operators_int8_weights_and_int32_biases() -> None:
    made = models.model(NETWORK)
    run(made, calibrated(made))
    assert {node.domain for node in made.graph} == {""}
    kinds = dtypes(made)
    assert [kinds[name] for name in ("w1_int8", "w2_int8", "w3_int8")] == ["INT8"] * 3
    assert [kinds[f"{name}_bias_int32"] for name in ("first", "second", "last")] == ["INT32"] * 3
    assert isinstance(made.graph.initializers["w1_int8"].const_value, ir.LazyTensor)


@pytest.mark.parametrize("calibrator", ["min-max", "percentile", "entropy"])
def test_static_is_as_close_as_the_quantizer_of_onnxruntime(calibrator: str, tmp_path: Path) -> None:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(samples())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    made = models.model(NETWORK)
    after = clone(made)
    run(after, calibrated(made), calibrator=calibrator)
    quantization.quantize_static(
        to_proto(made),
        tmp_path / "theirs.onnx",
        Reader(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    theirs = onnxruntime.InferenceSession(tmp_path / "theirs.onnx")
    feeds = samples()[3]
    expected = models.run(made, feeds)[0]
    slack = 2 if calibrator == "entropy" else 1  # on 16 samples, cutting a tail shows
    bound = models.snr(expected, theirs.run(None, feeds)[0]) - slack
    assert models.snr(expected, models.run(after, feeds)[0]) > bound


def test_batch_norms_are_folded_first(tmp_path: Path) -> None:
    made = models.model(
        """net (float[N, 4, 8, 8] x) => (float[N, 16, 6, 6] y)
        <float[16, 4, 3, 3] w = {}, float[16] s = {}, float[16] t = {}, float[16] m = {}>
        { [layer] c = Conv(x, w) y = BatchNormalization(c, s, t, m, v) }""",
        {"v": np.ones(16, np.float32)},
    )
    after = clone(made)
    run(after, calibrated(made))
    assert models.operators(after, tmp_path)["QLinearConv"] == 1
    assert "BatchNormalization" not in nodes(after)
    agree(made, after, samples()[0], 30)


def test_a_constant_activation_and_a_dead_channel_do_no_harm() -> None:
    made = models.model(
        """net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)
        <float[4, 4, 1, 1] w = {}, float[4, 4, 1, 1] v = {}, float[4] b = {}, float none = {0}>
        { z = Mul(x, none) c = Conv(z, w) d = Relu(c) y = Conv(d, v, b) }""",
    )
    for name, change in (("w", 0.0), ("v", 1e-12)):
        value = made.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(change), name=name)
    after = clone(made)
    run(after, calibrated(made))
    agree(made, after, samples()[0], 40)


def test_older_opsets_are_raised_and_that_is_recorded_once() -> None:
    made = models.model('<ir_version: 4, opset_import: ["": 9]>' + NETWORK)
    result = compress(made, "quant(gate=off)", data=samples(), measure_latency=False)
    said = [record.what for record in result.report.steps[0].records] + result.report.notes
    assert [each for each in said if "raised" in each] == ["quant: opset raised from 9 to 13"]
    assert not any("converted" in each for each in said)
    assert opset(result.model) == 13
    agree(made, result.model, samples()[0], 30)


def test_an_older_opset_stays_where_all_products_are_too_small_or_excluded() -> None:
    for options in ({"min_size": 100_000}, {"exclude": ".*"}):
        made = models.model('<ir_version: 4, opset_import: ["": 9]>' + NETWORK)
        assert not any(record.changed for record in run(made, **options).values())
        assert opset(made) == 9


def test_types_and_shapes_of_inputs_and_outputs_stay_as_they_were_declared() -> None:
    made = models.model(
        """net (float[N, 4, H, W] x) => (float[A, B, C, D] y, float[E, F] z)
        <float[8, 4, 3, 3] w = {}, float[8, 5] v = {}>
        { y = Conv(x, w) p = GlobalAveragePool(y) f = Flatten(p) z = MatMul(f, v) }"""
    )
    before = signature(made)
    run(made, calibrated(made))
    assert signature(made) == before


def test_a_product_of_constants_is_left_and_what_is_around_it_is_quantized() -> None:
    made = models.model(
        """net (float[N, 32] x) => (float[N, 32] y) <float[1, 32] c = {}, float[32, 32] w = {}>
        { [fixed] z = MatMul(c, w) [fc] a = MatMul(x, w) y = Add(a, z) }"""
    )
    feeds = samples(4, (3, 32))
    for context in (Context(), calibrated(made, feeds)):
        after = clone(made)
        records = run(after, context)
        assert (records["fixed"].changed, records["fixed"].what) == (False, "constant: simplify folds it")
        assert records["fc"].changed
        agree(made, after, feeds[0], 30)


def test_a_model_of_nothing_but_a_product_of_constants_is_left() -> None:
    made = models.model(
        "net (float[32, 32] x) => (float[32, 32] y) <float[32, 32] c = {}, float[32, 32] w = {}>"
        "{ [fc] z = MatMul(c, w) y = Add(z, x) }"
    )
    records = run(made, calibrated(made, samples(2, (32, 32))))
    assert {name: record.changed for name, record in records.items()} == {"fc": False}
    assert nodes(made) == ["MatMul", "Add"]


def test_a_constant_convolved_computes_with_integers_as_it_says() -> None:
    made = models.model(
        """net (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y)
        <float[1, 4, 8, 8] c = {}, float[8, 4, 1, 1] w = {}, float[8, 4, 1, 1] v = {}>
        { [one] z = Conv(c, w) [two] a = Conv(x, v) y = Add(a, z) }"""
    )
    after = clone(made)
    feeds = samples(4, (1, 4, 8, 8))
    records = run(after, calibrated(made, feeds))
    said = [name for name, record in records.items() if record.what == "computes with int8"]
    held = [name for name in ("w_int8", "v_int8") if name in after.graph.initializers]
    assert len(said) == len(held) == 2
    agree(made, after, feeds[0], 25)


def test_readers_of_a_shared_weight_that_cannot_compute_say_why() -> None:
    made = models.model(
        """net (float[N, 16] x, int64[M] i) => (float[N, 16] y, float[M, 16] e, float[N, 16] z)
        <float[16, 16] w = {}>
        { [fc] y = MatMul(x, w) [embed] e = Gather(w, i) [turned] z = Gemm<transB = 1>(x, w) }"""
    )
    feeds = [{**each, "i": np.arange(4)} for each in samples(4, (3, 16))]
    after = clone(made)
    records = run(after, calibrated(made, feeds))
    assert {name: record.what for name, record in records.items()} == {
        "fc": "computes with int8",
        "embed": "stored as int8, no integer kernel for it",
        "turned": "stored as int8, fc has the channels of their weight along another axis",
    }
    agree(made, after, feeds[0], 25)


def test_equal_scales_and_zero_points_are_kept_once() -> None:
    made = models.model(NETWORK)
    run(made, calibrated(made))
    contents = [
        (value.const_value.dtype, tuple(value.const_value.shape), value.const_value.tobytes())
        for name, value in made.graph.initializers.items()
        if value.const_value is not None and ("scale" in name or "zero_point" in name)
    ]
    assert len(set(contents)) == len(contents)


def test_a_transposed_weight_is_held_in_the_order_of_its_elements() -> None:
    made = models.model(
        "net (float[N, 48] x) => (float[N, 32] y) <float[32, 48] w = {}> { y = Gemm<transB = 1>(x, w) }"
    )
    run(made)
    tensor = made.graph.initializers["w_int8"].const_value
    assert tensor is not None
    assert tensor.numpy().flags["C_CONTIGUOUS"]


def test_static_needs_data_and_a_runtime_and_says_so() -> None:
    made = models.model(NETWORK)
    with pytest.raises(UsageError, match="quant: activations=static needs calibration data, none was given"):
        run(made, activations="static")
    data = load_data(samples(), made)
    with pytest.raises(UsageError, match="quant: activations=static needs a runtime, none was given"):
        run(made, Context(calibration=data))
    assert nodes(made) == nodes(models.model(NETWORK))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("attributes", "counts"),
    [("strides = [2, 2]", True), ('auto_pad = "VALID"', True), ("pads = [1, 1, 1, 1]", False)],
)
def test_the_bias_of_a_first_layer_without_padding_makes_up_for_the_zero_point_of_the_input(
    attributes: str, counts: bool, signed: bool, tmp_path: Path
) -> None:
    made = models.model(
        f"""net (float[N, 4, 8, 8] x) => (float[N, 16, a, b] y)
        <float[16, 4, 3, 3] w = {{}}, float[16] b = {{}}>
        {{ c = Conv<{attributes}>(x, w, b) y = Relu(c) }}"""
    )
    after = clone(made)
    run(after, calibrated(made), signed=signed)
    quantize = next(node for node in after.graph if node.op_type == "QuantizeLinear")
    dequantize = quantize.outputs[0].uses()[0].node
    given, taken = (int(node.inputs[2].const_value.numpy()) for node in (quantize, dequantize))  # type: ignore[union-attr]
    assert given != 0
    assert taken == (0 if counts and not signed else given)
    agree(made, after, samples()[0], 30)
    assert models.operators(after, tmp_path)["QLinearConv"] == 1


def test_an_input_that_others_read_as_well_keeps_its_zero_point() -> None:
    made = models.model(
        """net (float[N, 4, 8, 8] x) => (float[N, 16, 8, 8] y)
        <float[16, 4, 1, 1] w = {}, float[16, 4, 3, 3] v = {}>
        { c = Conv(x, w) d = Conv<pads = [1, 1, 1, 1]>(x, v) y = Add(c, d) }"""
    )
    after = clone(made)
    run(after, calibrated(made))
    quantize = next(node for node in after.graph if node.op_type == "QuantizeLinear")
    dequantize = quantize.outputs[0].uses()[0].node
    assert dequantize.inputs[2] is quantize.inputs[2]
    agree(made, after, samples()[0], 30)


def test_signed_activations_compute_with_integers_too(tmp_path: Path) -> None:
    made = models.model(NETWORK)
    unsigned, signed = clone(made), clone(made)
    run(unsigned, calibrated(made))
    run(signed, calibrated(made), signed=True)
    assert "UINT8" not in dtypes(signed).values()
    ran = models.operators(signed, tmp_path)
    assert (ran["QLinearConv"], ran["QGemm"], ran["Relu"]) == (2, 1, 0)
    for one, other in zip(models.run(unsigned, samples()[0]), models.run(signed, samples()[0]), strict=True):
        assert models.snr(one, other) > 60  # but for ties, the same numbers


@pytest.mark.parametrize(("signed", "middle"), [(False, 128), (True, 0)])
def test_symmetric_activations_have_their_zero_in_the_middle_and_keep_relus(
    signed: bool, middle: int
) -> None:
    made = models.model(NETWORK)
    after = clone(made)
    run(after, calibrated(made), symmetric=True, signed=signed)
    zeros = [
        node.inputs[2].const_value.numpy()  # type: ignore[union-attr]
        for node in after.graph
        if node.op_type == "QuantizeLinear"
    ]
    assert {int(each) for each in zeros} == {middle}
    assert nodes(after).count("Relu") == 2
    agree(made, after, samples()[0], 30)


def test_weights_of_seven_bits_are_for_products_and_for_processors_that_saturate() -> None:
    made = models.model(NETWORK)

    def largest(context: Context, **options: object) -> dict[str, int]:
        after = clone(made)
        run(after, context, **options)
        found = {name: after.graph.initializers[f"{name}_int8"].const_value for name in ("w1", "w2", "w3")}
        return {name: int(np.abs(each.numpy()).max()) for name, each in found.items() if each is not None}

    data = load_data(samples(), made)
    old = Context(calibration=data, runtime=OnnxRuntime(), target="avx2")
    new = Context(calibration=data, runtime=OnnxRuntime(), target="avx512-vnni")
    assert largest(old, reduce_range="auto", weights_only="sec.*") == {"w1": 63, "w2": 127, "w3": 63}
    assert largest(new, reduce_range="auto") == {"w1": 127, "w2": 127, "w3": 127}
    assert largest(old, reduce_range="off") == largest(new)
    assert largest(Context(target="avx2"), reduce_range="auto") == {"w1": 127, "w2": 127, "w3": 63}
    after = clone(made)
    result = Quant(gate="off").call(after, old)
    assert result.replay == Quant(gate="off", reduce_range="on")
    agree(made, after, samples()[0], 25)


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


DEPTHWISE = """net (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y)
<float[16, 3, 1, 1] w1 = {}, float[16] b1 = {}, float[16, 1, 3, 3] w2 = {}, float[16] b2 = {},
 float[6, 16, 1, 1] w3 = {}, float low = {0}, float high = {6}>
{
    [first] c = Conv(x, w1, b1)
    a = Clip(c, low, high)
    [depthwise] d = Conv<group = 16, pads = [1, 1, 1, 1]>(a, w2, b2)
    e = Clip(d, low, high)
    [last] y = Conv(e, w3)
}"""


def uneven() -> ir.Model:
    """A depthwise network whose first layer makes channels of very different sizes."""
    made = models.model(DEPTHWISE)
    sizes = np.geomspace(0.02, 4, 16).astype(np.float32)
    for name, shape in (("w1", (16, 1, 1, 1)), ("b1", (16,))):
        value = made.graph.initializers[name]
        content = np.abs(value.const_value.numpy()) * sizes.reshape(shape)  # type: ignore[union-attr]
        value.const_value = ir.tensor(content, name=name)
    for name, factor in (("w2", 1 / sizes), ("w3", np.ones(16, np.float32))):
        value = made.graph.initializers[name]
        along = factor.reshape((16, 1, 1, 1) if name == "w2" else (1, 16, 1, 1))
        value.const_value = ir.tensor(value.const_value.numpy() * along, name=name)  # type: ignore[union-attr]
    return made


def noise(made: ir.Model, feeds: list[dict[str, np.ndarray]], **options: object) -> np.ndarray:
    """What static quantization with `options` adds to the outputs of `made`, for all of `feeds`."""
    after = clone(made)
    run(after, calibrated(made, feeds), **options)
    before, changed = (OnnxRuntime().prepare(each) for each in (made, after))
    return np.concatenate([changed.run(feed)["y"] - before.run(feed)["y"] for feed in feeds])


def test_channels_that_depthwise_convolutions_read_have_steps_of_their_own() -> None:
    draw = np.random.default_rng(1)
    feeds = [{"x": draw.random((1, 3, 8, 8), np.float32)} for _ in range(8)]
    own, common = (noise(uneven(), feeds, per_channel=each, correct=False) for each in (True, False))
    assert np.sum(own**2) < 0.1 * np.sum(common**2)
    for layer in ("first", "depthwise"):  # those that compute with floats take the steps up too
        floats = noise(uneven(), feeds, correct=False, weights_only=layer)
        assert np.sum(floats**2) < 2 * np.sum(own**2)


@pytest.mark.parametrize("options", [{}, {"weights_only": ".*", "min_size": 0}])
@pytest.mark.parametrize("text", [NETWORK, DEPTHWISE])
def test_biases_give_outputs_their_means_back(text: str, options: dict[str, object]) -> None:
    made = models.model(text)
    dims = (2, 4, 8, 8) if text is NETWORK else (2, 3, 8, 8)
    draw = np.random.default_rng(2)
    feeds = [{"x": draw.random(dims, np.float32)} for _ in range(8)]
    means = []
    for correct in (False, True):
        added = noise(made, feeds, correct=correct, equalize=False, **options)
        means.append(np.abs(np.moveaxis(added, 1, 0).reshape(added.shape[1], -1).mean(axis=1)).mean())
    assert means[1] < 0.7 * means[0]


def test_the_engine_leaves_weights_of_float_layers_between_integers_as_they_are() -> None:
    made, draw = uneven(), np.random.default_rng(4)
    feeds = [{"x": draw.random((1, 3, 8, 8), np.float32)} for _ in range(4)]
    run(made, calibrated(made, feeds), weights_only="depthwise")
    plain = OnnxRuntime(optimise=False).prepare(made).run(feeds[0])["y"]
    assert models.snr(plain, OnnxRuntime().prepare(made).run(feeds[0])["y"]) > 40


BETWEEN = {  # what the engine merges with a float layer, or moves conversions across
    "normalised": """[middle] c = Conv<pads = [1, 1, 1, 1]>(a, w2, b2) i = Identity(b2)
        e = BatchNormalization(c, ones, i, b2, ones)""",
    "pooled": """[middle] c = Conv<pads = [1, 1, 1, 1]>(a, w2, b2) r = Relu(c)
        e = MaxPool<kernel_shape = [2, 2]>(r)""",
    "turned": """t = Transpose<perm = [0, 1, 3, 2]>(a) [middle] c = Conv<pads = [1, 1, 1, 1]>(t, w2, b2)
        e = Transpose<perm = [0, 1, 3, 2]>(c)""",
    "product": """t = Transpose<perm = [0, 2, 3, 1]>(a) [middle] c = MatMul(t, w4) d = Add(c, b2)
        e = Transpose<perm = [0, 3, 1, 2]>(d)""",
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_the_engine_leaves_such_weights_alone_whatever_lies_about_the_layer(between: str) -> None:
    made = models.model(
        """net (float[1, 3, 8, 8] x) => (float[1, 5, P, Q] y)
        <float[16, 3, 3, 3] w1 = {}, float[16] b1 = {}, float[16, 16, 3, 3] w2 = {}, float[16, 16] w4 = {},
         float[16] b2 = {}, float[5, 16, 1, 1] w3 = {}>
        { [first] f = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) a = Relu(f)
          BETWEEN [last] y = Conv(e, w3) }""".replace("BETWEEN", between),
        {"ones": np.ones(16, np.float32)},
    )
    for name, place, number in (("b1", 0, -99), ("w2", (0, 0), 99), ("w4", (0, 0), 99)):
        value = made.graph.initializers[name]  # the first channel of a is dead: what multiplies it is idle
        content = value.const_value.numpy().copy()  # type: ignore[union-attr]
        content[place] = number
        value.const_value = ir.tensor(content, name=name)
    feeds = samples(4, (1, 3, 8, 8))
    records = run(made, calibrated(made, feeds), weights_only="middle", equalize=False, min_size=0)
    assert (records["middle"].what, records["last"].what) == (
        "stored as int8, its weight only",
        "computes with int8",
    )
    plain = OnnxRuntime(optimise=False).prepare(made).run(feeds[0])["y"]
    assert models.snr(plain, OnnxRuntime().prepare(made).run(feeds[0])["y"]) > 40


def test_ranges_of_channels_are_equalized_first_and_that_is_recorded() -> None:
    made = models.model(NETWORK)
    value = made.graph.initializers["w1"]
    sizes = np.geomspace(0.05, 20, 16).reshape(-1, 1, 1, 1).astype(np.float32)
    value.const_value = ir.tensor(value.const_value.numpy() * sizes, name="w1")  # type: ignore[union-attr]
    result = Quant(gate="off").call(clone(made), calibrated(made))
    assert [record.layer for record in result.records if record.what == "ranges equalized"] == [
        "first",
        "second",
    ]
    even, plain = (noise(made, samples(), equalize=each) for each in (True, False))
    assert np.sum(even**2) < np.sum(plain**2)


def test_weights_may_be_clipped_for_less_error() -> None:
    made = models.model(
        "net (float[N, 4000] x) => (float[N, 3] y) <float[4000, 3] w = {}> { [one] y = MatMul(x, w) }"
    )
    draw = np.random.default_rng(3)
    value = made.graph.initializers["w"]
    value.const_value = ir.tensor(draw.standard_t(3, (4000, 3)).astype(np.float32), name="w")
    feeds = [{"x": draw.standard_normal((20, 4000)).astype(np.float32)}]
    clipped, whole = (noise(made, feeds, weights=each, activations="none") for each in ("mse", "min-max"))
    assert np.sum(clipped**2) < 0.95 * np.sum(whole**2)
