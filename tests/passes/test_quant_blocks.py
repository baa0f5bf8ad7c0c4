from collections.abc import Mapping
from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcompress import compress
from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import clone, load, opset, save, signature
from onnxcompress.passes import QuantBlocks
from onnxcompress.runtimes import Interpreter, OnnxRuntime

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
NETWORK = """net (float[N, 3, 70] x) => (float[M, 20] y, float[N, 3, 70] z)
<float[70, 40] w1 = {}, float[20, 120] w2 = {}, float[20] b2 = {}, float[70, 70] w3 = {}>
{
    [first] a = MatMul(x, w1)
    r = Relu(a)
    [flat] f = Flatten(r)
    [last] y = Gemm<transB = 1, beta = 0.5>(f, w2, b2)
    [side] z = MatMul(x, w3)
}"""
ALWAYS = {"when": "always", "min_size": 0}


def feeds(dims: tuple[int, ...] = (2, 3, 70)) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(8).standard_normal(dims).astype(np.float32)}


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = QuantBlocks(**options).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def operators(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def stored(made: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in made.graph.initializers.items()
        if value.const_value
    }


@pytest.mark.parametrize(("bits", "floor"), [(2, 5), (4, 18), (8, 40)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 256])
def test_products_are_written_in_blocks_and_both_engines_agree(
    bits: int, floor: float, symmetric: bool, block: int
) -> None:
    made = models.model(NETWORK)
    after = clone(made)
    records = run(after, bits=bits, symmetric=symmetric, block=block, activations="float", **ALWAYS)
    assert {record.what for record in records.values()} == {f"in blocks of {bits} bits, multiplied as floats"}
    assert operators(after).count("MatMulNBits") == 3
    assert not {"w1", "w2", "w3"} & set(after.graph.initializers)
    assert signature(after) == signature(made)
    assert {"a", "y", "z"} <= {value.name for node in after.graph for value in node.outputs}
    interpreted = Interpreter().prepare(after).run(feeds())
    for expected, found, same in zip(
        models.run(made, feeds()), models.run(after, feeds()), interpreted.values(), strict=True
    ):
        assert models.snr(expected, found) > floor - (3 if block == 256 else 0)
        np.testing.assert_allclose(found, same, rtol=1e-4, atol=1e-5)
    assert all(float(record.numbers["snr"]) > floor - 3 for record in records.values())


def test_ternary_weights_become_two_bits_and_keep_their_values() -> None:
    weights = {
        "w": 0.3 * np.sign(np.round(np.random.default_rng(0).standard_normal((100, 33)))).astype(np.float32)
    }
    made = models.model("net (float[N, 100] x) => (float[N, 33] y) { [one] y = MatMul(x, w) }", weights)
    after = clone(made)
    records = run(after, bits=2, activations="float", **ALWAYS)
    (expected,), (found,) = models.run(made, feeds((4, 100))), models.run(after, feeds((4, 100)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert records["one"].numbers["snr"] == 999
    assert stored(after)["w_blocks"].nbytes == 33 * 4 * 8  # four blocks of 32 two-bit numbers


def test_packing_waits_until_the_weight_is_needed() -> None:
    made = models.model(NETWORK)
    records = run(made, **ALWAYS)
    assert isinstance(made.graph.initializers["w1_blocks"].const_value, ir.LazyTensor)
    assert "snr" not in records["first"].numbers
    stored(made)
    assert float(records["first"].numbers["snr"]) > 15


def test_a_way_is_measured_and_the_error_of_rounding_is_stated() -> None:
    made = models.model(NETWORK)
    records = run(made, Context(runtime=OnnxRuntime()), **ALWAYS)
    for record in records.values():
        assert record.changed
        assert float(record.numbers["ratio_low"]) <= float(record.numbers["ratio"])
        if "rounded" in record.what:
            assert 1e-4 < float(record.numbers["error"]) < 0.01


def test_rounding_is_not_taken_where_it_makes_too_large_a_difference() -> None:
    context = Context(runtime=OnnxRuntime())
    made = models.model(NETWORK)
    records = run(made, context, max_error=1e-6, **ALWAYS)
    assert {record.what for record in records.values()} == {"in blocks of 4 bits, multiplied as floats"}
    assert not any("error" in record.numbers for record in records.values())
    records = run(models.model(NETWORK), context, max_error=1e-6, seconds=0, **ALWAYS)
    assert {record.what for record in records.values()} == {"in blocks of 4 bits, multiplied as floats"}


@pytest.mark.parametrize(
    "options", [{"activations": "int8"}, {"contrib": False}, {"contrib": False, "bits": 8}]
)
def test_a_product_stays_float_where_no_way_makes_a_small_enough_difference(
    options: dict[str, object],
) -> None:
    context = Context(runtime=OnnxRuntime())
    records = run(models.model(NETWORK), context, **options, **ALWAYS)
    assert all(1e-4 < float(record.numbers["error"]) < 0.01 for record in records.values())
    records = run(made := models.model(NETWORK), context, max_error=1e-6, **options, **ALWAYS)
    assert operators(made) == operators(models.model(NETWORK))
    assert {record.what for record in records.values()} == {
        "rounding its input makes a relative difference above 1e-06"
    }
    assert not any(record.changed for record in records.values())


def test_a_product_that_gets_slower_stays_float_and_the_record_says_by_how_much() -> None:
    made = models.model(NETWORK)
    # two bits multiplied as floats take many times as long
    records = run(made, Context(runtime=OnnxRuntime()), bits=2, activations="float", min_size=0)
    assert {record.what for record in records.values()} == {"not faster in blocks"}
    assert float(records["side"].numbers["ratio"]) > 1
    assert operators(made) == operators(models.model(NETWORK))


def test_products_see_the_rows_of_the_calibration_data() -> None:
    made = models.model(NETWORK)
    zeros = load_data([{"x": np.zeros((2, 3, 70), np.float32)}], made)
    records = run(made, Context(runtime=OnnxRuntime(), calibration=zeros), activations="int8", **ALWAYS)
    assert records["side"].numbers["error"] == 0


def test_what_stays_is_said_with_its_reason() -> None:
    text = """net (float[N, 64] x, float[64, N] u, float[2, N, 64] s) => (float[N, 8] y, float[N, 64] t,
        float[2, N, 64] st, float[N, 4] small, float[N, 8] sc, float[N, 64] c, float[64, 64] w)
    <float[64, 8] w1 = {}, float[64, 64] w = {}, float[2, 64, 64] w2 = {}, float[64, 4] w3 = {},
     float[64, 8] w4 = {},     float[64, 64] w5 = {}>
    {
        [turned] y = Gemm<transA = 1>(u, w1)
        [seen] t = MatMul(x, w)
        [stack] st = MatMul(s, w2)
        [few] small = MatMul(x, w3)
        [scaled] sc = Gemm<alpha = 2.0>(x, w4)
        [out] c = MatMul(x, w5)
    }"""
    records = run(models.model(text), exclude="out", when="always")
    assert {name: record.what for name, record in records.items()} == {
        "turned": "its input is transposed",
        "seen": "its weight is also read in another way",
        "stack": "its weight is no matrix",
        "few": "fewer than 1024 elements",
        "scaled": "its product is scaled by alpha",
        "out": "excluded",
    }


def test_a_shared_weight_is_stored_once_or_stays_for_all() -> None:
    text = """net (float[N, 64] x, float[64, 64] u) => (float[N, 64] y, float[N, 64] z) <float[64, 64] w = {}>
    { [one] a = MatMul(x, w) [two] y = MatMul(a, w) [three] z = GEMM }"""
    made = models.model(text.replace("GEMM", "Gemm(x, w)"))
    assert all(record.changed for record in run(made, **ALWAYS).values())
    assert [name for name in made.graph.initializers if name.endswith("blocks")] == ["w_blocks"]
    models.run(made, {**feeds((2, 64)), "u": np.ones((64, 64), np.float32)})
    records = run(models.model(text.replace("GEMM", "Gemm<transA = 1>(u, w)")), **ALWAYS)
    assert records["one"].what == "three, which shares its weight, must stay"


def test_a_second_run_is_idle() -> None:
    made = models.model(NETWORK)
    run(made, **ALWAYS)
    assert not run(made, **ALWAYS)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_portable_form_has_standard_operators_only(bits: int, symmetric: bool) -> None:
    made = models.model(NETWORK)
    after = clone(made)
    run(after, bits=bits, symmetric=symmetric, contrib=False, **ALWAYS)
    assert opset(after) >= 21
    assert {node.domain for node in after.graph} == {""}
    nbits = clone(made)
    run(nbits, bits=bits, symmetric=symmetric, activations="float", **ALWAYS)
    for expected, found in zip(models.run(nbits, feeds()), models.run(after, feeds()), strict=True):
        assert models.snr(expected, found) > 35  # onnxruntime rounds activations where it sees the pattern
    exact = Interpreter().prepare(after).run(feeds()), Interpreter().prepare(nbits).run(feeds())
    for found, expected in zip(*(each.values() for each in exact), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_products_stay_half_precision() -> None:
    weights: Mapping[str, np.ndarray] = {
        "w": np.random.default_rng(0).normal(0, 0.1, (64, 48)).astype(np.float16)
    }
    made = models.model("net (float16[N, 64] x) => (float16[N, 48] y) { y = MatMul(x, w) }", weights)
    after = clone(made)
    assert run(after, **ALWAYS)
    given = {"x": feeds((4, 64))["x"].astype(np.float16)}
    assert models.snr(models.run(made, given)[0], models.run(after, given)[0]) > 17


def test_weights_in_the_bodies_of_if_are_written_there() -> None:
    made = models.model(
        """net (float[N, 32] x, bool which) => (float[N, 32] y) <float[32, 32] shared = {}>
        {
            y = If(which) <
                then_branch = g () => (float[N, 32] p) { p = MatMul(x, shared) },
                else_branch = h () => (float[N, 32] q) <float[32, 32] own = {}> { q = MatMul(x, own) }
            >
        }"""
    )
    after = clone(made)
    assert len([record for record in run(after, bits=8, **ALWAYS).values() if record.changed]) == 2
    for which in (True, False):
        given = {**feeds((3, 32)), "which": np.array(which)}
        assert models.snr(models.run(made, given)[0], models.run(after, given)[0]) > 30


def test_refuses_what_can_not_be() -> None:
    with pytest.raises(
        UsageError, match="quant-blocks: option bits is 2 with contrib=false, expected 4 or 8"
    ):
        run(models.model(NETWORK), bits=2, contrib=False)
    with pytest.raises(UsageError, match="option activations is int8 with contrib=false, expected float"):
        run(models.model(NETWORK), activations="int8", contrib=False)
    with pytest.raises(UsageError, match="quant-blocks: when=faster needs a runtime"):
        run(models.model(NETWORK))
    made = models.model(
        "net (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w = {}> { y = MatMul(x, w) }"
    )
    made.graph.initializers["w"].const_value = ir.tensor(np.full((64, 64), np.nan, np.float32), name="w")
    run(made, **ALWAYS)
    for name in ("w_blocks", "w_scales"):
        with pytest.raises(CompressError, match="w: the weight holds NaN or infinity"):
            made.graph.initializers[name].const_value.numpy()


def test_the_transformer_keeps_its_accuracy_and_gets_smaller(tmp_path: Path) -> None:
    path, out = TESTDATA / "transformer_digits.onnx", tmp_path / "out.onnx"
    result = compress(
        path,
        "quant-blocks(when=always),encode",
        data=TESTDATA / "digits_calib.npz",
        evaluation=TESTDATA / "digits_test.npz",
        output=out,
        measure_latency=False,
    )
    assert result.report.evaluation is not None
    assert result.report.evaluation.top1 is not None
    before, after = result.report.evaluation.top1
    assert after >= before - 0.01
    assert out.stat().st_size < 0.45 * path.stat().st_size
    onnxruntime.InferenceSession(out)


def test_a_model_with_external_data_goes_through(tmp_path: Path) -> None:
    made = models.model(
        "net (float[N, 512] x) => (float[N, 600] y) <float[512, 600] w = {}> { y = MatMul(x, w) }"
    )
    save(made, tmp_path / "in.onnx", external_data=True)
    read = load(tmp_path / "in.onnx")
    run(read, **ALWAYS)
    save(read, tmp_path / "out.onnx", external_data=True)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    (found,) = session.run(None, feeds((2, 512)))
    assert models.snr(models.run(made, feeds((2, 512)))[0], found) > 17
