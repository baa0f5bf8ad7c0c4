"""Models with encoded weights: what their products take, what is expanded all the same, and why."""

import tracemalloc
from collections.abc import Sequence
from functools import cache, reduce
from operator import add
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import model
from stored import agree, encoded, layer, normal, weight_of

from onnxcompress.base import Context
from onnxcompress.data import load_data
from onnxcompress.errors import CompressError
from onnxcompress.formats import DOMAIN, ENCODERS, FORMATS, Call, Weight
from onnxcompress.formats.base import Attributes, Coded
from onnxcompress.formats.elements import Tables
from onnxcompress.formats.storing import store
from onnxcompress.formats.unpack import ledger
from onnxcompress.layers import layers
from onnxcompress.model import SparseTensor, load
from onnxcompress.passes import Cluster, Encode, Prune, Quant
from onnxcompress.runtimes import Interpreter, OnnxRuntime, products
from onnxcompress.runtimes.counts import Counts

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))


def few_digits(made: ir.Model, count: int = 2) -> dict[str, np.ndarray]:
    return next(iter(load_data(TESTDATA / "digits_test.npz", made, batch=count)))


@cache
def small(name: str, how: str) -> ir.Model:
    """A model of testdata, made small and encoded."""
    made = load(TESTDATA / f"{name}.onnx")
    if how == "ternary":
        for each in layers(made, Context()):
            if each.refusal is None and each.linear:
                each.replace_weight(lambda w: np.sign(w) * (np.abs(w) > w.std()) * np.float32(w.std()))
    else:
        Prune(sparsity=0.8).call(made, Context())
        Cluster(bits=4).call(made, Context())
    Encode().call(made, Context())
    return made


@pytest.mark.parametrize("how", ["clustered", "ternary"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_give_what_they_give_expanded(name: str, how: str) -> None:
    made = small(name, how)
    feeds = few_digits(made)
    runnable = Interpreter().prepare(made)
    found, counts = runnable.run(feeds), runnable.counts
    for expected in (
        Interpreter(compressed=False).prepare(made).run(feeds),
        OnnxRuntime().prepare(made).run(feeds),
    ):
        for output, value in expected.items():
            np.testing.assert_allclose(found[output], value, rtol=1e-4, atol=1e-4)
    assert all("(Mul): reads it whole" in reason for reason in runnable.expanded.values())  # masks
    stored = [
        node
        for graph in made.graphs()
        for node in graph
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and any(value.producer() is not None and value.producer().domain == DOMAIN for value in node.inputs)
    ]
    assert stored
    assert len(counts) == len(stored) or len(list(made.graphs())) > 1  # of branches, one runs
    total = reduce(add, counts.values())
    assert total.multiply_adds < total.skipped
    if how == "ternary":
        assert total.look_ups == 0
        assert total.multiply_adds < total.adds


def test_a_run_counts_by_node_from_the_beginning_and_loops_add_up() -> None:
    made = layer("MatMul", "x w", weight_of("sparse, few", (64, 48), 1))
    assert encoded(made)
    runnable = Interpreter().prepare(made)
    assert runnable.counts == {}
    for batch in (3, 1):
        runnable.run({"x": normal((batch, 64))})
        (counts,) = runnable.counts.values()
        assert counts.multiply_adds + counts.skipped == batch * 64 * 48
    assert list(runnable.counts) == ["node (MatMul)"]


def test_bytes_are_those_of_the_file_values_apart_from_places() -> None:
    # 64 x 48 in 3,072 bits, at most 8 KB of values; a bit for each element, and a code of 3 bits for each
    # listed one and for zero, 8 of them in 3 bytes; a table of 4 values and zero
    weight = weight_of("sparse, few", (64, 48), 1)
    count = np.count_nonzero(weight)
    made = layer("MatMul", "x w", weight)
    texts = {encoded(layer("MatMul", "x w", weight), word="bitmask", pick=pick): pick for pick in range(20)}
    assert encoded(made, word="bitmask", pick=texts["Lookup(Bitmask(Unpack, Unpack))"])
    counts = agree(made, {"x": normal((5, 64))})["node (MatMul)"]
    assert counts.index_bytes == 64 * 48 // 8
    assert counts.weight_bytes == -(-(count + 1) // 8) * 3 + 5 * 4
    assert counts.activation_bytes == count * 5 * 4


def test_bytes_of_huffman_codes_are_those_of_the_ledger() -> None:
    made = layer("MatMul", "x w", weight_of("few", (256, 64), 1))
    value = made.graph.initializers["w"]
    assert value.const_value is not None
    (call,) = ENCODERS["codebook"].encode(Weight(value.const_value.numpy()))
    store(made, {value: call}, {}, 32)
    counts = agree(made, {"x": normal((1, 256))})["node (MatMul)"]
    assert counts.weight_bytes == next(row.bytes for row in ledger(made) if row.name == "w")
    assert counts.index_bytes == 0


def peak(made: ir.Model, x: np.ndarray, compressed: bool) -> int:
    """The most bytes that are taken at a time while a model is prepared and runs."""
    tracemalloc.start()
    try:
        Interpreter(compressed=compressed).prepare(made).run({"x": x})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("op", "shape", "x"),
    [("MatMul", (1024, 1024), (1, 1024)), ("Conv", (256, 256, 4, 4), (1, 256, 6, 6))],
)
@pytest.mark.parametrize("word", ["joint", "relative", "csr", "bitmask", "block"])
def test_no_array_of_the_dense_weights_size_is_made(
    op: str, shape: tuple[int, ...], x: tuple[int, ...], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LIMIT", 2**14)  # what is held at a time, however large the weight
    draw = np.random.default_rng(0)
    dense = np.zeros(shape, np.float32).reshape(-1, 16)
    places = draw.choice(len(dense), len(dense) // 40, replace=False)
    dense[places] = draw.choice([-1.5, 0.5, 0.7], (places.size, 16))
    if word == "bitmask":
        dense[draw.choice(len(dense), len(dense) // 8)] = 0.3
    made = layer(op, "x w", dense.reshape(shape))
    assert encoded(made, word=word)
    small, large = (peak(made, normal(x), compressed) for compressed in (True, False))
    assert small < dense.nbytes < large


SHARED = """g (float[N, 64] x, float[M, 64, 5, 5] z, bool c) => (float[N, 64] a, float[64, N] b,
        float[N, 64] d, float[M, 64, 5, 5] e, float[64, 64] f, float[N, 64] h) <float[64, 64] w = {}> {
    t = Transpose<perm = [1, 0]>(x)
    [first] a = MatMul(x, w)
    [second] b = MatMul(w, t)
    [third] d = Gemm<transB = 1, alpha = 0.5>(x, w)
    shape = Constant<value_ints = [64, 64, 1, 1]>()
    kernel = Reshape(w, shape)
    e = Conv(z, kernel)
    f = Neg(w)
    h = If(c)<then_branch = t1 () => (float[N, 64] p) { [inner] p = MatMul(x, w) },
              else_branch = t2 () => (float[N, 64] q) { [other] q = Gemm(x, w) }>
}"""


def put(made: ir.Model, name: str, weight: np.ndarray) -> None:
    """Put `weight` in the place of an initializer."""
    graph = next(each for each in made.graphs() if name in each.initializers)
    graph.initializers[name].const_value = ir.tensor(weight, name=name)


def test_a_weight_read_in_several_ways_is_expanded_only_for_those_that_need_it_whole() -> None:
    made = model(SHARED)
    put(made, "w", weight_of("sparse, few", (64, 64), 3))
    assert encoded(made)
    for branch, inner in ((True, "inner (MatMul)"), (False, "other (Gemm)")):
        feeds = {"x": normal((3, 64)), "z": normal((2, 64, 5, 5)), "c": np.array(branch)}
        counts = agree(made, feeds, products=4)
        assert list(counts) == ["first (MatMul)", "second (MatMul)", "third (Gemm)", inner]
    expanded = Interpreter().prepare(made).expanded
    assert set(expanded["w"].split("; ")) == {"kernel (Reshape): reads it whole", "f (Neg): reads it whole"}


def test_weights_of_branches_and_tied_weights_are_used_as_they_are_stored() -> None:
    text = """g (float[N, 64] x, bool c) => (float[N, 64] y) <float[64, 64] w1 = {}, float[64, 64] w2 = {}> {
        [first] a = MatMul(x, w1)
        [second] b = MatMul(a, w2)
        y = If(c)<then_branch = t1 () => (float[N, 64] p) <float[64, 64] w3 = {}> { [third] p = Gemm(b, w3) },
                  else_branch = t2 () => (float[N, 64] q) { q = Neg(b) }>
    }"""
    made = model(text)
    for name, seed in (("w1", 3), ("w2", 3), ("w3", 4)):
        put(made, name, weight_of("sparse, few", (64, 64), seed))
    Encode().call(made, Context())
    assert any(node.op_type == "Identity" for node in made.graph)
    counts = agree(made, {"x": normal((3, 64)), "c": np.array(True)}, products=3)
    assert list(counts) == ["first (MatMul)", "second (MatMul)", "third (Gemm)"]


def test_a_sparse_initializer_is_used_as_it_is() -> None:
    weight = weight_of("sparse", (64, 48), 1)
    for coordinates in (False, True):
        places = np.argwhere(weight) if coordinates else np.flatnonzero(weight)
        made = layer("MatMul", "x w", weight)
        values = ir.tensor(weight[weight != 0])
        made.graph.initializers["w"].const_value = SparseTensor(values, ir.tensor(places), (64, 48), name="w")
        counts = agree(made, {"x": normal((3, 64))})["node (MatMul)"]
        count = np.count_nonzero(weight)
        assert counts == Counts(
            multiply_adds=3 * count,
            skipped=3 * (64 * 48 - count),
            weight_bytes=4 * count,
            index_bytes=places.nbytes,
            activation_bytes=3 * 4 * count,
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_expanded_and_said_so(value: float) -> None:
    weight = weight_of("few", (64, 48), 1)
    weight[3, 4:20] = value
    made = layer("MatMul", "x w", weight)
    assert encoded(made)
    runnable = Interpreter().prepare(made)
    assert runnable.expanded == {"w": "node (MatMul): it isn't finite"}
    x = normal((3, 64))
    expected = Interpreter(compressed=False).prepare(made).run({"x": x})["y"]
    np.testing.assert_array_equal(runnable.run({"x": x})["y"], expected)
    assert runnable.counts == {}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_infinite_activations_meet_the_zeros_of_the_whole_weight(value: float) -> None:
    made = layer("MatMul", "x w", weight_of("sparse", (64, 300), 1))
    assert encoded(made)
    x = normal((3, 64))
    x[1, 5] = value
    runnable = Interpreter().prepare(made)
    found = runnable.run({"x": x})["y"]
    assert np.isnan(found[1]).any()
    np.testing.assert_array_equal(found, Interpreter(compressed=False).prepare(made).run({"x": x})["y"])
    assert runnable.expanded == {"w": "node (MatMul): its other operand isn't finite"}
    assert runnable.counts == {}


@pytest.mark.parametrize("numbered", [True, False])
def test_what_is_not_listed_is_zero_or_has_a_number(numbered: bool) -> None:
    made = layer("MatMul", "x w", np.zeros((64, 48), np.float32))
    table = np.array([1, 2, 3, 4, 5, 6], np.float32)
    places, numbers = np.arange(5, dtype=np.int32), np.arange(6, dtype=np.uint8)
    values = numbers if numbered else table
    call = Call("Scatter", (places, values[:5], np.asarray(values[5])), {"shape": (64, 48)})
    weight = Call("Lookup", (call, table)) if numbered else call
    store(made, {made.graph.initializers["w"]: weight}, {}, 32)
    runnable = Interpreter().prepare(made)
    assert runnable.expanded == ({} if numbered else {"w": "node (MatMul): what it doesn't list isn't zero"})
    assert runnable.run({"x": np.ones((1, 64), np.float32)})["y"].sum() == 15 + 6 * (64 * 48 - 5)


class Scaled(Coded):
    """Numbers of powers of two, and a scale for each channel along the last axis."""

    name = "Scaled"
    text = "Scaled <shape> (x, t, m) => (y) { i = Cast <to = 6> (x) v = Gather (t, i) y = Mul (v, m) }"

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        _, table, scales = inputs
        rows, columns = self.shape((), attributes)
        return Tables(table * scales[:, None], (1, rows, columns, 1))


@pytest.mark.parametrize("sparse", ["joint", "bitmask", "relative", "csr", "not"])
def test_a_format_of_numbers_need_only_tell_its_tables(sparse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "Scaled", Scaled())
    draw = np.random.default_rng(0)
    codes = (draw.integers(1, 5, (64, 48)) * (draw.random((64, 48)) < 0.2)).astype(np.uint8)
    table = np.array([0, 1, -1, 0.5, -0.25], np.float32)
    scales = (draw.random(48) + 0.5).astype(np.float32)
    made = layer("MatMul", "x w", np.zeros((64, 48), np.float32))
    (inner, *_) = [codes] if sparse == "not" else ENCODERS[sparse].encode(Weight(codes))
    call = Call("Scaled", (inner, table, scales), {"shape": (64, 48)})
    store(made, {made.graph.initializers["w"]: call}, {}, 32)
    (counts,) = agree(made, {"x": normal((3, 64))}).values()
    count = np.count_nonzero(codes)
    assert (counts.look_ups, counts.multiply_adds) == (0, 3 * 48)  # a scale for each column
    assert counts.adds == 3 * count + counts.shifts > 3 * count


def test_int8_weights_are_expanded_for_what_makes_floats_of_them() -> None:
    made = load(TESTDATA / "lenet5_digits.onnx")
    data = load_data(TESTDATA / "digits_calib.npz", made)
    Quant(gate="off").call(made, Context(calibration=data.take(2), runtime=OnnxRuntime()))
    Encode().call(made, Context())
    runnable = Interpreter().prepare(made)
    found = runnable.run(few_digits(made))
    assert runnable.counts == {}
    assert len(runnable.expanded) == len([node for node in made.graph if node.op_type in ("Conv", "Gemm")])
    assert all("(DequantizeLinear): reads it whole" in reason for reason in runnable.expanded.values())
    expected = Interpreter(compressed=False).prepare(made).run(few_digits(made))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_formats_of_another_version_are_expanded_by_the_models_own_functions() -> None:
    made = layer("MatMul", "x w", weight_of("sparse, few", (64, 48), 1))
    assert encoded(made)
    made.opset_imports[DOMAIN] = 2
    runnable = Interpreter().prepare(made)
    assert runnable.expanded == {"w": "node (MatMul): formats are not of version 1"}
    assert runnable.run({"x": normal((3, 64))})["y"].shape == (3, 48)


def test_a_damaged_weight_is_named_while_the_model_is_prepared() -> None:
    made = layer("MatMul", "x w", weight_of("few", (64, 48), 1))
    assert encoded(made, word="codebook")
    table = next(v for v in made.graph.initializers.values() if v.const_value.dtype == ir.DataType.FLOAT)
    table.const_value = ir.tensor(np.ones(2, np.float32), name=table.name)
    with pytest.raises(CompressError, match=r"^interpreter: w: \w+: has codes beyond its table of 2"):
        Interpreter().prepare(made)


@pytest.mark.parametrize(
    ("op", "shape", "x", "attributes", "message"),
    [
        ("MatMul", (64, 48), (3, 60), {}, r"weight \[64, 48\] does not fit an operand of 60 rows"),
        ("MatMul", (2, 64, 48), (3, 5, 64), {}, "shape mismatch"),
        ("Gemm", (64, 48), (3, 2, 64), {}, "an operand has 3 axes, expected 2"),
        (
            "Conv",
            (8, 8, 3, 3),
            (1, 9, 5, 5),
            {},
            r"weight \[8, 8, 3, 3\] in 1 groups does not fit",
        ),
        ("Conv", (8, 8, 3, 3), (1, 8, 2, 2), {}, r"a kernel of \[3, 3\] does not fit an input of \[2, 2\]"),
        (
            "Conv",
            (8, 8, 3, 3),
            (1, 24, 5, 5),
            {"group": 3},
            "weight .* in 3 groups does not fit",
        ),
    ],
)
def test_operands_that_do_not_fit_are_refused_in_one_line(
    op: str, shape: tuple[int, ...], x: tuple[int, ...], attributes: dict[str, int], message: str
) -> None:
    made = layer(op, "x w", weight_of("few", shape, 1), **attributes)
    assert encoded(made)
    with pytest.raises(CompressError, match=rf"^interpreter: node \({op}\): {message}") as caught:
        Interpreter().prepare(made).run({"x": normal(x)})
    assert "\n" not in str(caught.value)


def test_hooks_see_no_array_in_the_place_of_a_weight_in_its_stored_form() -> None:
    made = layer("MatMul", "x w", weight_of("sparse, few", (64, 48), 1))
    assert encoded(made)
    seen = []

    def watch(node: ir.Node, inputs: Sequence[object], outputs: Sequence[object]) -> None:
        seen.append((node.op_type, [each is None for each in inputs]))

    Interpreter(hooks=(watch,)).prepare(made).run({"x": normal((3, 64))})
    assert seen == [("MatMul", [False, True])]
