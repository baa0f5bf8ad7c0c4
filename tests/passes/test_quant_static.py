from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime import quantization
from quantized import NETWORK, agree, calibrated, dtypes, nodes, run, samples

from onnxcompress import compress
from onnxcompress.base import Context
from onnxcompress.data import load_data
from onnxcompress.errors import UsageError
from onnxcompress.model import clone, opset, signature, to_proto
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime


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
