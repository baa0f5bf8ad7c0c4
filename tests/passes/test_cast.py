from collections.abc import Mapping
from pathlib import Path

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress import compress
from onnxcompress.base import Context, Record
from onnxcompress.data import Data, load_data
from onnxcompress.errors import UsageError
from onnxcompress.model import clone, load, save, signature, to_proto
from onnxcompress.passes import Cast
from onnxcompress.runtimes import Interpreter, OnnxRuntime

NETWORK = """net (float[N, 3, 8, 8] x) => (float[N, 10] y, float[N, 16, 8, 8] r)
<float[16, 3, 3, 3] w1 = {}, float[16] b1 = {}, float[10, 1024] w2 = {}>
{
    [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    [act] r = Relu(a)
    [flat] f = Flatten(r)
    [last] y = Gemm<transB = 1>(f, w2)
}"""
SMALL = {"min_size": 0}


def feeds(dims: tuple[int, ...] = (2, 3, 8, 8)) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(8).standard_normal(dims).astype(np.float32)}


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Cast(**options).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def whole(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    return run(made, context, scope="model", **options)


def said(records: Mapping[str, Record]) -> dict[str, str]:
    return {name: record.what for name, record in records.items()}


def with_data(made: ir.Model, *samples: dict[str, np.ndarray]) -> Context:
    data: Data = load_data(list(samples), made)
    return Context(calibration=data, runtime=OnnxRuntime())


def kinds(made: ir.Model) -> dict[str | None, ir.DataType | None]:
    return {value.name: value.dtype for node in made.graph for value in node.outputs}


def operators(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def agree(made: ir.Model, after: ir.Model, given: Mapping[str, np.ndarray], floor: float) -> None:
    for expected, found in zip(models.run(made, given), models.run(after, given), strict=True):
        assert models.snr(expected, found) > floor


@pytest.mark.parametrize(("to", "floor"), [("float16", 60), ("bfloat16", 40)])
def test_weights_are_stored_in_half_the_room_and_cast_back_when_the_engine_loads(
    to: str, floor: float, tmp_path: Path
) -> None:
    made = models.model(NETWORK)
    after = clone(made)
    assert said(run(after, to=to)) == {
        "w1": f"stored as {to}",
        "b1": "fewer than 256 elements",
        "w2": f"stored as {to}",
    }
    assert signature(after) == signature(made)
    assert {"w1", "w2"} <= {value.name for node in after.graph for value in node.outputs}
    agree(made, after, feeds(), floor)
    for expected, found in zip(
        models.run(after, feeds()), Interpreter().prepare(after).run(feeds()).values(), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert models.operators(after, tmp_path) == models.operators(made, tmp_path)
    for model, name in ((made, "before"), (after, "after")):
        save(model, tmp_path / name)
    assert (tmp_path / "after").stat().st_size < 0.6 * (tmp_path / "before").stat().st_size


def test_what_is_kept_of_a_weight_is_told_when_it_is_written() -> None:
    made = models.model(NETWORK)
    records = run(made)
    assert "snr" not in records["w2"].numbers
    to_proto(made)
    assert 60 < float(records["w2"].numbers["snr"]) < 90


def test_constants_that_need_all_their_digits_stay_and_the_reason_is_said() -> None:
    arrays = {
        "huge": np.full(300, 1e5, np.float32),
        "tiny": np.full(300, 1e-6, np.float32),
        "odd": np.full(300, np.nan, np.float32),
        "masked": np.full(300, -np.inf, np.float32),
        "counted": np.arange(3000, 3300, dtype=np.float32),
    }
    made = models.model(
        """net (float[300] x) => (float[300] y, float[300] out, int64[300] c) <float[300] out = {}>
        { a = Add(x, huge) b = Mul(a, tiny) d = Max(b, masked) e = Sum(d, odd) y = Add(e, out)
          c = Cast<to = 7>(counted) }""",
        arrays,
    )
    assert said(run(made)) == {
        "out": "an output of its graph",
        "huge": "its numbers go beyond float16",
        "tiny": "its numbers are too small for float16",
        "odd": "it holds NaN",
        "masked": "stored as float16",
        "counted": "Cast: whole numbers above 2,048 need more digits",
    }
    assert {"huge", "tiny"} <= {name for name, record in run(made, to="bfloat16").items() if record.changed}


def test_bfloat16_does_not_round_the_largest_number_to_infinity() -> None:
    arrays = {"lowest": np.full(300, np.finfo(np.float32).min)}
    made = models.model("net (float[300] x) => (float[300] y) { y = Max(x, lowest) }", arrays)
    assert said(run(made, to="bfloat16")) == {"lowest": "its numbers go beyond bfloat16"}


def test_excluded_weights_and_nodes_stay() -> None:
    for exclude in ("last", "w2"):
        assert said(run(models.model(NETWORK), exclude=exclude))["w2"] == "excluded"
    made = models.model(NETWORK)
    assert said(whole(made, exclude="last"))["last"] == "excluded"
    assert kinds(made)["y"] == ir.DataType.FLOAT
    unnamed = models.model(NETWORK.replace("[first] ", ""))
    assert said(whole(unnamed, Context(exclude=("a",))))["a"] == "excluded"


def test_a_whole_model_computes_with_float16_between_one_cast_in_and_one_out() -> None:
    made = models.model(NETWORK)
    after = clone(made)
    records = whole(after)
    assert set(said(records).values()) == {"computes with float16"}
    assert signature(after) == signature(made)
    assert operators(after) == ["Cast", "Conv", "Relu", "Cast", "Flatten", "Gemm", "Cast"]
    assert kinds(after)["a"] == kinds(after)["f"] == ir.DataType.FLOAT16
    assert kinds(after)["r"] == kinds(after)["y"] == ir.DataType.FLOAT
    assert {value.dtype for value in after.graph.initializers.values()} == {ir.DataType.FLOAT16}
    agree(made, after, feeds(), 55)
    for expected, found in zip(
        models.run(made, feeds()), Interpreter().prepare(after).run(feeds()).values(), strict=True
    ):
        assert models.snr(expected, found) > 50


def test_casts_that_are_there_already_cancel() -> None:
    made = models.model(
        """net (float16[N, 8] x) => (float16[N, 8] y, int64[N, 8] z)
        { c = Cast<to = 1>(x) a = Relu(c) y = Cast<to = 10>(a) z = Cast<to = 7>(a) }"""
    )
    after = clone(made)
    whole(after)
    assert operators(after) == ["Relu", "Cast", "Cast"]
    given = {"x": feeds((3, 8))["x"].astype(np.float16)}
    for expected, found in zip(models.run(made, given), models.run(after, given), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_constant_that_several_nodes_read_is_stored_once() -> None:
    text = """net (float[N, 32] x) => (float[N, 32] y) <float[32, 32] w = {}>
    { [one] a = MatMul(x, w) [two] b = MatMul(a, w) [three] y = MatMul(b, w) }"""
    made = models.model(text)
    whole(made)
    assert [value.dtype for value in made.graph.initializers.values()] == [ir.DataType.FLOAT16]
    mixed = models.model(text)
    whole(mixed, exclude="two")
    assert [value.dtype for value in mixed.graph.initializers.values()] == [ir.DataType.FLOAT]
    assert operators(mixed).count("Cast") == 5  # x, w, a and b there and back, y
    agree(models.model(text), mixed, feeds((4, 32)), 50)


def test_numbers_that_calibration_data_show_to_leave_the_range_stay_float32() -> None:
    made = models.model(
        """net (float[N, 8] x) => (float[N, 8] y, float[N, 8] z) <float big = {300}, float small = {0.001}>
        { [up] a = Mul(x, big) [square] b = Mul(a, a) [root] c = Sqrt(b) [fine] y = Relu(c)
          [down] d = Mul(x, small) [less] e = Mul(d, d) [more] z = Sqrt(e) }"""
    )
    given = {"x": np.random.default_rng(0).uniform(1, 4, (6, 8)).astype(np.float32)}
    blind = clone(made)
    whole(blind)
    with np.errstate(over="ignore"):
        assert not np.isfinite(Interpreter().prepare(blind).run(given)["y"]).all()
    after = clone(made)
    records = whole(after, with_data(made, given))
    assert said(records) == {
        "up": "computes with float16",
        "square": "its numbers go beyond float16",
        "root": "its numbers go beyond float16",
        "fine": "computes with float16",
        "down": "computes with float16",
        "less": "its numbers are too small for float16",
        "more": "its numbers are too small for float16",
    }
    assert float(records["square"].numbers["largest"]) > 65504
    agree(made, after, given, 50)


def test_operators_known_to_leave_the_range_stay_without_data_and_go_with_them() -> None:
    made = models.model("net (float[N, 8] x) => (float[N, 8] y) { [grow] a = Exp(x) y = Relu(a) }")
    assert said(whole(clone(made)))["grow"] == "it grows beyond float16"
    assert whole(clone(made), with_data(made, feeds((2, 8))))["grow"].changed


def test_a_mean_over_many_numbers_does_not_overflow_on_the_way() -> None:
    # github.com/microsoft/onnxconverter-common/issues/323
    made = models.model(
        """net (float[1, 3, 512, 512] x) => (float[1, 3, 1, 1] y)
        { [act] a = Relu(x) [mean] y = ReduceMean<axes = [2, 3]>(a) }"""
    )
    given = {"x": np.random.default_rng(0).uniform(0, 3, (1, 3, 512, 512)).astype(np.float32)}
    after = clone(made)
    assert said(whole(after, with_data(made, given))) == {
        "act": "computes with float16",
        "mean": "it sums up on the way, beyond what it returns",
    }
    agree(made, after, given, 60)


POSITIONS = {
    "Resize": """(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y)
        <float[4] scales = {1, 1, 2, 2}> { a = Relu(x) b = Resize(a, , scales) y = Neg(b) }""",
    "TopK": """(float[4, 9] x) => (float[4, 3] y) <int64[1] k = {3}>
        { a = Neg(x) b, i = TopK(a, k) y = Neg(b) }""",
    "NonMaxSuppression": """(float[1, 3, 4] x, float[1, 1, 3] s) => (int64[n, 3] y)
        <int64[1] m = {3}, float[1] t = {0.5}> { a = Abs(x) y = NonMaxSuppression(a, s, m, t) }""",
    "Range": """(float[1] x) => (float[n] y) <float first = {0}, float step = {1}>
        { c = Squeeze(x) a = Abs(c) b = Range(first, a, step) y = Neg(b) }""",
    "RandomUniformLike": """(float[4, 9] x) => (float[4, 9] y)
        { a = Relu(x) b = RandomUniformLike(a) c = Mul(b, zero) y = Add(c, a) }""",
    "CumSum": """(float[4, 9] x) => (float[4, 9] y) <int64 k = {1}>
        { a = Relu(x) b = CumSum(a, k) y = Neg(b) }""",
    "ScatterND": """(float[4, 9] x) => (float[4, 9] y) <int64[1, 1] i = {2}, float[1, 9] u = {}>
        { a = Relu(x) b = ScatterND<reduction = "add">(a, i, u) y = Neg(b) }""",
    "LSTM": """(float[3, 1, 4] x) => (float[3, 1, 1, 5] y) <float[1, 20, 4] w = {}, float[1, 20, 5] r = {}>
        { a = Relu(x) b = LSTM<hidden_size = 5>(a, w, r) y = Neg(b) }""",
    "Constant": """(float[4, 9] x) => (float[4, 9] y)
        { a = Relu(x) c = Constant<value_floats = [0.5]>() b = Mul(a, c) y = Neg(b) }""",
}


@pytest.mark.parametrize("name", POSITIONS)
def test_what_engines_do_not_take_in_float16_stays_and_the_model_is_valid(name: str) -> None:
    # github.com/microsoft/onnxconverter-common/issues/208, for Casts in order and Resize
    header = '<ir_version: 8, opset_import: ["": 18]>\n net '
    made = models.model(header + POSITIONS[name], {"zero": np.zeros((1,), np.float32)})
    draw = np.random.default_rng(1)
    given = {
        value.name or "": draw.uniform(1, 9, [int(size) for size in value.shape or ()]).astype(np.float32)
        for value in made.graph.inputs
    }
    after = clone(made)
    records = whole(after)
    assert any(record.changed for record in records.values())
    assert signature(after) == signature(made)
    if name != "Constant":
        (kept,) = [node for node in after.graph if node.op_type == name]
        assert ir.DataType.FLOAT16 not in {value.dtype for value in (*kept.inputs, *kept.outputs) if value}
    agree(made, after, given, 50)


def test_bodies_of_if_and_loop_stay_and_see_float32() -> None:
    made = models.model(
        """net (float[N, 32] x, bool which) => (float[N, 32] y) <float[32, 32] shared = {}>
        {
            [before] a = MatMul(x, shared)
            [choice] b = If(which) <
                then_branch = g () => (float[N, 32] p) { p = MatMul(a, shared) },
                else_branch = h () => (float[N, 32] q) <float[32, 32] own = {}> { q = MatMul(a, own) }
            >
            [after] y = Neg(b)
        }"""
    )
    after = clone(made)
    assert said(whole(after)) == {
        "choice": "it has bodies, which stay",
        "before": "computes with float16",
        "after": "computes with float16",
    }
    stored = clone(made)
    assert all(record.changed for record in run(stored).values())
    for which in (True, False):
        given = {**feeds((3, 32)), "which": np.array(which)}
        agree(made, after, given, 50)
        agree(made, stored, given, 60)


def test_what_is_quantized_already_is_left_alone() -> None:
    made = models.model(
        """net (float[4, 6] x) => (float[4, 6] y) <float s = {0.05}, uint8 z = {128}, float[6, 6] w = {}>
        { [before] a = Neg(x) [q] b = QuantizeLinear(a, s, z) [d] c = DequantizeLinear(b, s, z)
          [product] e = MatMul(c, w) [after] y = Relu(e) }"""
    )
    assert said(whole(made)) == {
        "before": "quantized already",
        "q": "scales are float32",
        "d": "scales are float32",
        "product": "quantized already",
        "after": "computes with float16",
    }


def test_sequences_stay() -> None:
    made = models.model(
        """net (float[4, 6] x) => (float[4, 6] y)
        { [act] a = Relu(x) [cut] s = SplitToSequence<axis = 1>(a) [join] b = ConcatFromSequence<axis = 1>(s)
          [empty] e = SequenceEmpty<dtype = 1>() [more] t = SequenceInsert(e, a) [count] n = SequenceLength(t)
          [end] y = Neg(b) }"""
    )
    after = clone(made)
    records = whole(after)
    assert not any(records[name].changed for name in ("cut", "join", "more"))
    assert records["act"].changed
    agree(made, after, feeds((4, 6)), 60)


def test_weights_inside_functions_are_stored_there() -> None:
    made = load(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17, "own": 1]> net (float[N, 4] x) => (float[N, 4] y)
            { y = own.add(x) }
            <domain: "own", opset_import: ["": 17]> add (a) => (b)
            { w = Constant<value = float[1, 4] {0.1, 0.2, 0.3, 0.4}>() b = Add(a, w) }"""
        )
    )
    after = clone(made)
    assert said(run(after, **SMALL)) == {"w": "stored as float16"}
    agree(made, after, feeds((3, 4)), 60)


def test_a_weight_that_callers_may_override_stays_float32() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 9]> net (float[N, 4] x, float[4, 4] w) => (float[N, 4] y)
        <float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul(x, w) }"""
    )
    made = load(proto)
    after = clone(made)
    assert not run(after, **SMALL)
    whole(after)
    assert signature(after) == signature(made)
    assert after.graph.initializers["w"].dtype == ir.DataType.FLOAT
    agree(made, after, {**feeds((3, 4)), "w": np.eye(4, dtype=np.float32)}, 50)


@pytest.mark.parametrize("scope", ["weights", "model"])
def test_a_second_run_is_idle(scope: str) -> None:
    made = models.model(NETWORK)
    run(made, scope=scope)
    before = to_proto(made).SerializeToString()
    assert not any(record.changed for record in run(made, scope=scope).values())
    assert to_proto(made).SerializeToString() == before


def test_refuses_to_compute_with_bfloat16() -> None:
    with pytest.raises(UsageError, match="cast: option to is bfloat16 with scope=model, expected float16"):
        whole(models.model(NETWORK), to="bfloat16")


def test_a_file_goes_through_with_other_passes(tmp_path: Path) -> None:
    made = models.model(NETWORK)
    for recipe in ("quant-blocks(when=always, min_size=0),cast", "prune,cast,encode", "cast(scope=model)"):
        out = tmp_path / "out.onnx"
        result = compress(made, recipe, data=[feeds()], output=out, measure_latency=False)
        assert any(record.changed for step in result.report.steps for record in step.records)
        onnx.checker.check_model(out, full_check=True)
