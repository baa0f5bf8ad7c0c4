import gc
import weakref
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import load, save
from onnxcompress.runtimes import Interpreter, OnnxRuntime, interpreter

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))


def parse(text: str, imports: str = '"" : 17', functions: str = "") -> ir.Model:
    return ir.from_onnx_text(f"<ir_version: 8, opset_import: [{imports}]> {text} {functions}")


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def agree(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check that both runtimes compute the same; return it."""
    expected = OnnxRuntime(threads=1).prepare(model).run(feeds)
    found = Interpreter().prepare(model).run(feeds)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    return found


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_models_give_what_onnxruntime_gives(name: str, batch: int) -> None:
    model = load(TESTDATA / f"{name}.onnx")
    agree(model, next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=batch))))


def test_a_value_is_forgotten_after_its_last_use() -> None:
    steps = 20
    chain = " ".join(f"v{i + 1} = Add(v{i}, v{i})" for i in range(steps))
    model = parse(f"g (float[N] v0) => (float[N] v{steps}) {{ {chain} }}")
    made: list[weakref.ref[np.ndarray]] = []
    alive = []

    def watch(node: ir.Node, inputs: object, outputs: list[np.ndarray]) -> None:
        made.append(weakref.ref(outputs[0]))
        alive.append(sum(each() is not None for each in made))

    Interpreter(hooks=(watch,)).prepare(model).run({"v0": floats(1, 2)})
    gc.collect()
    assert len(alive) == steps
    assert max(alive) == 2  # a node's input and its output


def test_a_value_that_is_read_again_later_is_kept() -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Neg(x) b = Exp(a) c = Add(b, x) y = Add(c, a) }")
    agree(model, {"x": floats(1, 2)})


def test_a_weight_is_read_when_needed_and_once_a_run() -> None:
    model = parse("g (float[N] x) => (float[N] y) <float w = {2}> { a = Mul(x, w) y = Mul(a, w) }")
    reads = []

    def read() -> ir.Tensor:
        reads.append(1)
        return ir.tensor(np.float32(3))

    model.graph.initializers["w"].const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([]))
    runnable = Interpreter().prepare(model)
    assert not reads
    assert runnable.run({"x": floats(1)})["y"] == 9
    assert len(reads) == 1


def test_nodes_that_no_output_needs_are_not_run() -> None:
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) unused = Exp(x) }")
    ran = []
    Interpreter(hooks=(lambda node, inputs, outputs: ran.append(node.op_type),)).prepare(model).run(
        {"x": floats(1)}
    )
    assert ran == ["Neg"]


def test_hooks_see_nodes_of_subgraphs_and_functions_before_those_that_run_them() -> None:
    model = parse(
        """g (float[N] x, bool c) => (float[N] y) {
               a = If(c)<then_branch = t () => (float[N] p) { p = local.twice(x) },
                         else_branch = e () => (float[N] q) { q = Neg(x) }>
               y = Clip(a, , a)
           }""",
        '"" : 17, "local" : 1',
        '<domain: "local", opset_import: ["" : 17]> twice (v) => (w) { w = Add(v, v) }',
    )
    seen = []
    runnable = Interpreter(hooks=(lambda node, *values: seen.append((node.op_type, *values)),)).prepare(model)
    runnable.run({"x": np.float32([2]), "c": np.array(True)})
    assert [op for op, _, _ in seen] == ["Add", "twice", "If", "Clip"]
    assert [[None if each is None else each.tolist() for each in inputs] for _, inputs, _ in seen] == [
        [[2], [2]],
        [[2]],
        [True],
        [[4], None, [4]],
    ]
    assert [outputs[0].tolist() for _, _, outputs in seen] == [[4], [4], [4], [4]]


BRANCHES = """g (float[N] x, bool c) => (float[N] y) {
    a = Neg(x)
    b = Exp(x)
    r = If(c)<
        then_branch = t () => (float[N] p) <float k = {2}> { s = Add(a, x) p = Mul(s, k) },
        else_branch = e () => (float[N] q) { q = If(d)<
            then_branch = tt () => (float[N] pp) { pp = Mul(b, a) },
            else_branch = ee () => (float[N] qq) { qq = Identity(b) }> }>
    y = Add(r, r)
}"""


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_branches_read_values_of_the_graphs_around_them(condition: bool, inner: bool) -> None:
    model = parse(BRANCHES.replace("bool c)", "bool c, bool d)"))
    agree(model, {"x": floats(1, 2), "c": np.array(condition), "d": np.array(inner)})


LOOP = """g (float[N] x, int64 m, bool go) => (float[N] last, float[k, N] all, int64[k] turns) {
    f = Neg(x)
    last, all, turns = Loop(m, go, x)<body = b (int64 i, bool c, float[N] s) =>
        (bool d, float[N] t, float[N] u, int64 j) {
            t = Add(s, f)
            u = Mul(t, x)
            j = Identity(i)
            n = ReduceMax<keepdims = 0>(t)
            low = Constant<value_float = -3.0>()
            d = Greater(n, low)
        }>
}"""


@pytest.mark.parametrize(("limit", "go"), [(3, True), (50, True), (0, True), (5, False), (1, True)])
def test_a_loop_ends_by_count_or_condition_and_stacks_what_it_scans(limit: int, go: bool) -> None:
    feeds = {"x": floats(1, 2), "m": np.array(limit), "go": np.array(go)}
    found = agree(parse(LOOP), feeds)
    assert found["turns"].tolist() == list(range({3: 3, 50: 4, 0: 0, 5: 0, 1: 1}[limit]))


@pytest.mark.parametrize("given", ["m, ", ", yes", ", "], ids=["count", "condition", "neither"])
def test_a_loop_needs_neither_count_nor_condition(given: str) -> None:
    body = "b (int64 i, bool c, float[N] s) => (bool d, float[N] t) { t = Add(s, s) d = Less(i, k) }"
    weights = "<int64 m = {4}, int64 k = {2}, bool yes = {1}>"
    model = parse(f"g (float[N] x) => (float[N] y) {weights} {{ y = Loop({given}, x)<body = {body}> }}")
    assert agree(model, {"x": floats(1)})["y"] == 8


SCAN = """g (float[2] s, float[3, 2] x, float[2, 3] z) => (float[2] last, float[A, B] all, float[C, D] more) {
    last, all, more = Scan<num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [0, 1],
                           scan_output_axes = [0, 1], scan_output_directions = [1, 0],
                           body = b (float[2] a, float[2] p, float[2] q) =>
                               (float[2] c, float[2] d, float[2] e) {
                                   c = Add(a, p) d = Mul(c, q) e = Sub(d, a) }>(s, x, z)
}"""


def test_a_scan_goes_along_any_axis_in_any_direction() -> None:
    rng = np.random.default_rng(0)
    shapes = {"s": (2,), "x": (3, 2), "z": (2, 3)}
    agree(parse(SCAN), {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def test_the_scan_of_opset_8_is_refused() -> None:
    with pytest.raises(CompressError, match=r"interpreter: last \(Scan\): opset 8 had another Scan"):
        Interpreter().prepare(parse(SCAN, '"" : 8'))


FUNCTIONS = """
<domain: "local", opset_import: ["" : 17, "local" : 1]>
scaled <by: float = 3.0, axis> (x, s) => (y) {
    w = local.power<of = @by>(x) c = Concat<axis = @axis>(w, s) y = Neg(c)
}
<domain: "local", opset_import: ["" : 17]>
power <of> (x) => (y) { e = Constant<value_float = @of>() y = Pow(x, e) }
<domain: "local", opset_import: ["" : 17]>
clipped (x, low, high) => (y) { y = Clip(x, low, high) }
"""


@pytest.mark.parametrize(("call", "value"), [("by = 2.0, ", 4), ("", 8)])
def test_functions_take_the_attributes_of_their_call_or_their_defaults(call: str, value: float) -> None:
    text = f"g (float[N] x) => (float[M] y) {{ y = local.scaled<{call}axis = 0>(x, x) }}"
    model = parse(text, '"" : 17, "local" : 1', FUNCTIONS)
    assert agree(model, {"x": floats(2)})["y"].tolist() == [-value, -2]


def test_each_call_of_a_function_has_its_own_attributes() -> None:
    text = """g (float[N] x) => (float[N] y) {
        a = local.power<of = 2.0>(x) b = local.power<of = 3.0>(x) y = Sub(b, a) }"""
    assert agree(parse(text, '"" : 17, "local" : 1', FUNCTIONS), {"x": floats(2)})["y"] == 4


def test_calls_of_a_function_without_attributes_keep_their_values_apart() -> None:
    text = """g (float[N] x) => (float[N] y, float[N] z) {
        a = local.outer(x) y = local.outer(a) z = local.inner(x) }"""
    functions = """
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        outer (x) => (y) { a = local.inner(x) b = local.inner(a) y = Sub(b, x) }
        <domain: "local", opset_import: ["" : 17]>
        inner (x) => (y) { a = Add(x, x) y = Mul(a, x) }"""
    found = agree(parse(text, '"" : 17, "local" : 1', functions), {"x": floats(1, 2)})
    assert found["y"] == pytest.approx([8 * 7**4 - 7, 8 * 126**4 - 126])


def test_a_function_may_be_called_without_its_last_inputs() -> None:
    text = "g (float[N] x, float l) => (float[N] y) { y = local.clipped(x, l) }"
    model = parse(text, '"" : 17, "local" : 1', FUNCTIONS)
    found = Interpreter().prepare(model).run({"x": floats(-5, 5), "l": np.float32(0)})
    assert found["y"].tolist() == [0, 5]


def test_a_functions_nodes_have_the_opset_of_the_function() -> None:
    function = '<domain: "local", opset_import: ["" : 11]> f (x) => (y) { y = Softmax(x) }'
    model = parse(
        "g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = local.f(x) }", '"" : 17, "local" : 1', function
    )
    found = Interpreter().prepare(model).run({"x": np.zeros((2, 3, 4), np.float32)})
    assert found["y"] == pytest.approx(1 / 12)


def test_a_kernel_goes_before_the_function_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N] x) => (float[N] y) { y = local.power<of = 2.0>(x) }"
    model = parse(text, '"" : 17, "local" : 1', FUNCTIONS)
    monkeypatch.setitem(
        interpreter.KERNELS,
        ("local", "power"),
        lambda node, inputs, attributes: [inputs[0] * 0 + attributes["of"].as_float()],
    )
    assert Interpreter().prepare(model).run({"x": floats(5)})["y"] == 2


def test_sequences_pass_between_nodes() -> None:
    text = """g (float[N] x, float[M] z) => (float[K] y) {
        s = SequenceConstruct(x, z, x) y = ConcatFromSequence<axis = 0>(s) }"""
    assert agree(parse(text), {"x": floats(1), "z": floats(2, 3)})["y"].tolist() == [1, 2, 3, 1]


def test_a_sequence_as_an_output_is_refused() -> None:
    model = parse("g (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct(x, x) }")
    with pytest.raises(
        CompressError, match="interpreter: output y is a sequence or empty, expected a tensor"
    ):
        Interpreter().prepare(model).run({"x": floats(1)})


def test_any_values_can_be_asked_for() -> None:
    text = "g (float[N] x) => (float[N] y) <float w = {2}> { a = Mul(x, w) b = Exp(a) y = Neg(b) }"
    found = Interpreter().prepare(parse(text), ["a", "w", "x", "y"]).run({"x": floats(3)})
    assert {name: value.tolist() for name, value in found.items()} == {
        "a": [6],
        "w": 2,
        "x": [3],
        "y": [pytest.approx(-np.exp(6))],
    }


def test_only_what_is_asked_for_is_computed() -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Neg(x) y = Fooify(a) }")
    assert Interpreter().prepare(model, ["a"]).run({"x": floats(3)})["a"] == -3


def test_a_value_that_does_not_exist_is_refused() -> None:
    model = parse("g (float[N] x) => (float[N] y) { conv_out = Neg(x) y = Neg(conv_out) }")
    with pytest.raises(UsageError, match="the model has no value conv_ou; did you mean conv_out"):
        Interpreter().prepare(model, ["conv_ou"])


def test_a_file_with_external_data_runs(tmp_path: Path) -> None:
    model = load(TESTDATA / "lenet5_digits.onnx")
    save(model, tmp_path / "m.onnx", external_data=True)
    feeds = next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=2)))
    expected = Interpreter().prepare(model).run(feeds)
    for name, value in Interpreter().prepare(tmp_path / "m.onnx").run(feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_an_initializer_that_is_an_input_can_be_given_or_left() -> None:
    model = parse("g (float[N] x, float w) => (float[N] y) { y = Mul(x, w) }")
    value = model.graph.inputs[1]
    value.const_value = ir.tensor(np.float32(2), name="w")
    model.graph.register_initializer(value)
    runnable = Interpreter().prepare(model)
    assert runnable.run({"x": floats(3)})["y"] == 6
    assert runnable.run({"x": floats(3), "w": np.float32(5)})["y"] == 15


def test_the_model_and_the_feeds_stay_as_they_were() -> None:
    model = load(TESTDATA / "residual_digits.onnx")
    feeds = next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=2)))
    before = {name: value.copy() for name, value in feeds.items()}
    text = str(model)
    Interpreter().prepare(model).run(feeds)
    assert str(model) == text
    for name, value in feeds.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input x is missing, expected an array for it"),
        ({"x": np.zeros((2, 3), np.float32), "q": floats(1)}, "q is not an input of the model, expected x"),
        ({"x": np.zeros((2, 3))}, "input x is float64, expected float32"),
        ({"x": np.zeros((2, 4), np.float32)}, r"input x has shape 2x4, expected \?x3"),
        ({"x": floats(1)}, r"input x has shape 1, expected \?x3"),
    ],
    ids=["missing", "unknown", "type", "shape", "rank"],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, np.ndarray], message: str) -> None:
    runnable = Interpreter().prepare(parse("g (float[N, 3] x) => (float[N, 3] y) { y = Neg(x) }"))
    with pytest.raises(UsageError, match=f"^interpreter: {message}$"):
        runnable.run(feeds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = Fooify(x)", r"y \(Fooify\): opset 17: No registered schema for operator 'Fooify'"),
        ("y = other.Foo(x)", r"y \(Foo\): domain other is not among the opset imports"),
        ("y = Add(a, x) a = Neg(x)", r"y \(Add\): nothing before it computes a, expected a sorted graph"),
        ("a = Add(x, b) b = Neg(a) y = Neg(b)", r"a \(Add\): nothing before it computes b"),
        (
            "s = Constant<value_ints = [7]>() y = Reshape(x, s)",
            r"y \(Reshape\): cannot reshape array of size 2",
        ),
    ],
    ids=["operator", "domain", "order", "cycle", "failure"],
)
def test_what_can_not_run_is_named_in_one_line(text: str, message: str) -> None:
    model = parse(f"g (float[N] x) => (float[M] y) {{ {text} }}")
    with pytest.raises(CompressError, match=f"^interpreter: {message}") as caught:
        Interpreter().prepare(model).run({"x": floats(1, 2)})
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("interpreter:") == 1
