import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress import Context, compress
from onnxcompress.model import check, clone, load, signature, to_proto
from onnxcompress.passes import Simplify
from onnxcompress.passes.simplify import census
from onnxcompress.runtimes import OnnxRuntime
from onnxcompress.verify import compare

TEXT = """<ir_version: 8, opset_import: ["": 17]>
agraph (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[4] scale = {1, 2, 3, 4}, float[4] shift = {1, 1, 1, 1}, float[4] mean = {0, 0.5, 0, 1},
 float[4] variance = {1, 2, 1, 2}, float[1] one = {1}, float[4] twin = {1, 1, 1, 1}>
{
    [convolve] c = Conv<pads=[1,1,1,1]>(x, w)
    [normalise] b = BatchNormalization(c, scale, shift, mean, variance)
    [nothing] i = Identity(b)
    [two] two = Add(one, one)
    [doubled] d = Mul(i, two)
    [activate] y = Relu(d)
    [unused] z = Tanh(d)
    [unread] t = Mul(twin, twin)
}"""


def model() -> ir.Model:
    made = ir.from_onnx_text(TEXT)
    weight = made.graph.node("convolve").inputs[1]
    assert weight is not None
    array = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight.const_value = ir.tensor(array, name="w")
    weight.shape, weight.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
    made.graph.initializers["w"] = weight
    return made


def same(before: ir.Model, after: ir.Model) -> bool:
    feeds = [{"x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}]
    return compare(OnnxRuntime().prepare(before), OnnxRuntime().prepare(after), feeds).exact


def test_folds_constants_and_normalisation_and_drops_what_is_unused() -> None:
    made = model()
    before = clone(made)
    result = Simplify().call(made, Context())
    kinds = census(made)
    assert result.modified
    assert kinds["BatchNormalization"] == kinds["Identity"] == kinds["Tanh"] == kinds["Add"] == 0
    assert kinds["Conv"] == kinds["Relu"] == 1
    assert signature(made) == signature(before)
    assert same(before, made)


def test_says_how_many_nodes_of_each_kind_there_were_and_are() -> None:
    records = {record.layer: record for record in Simplify().call(model(), Context()).records}
    assert records["BatchNormalization"].numbers == {"before": 1, "after": 0}
    assert "Relu" not in records


def test_a_second_run_is_idle_and_says_so() -> None:
    made = model()
    Simplify().call(made, Context())
    text = to_proto(made).SerializeToString(deterministic=True)
    again = Simplify().call(made, Context())
    assert not again.modified
    assert [record.what for record in again.records] == ["nothing to simplify"]
    assert to_proto(made).SerializeToString(deterministic=True) == text


def test_folding_can_be_left_out() -> None:
    made = model()
    result = Simplify(fold=False).call(made, Context())
    assert census(made)["BatchNormalization"] == 1
    assert census(made)["Identity"] == census(made)["Tanh"] == 0
    assert any(record.what == "folding is switched off" for record in result.records)


def test_constants_that_are_cheap_to_compute_are_not_stored() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    agraph (float[300, 300] x) => (float[300, 300] y) <int64[2] size = {300, 300}>
    { zeros = ConstantOfShape(size) y = Max(x, zeros) }"""
    before = ir.from_onnx_text(text)
    result = compress(before, "simplify", measure_latency=False)
    assert to_proto(result.model).ByteSize() < 2000


def test_random_nodes_stay_random() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    agraph (float[4] x) => (float[4] y)
    { a = RandomNormal<shape=[4]>() b = RandomNormal<shape=[4]>() c = Sub(a, b) y = Add(x, c) }"""
    made = ir.from_onnx_text(text)
    Simplify().call(made, Context())
    assert census(made)["RandomNormal"] == 2


def test_subgraphs_and_what_they_capture_survive() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    agraph (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}>
    {
        y = If(c) <then_branch = t () => (float[2] a) { i = Identity(w) a = Add(i, x) },
                   else_branch = e () => (float[2] b) { b = Mul(w, x) }>
    }"""
    made = ir.from_onnx_text(text)
    before = clone(made)
    Simplify().call(made, Context())
    for flag in (True, False):
        feeds = [{"c": np.array(flag), "x": np.float32([3, 4])}]
        assert compare(OnnxRuntime().prepare(before), OnnxRuntime().prepare(made), feeds).exact


@pytest.mark.parametrize("kept", [True, False])
def test_an_overridable_initializer_stays_one(kept: bool) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    agraph (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}, float[2] v = {1, 2}>
    { a = Mul(x, w) y = Add(a, v) }"""
    made = load(to_proto(ir.from_onnx_text(text)))
    if not kept:
        made.graph.inputs.pop()
    Simplify().call(made, Context())
    runnable = OnnxRuntime().prepare(made)
    x, ones = np.float32([3, 4]), np.float32([1, 1])
    feeds = {"x": x, "w": ones} if kept else {"x": x}
    np.testing.assert_array_equal(
        runnable.run(feeds)["y"], np.float32([4, 6]) if kept else np.float32([4, 10])
    )


KEPT = {  # models in which an Identity, or one output of two, must stay: after clean-up, and their feeds
    "an outer value returned by both branches": """net (float[2] x, bool c) => (float[2] y)
    {
        h = Relu(x)
        y = If(c) <then_branch = a () => (float[2] p) { p = Identity(h) },
                   else_branch = b () => (float[2] q) { q = Identity(h) }>
    }""",
    "an outer value returned by one branch": """net (float[2] x, bool c) => (float[2] y)
    {
        h = Relu(x)
        y = If(c) <then_branch = a () => (float[2] p) { p = Identity(h) },
                   else_branch = b () => (float[2] q) { q = Neg(x) }>
    }""",
    "a value that is two outputs": """net (float[2] x) => (float[2] y, float[2] z)
    { y = Relu(x) z = Identity(y) }""",
    "an input that is an output": "net (float[2] x) => (float[2] y) { y = Identity(x) }",
    "what a loop carries": """net (float[2] x, int64 n, bool c) => (float[2] y)
    {
        y = Loop(n, c, x) <body = b (int64 i, bool d, float[2] s) => (bool e, float[2] t)
            { e = Identity(d) t = Identity(s) }>
    }""",
    "an output that is computed twice": """net (float[2] x) => (float[2] y, float[2] z)
    { a = Relu(x) z = Neg(a) y = Relu(x) }""",
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_a_model_returns_stays(text: str, fold: bool) -> None:
    made = models.model(text)
    before = clone(made)
    Simplify(fold=fold).call(made, Context())
    assert signature(made) == signature(before)
    feeds = {"x": np.float32([-1, 2]), "c": np.array(True), "n": np.array(3)}
    given = {port.name: feeds[port.name] for port in signature(before).inputs}
    for expected, found in zip(models.run(before, given), models.run(made, given), strict=True):
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize("fold", [True, False])
def test_what_an_identity_declares_does_not_narrow_an_input(fold: bool) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N] x) => (float[M] y) { i = Identity(x) y = Relu(i) }"""
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.FLOAT, [3]))
    made = load(proto)
    before = signature(made)
    Simplify(fold=fold).call(made, Context())
    assert signature(made) == before
    assert census(made)["Identity"] == 0


def test_bernoulli_draws_twice_where_it_stands_twice() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[2] x) => (float[2] y) { a = Bernoulli(x) b = Bernoulli(x) y = Sub(a, b) }"""
    )
    Simplify().call(made, Context())
    assert census(made)["Bernoulli"] == 2


@pytest.mark.parametrize(
    "arrays",
    [
        [np.zeros((2, 3), np.float32).T] * 2,
        [np.array([["a", "b"]] * 3, object)] * 2,
        [np.full((3, 2), 7, np.int64)] * 2,
    ],
    ids=["turned", "strings", "integers"],
)
def test_equal_initializers_of_any_kind_are_merged(arrays: list[np.ndarray]) -> None:
    kind = {"O": "string", "f": "float", "i": "int64"}[arrays[0].dtype.kind]
    made = models.model(
        f"net ({kind}[3, 2] x) => (bool[3, 2] y) {{ a = Equal(x, u) b = Equal(x, v) y = And(a, b) }}".replace(
            "net", '<ir_version: 10, opset_import: ["": 19]> net'
        ),
        {"u": arrays[0], "v": arrays[1]},
    )
    if kind == "float":
        for name, array in zip("uv", arrays, strict=True):
            made.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    Simplify(fold=False).call(made, Context())
    check(made)
    assert list(made.graph.initializers) == ["u"]


def test_weights_stored_as_integers_are_not_made_floats_again() -> None:
    made = compress(model(), "quant(min_size=1)", measure_latency=False).model
    size = to_proto(made).ByteSize()
    result = Simplify().call(made, Context())
    assert to_proto(made).ByteSize() <= size
    assert any("stored as integers" in record.what for record in result.records)
