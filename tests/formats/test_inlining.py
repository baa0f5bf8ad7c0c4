"""Functions written in line: the same outputs; what was encoded is found again or refused, never guessed."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxsim
import pytest
from formats.test_formats import CASES, kept, same, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model, run

from onnxcompress import Context, compress
from onnxcompress.errors import CompressError
from onnxcompress.formats import FORMATS
from onnxcompress.formats.inlining import CALLS, inline, outline
from onnxcompress.formats.storing import Way
from onnxcompress.formats.unpack import is_encoded, ledger, unpack
from onnxcompress.model import check, clone, load, opset, to_proto
from onnxcompress.passes import Encode
from onnxcompress.runtimes.interpreter import Interpreter

LENET = Path(__file__).parent.parent.parent / "testdata" / "lenet300_digits.onnx"
DRAW = np.random.default_rng(0)
FEW = (np.round(DRAW.standard_normal((64, 64)) * 4) / 8).astype(np.float32)
FEEDS = {"x": DRAW.standard_normal((3, 64)).astype(np.float32)}


def serialised(made: ir.Model) -> bytes:
    return bytes(to_proto(made).SerializeToString(deterministic=True))


def weight(made: ir.Model, name: str) -> np.ndarray:
    found: np.ndarray = made.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
    return found


@cache
def encoded_once() -> ir.Model:
    made = model(
        """agraph (float[N, 64] x) => (float[N, 64] y)
        <float[64, 64] w1 = {}, float[64, 64] w2 = {}> { a = MatMul(x, w1)
        y = MatMul(a, w2) }"""
    )
    for name in ("w1", "w2"):
        made.graph.initializers[name].const_value = ir.tensor(FEW, name=name)
    Encode(format="codebook").call(made, Context())
    assert [node.op_type for node in made.graph][:3] == ["Unpack", "Codebook", "Identity"]
    inline(made)
    return made


def encoded() -> ir.Model:
    """A model with two tied weights, stored in a codebook with packed codes, in line."""
    return clone(encoded_once())


def example(name: str) -> tuple[np.ndarray, Way, int]:
    """A weight, a way to store it that uses the format `name`, and the block of its Huffman codes."""
    block = int(name.removeprefix("Huffman")) if name.startswith("Huffman") else 64
    return next(
        (CASES[case], way, block) for case in CASES for _, way in kept(case, block) if name in way.names
    )


FUNCTIONS = [name for name in FORMATS if name != "COO"]  # that is none


@pytest.mark.parametrize(
    ("name", "version"), [*((name, 13) for name in FUNCTIONS), ("Joint", 18), ("Huffman64", 18)]
)
def test_every_format_is_written_in_line_and_found_again(name: str, version: int) -> None:
    array, way, block = example(name)
    made = stored(array, [way], block, version)
    inline(made)
    assert not made.functions
    assert set(made.opset_imports) == {""}
    assert is_encoded(made)
    assert same(run(made, {"s": np.array(array.shape)})[0], array)
    rows = ledger(made)
    assert sum(row.bytes for row in rows) == to_proto(made).ByteSize()
    assert name.rstrip("0123456789") in next(row.format for row in rows if row.name == "w0")
    assert all(row.bytes > 0 for row in rows)
    assert unpack(made) == ["w0"]
    assert same(weight(made, "w0"), array)
    assert len(made.graph) == 1
    assert not made.metadata_props


def test_what_is_found_again_is_the_model_as_it_was_encoded() -> None:
    array, way, block = example("Huffman64")
    before = stored(array, [way], block)
    made = clone(before)
    inline(made)
    assert outline(made) > 10_000  # bytes of 64 steps
    check(made)
    assert made.functions.keys() == before.functions.keys()
    assert [node.op_type for node in made.graph] == [node.op_type for node in before.graph]
    assert same(run(made, {"s": np.array(array.shape)})[0], array)
    assert outline(made) == 0


def test_tied_weights_come_back_apart() -> None:
    made = encoded()
    before = run(made, FEEDS)
    rows = {row.name: row.format for row in ledger(made)}
    assert rows["w2"] == "tied to w1"
    assert sorted(unpack(made)) == ["w1", "w2"]
    assert same(weight(made, "w1"), FEW)
    assert same(weight(made, "w2"), FEW)
    np.testing.assert_array_equal(run(made, FEEDS)[0], before[0])


def test_weights_in_the_branches_of_an_if_may_have_one_name() -> None:
    made = model(
        """agraph (bool c, float[3, 64] x) => (float[3, 64] y)
        {
            y = If (c) <
                then_branch = yes () => (float[3, 64] p) <float[64, 64] w = {}> { p = MatMul(x, w) },
                else_branch = no () => (float[3, 64] q) <float[64, 64] w = {}> { q = MatMul(x, w) }
            >
        }"""
    )
    branches = [made.graph[0].attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for factor, branch in zip((1, 2), branches, strict=True):
        branch.initializers["w"].const_value = ir.tensor(factor * FEW, name="w")
    feeds = [{"c": np.array(choice), **FEEDS} for choice in (True, False)]
    before = [run(made, each)[0] for each in feeds]
    Encode(format="codebook").call(made, Context())
    inline(made)
    for change in (lambda: None, lambda: unpack(made)):
        change()
        for each, expected in zip(feeds, before, strict=True):
            np.testing.assert_array_equal(run(made, each)[0], expected)
    for factor, branch in zip((1, 2), (each for each in made.graph.subgraphs()), strict=True):
        assert same(branch.initializers["w"].const_value.numpy(), factor * FEW)  # type: ignore[union-attr]


FUNCTIONS = {
    "that hands out its input": """agraph (float[3] x) => (float[3] y) { y = f.id(x) }
        <domain: "f", opset_import: ["": 17]> id (a) => (a) { }""",
    "with names that a subgraph has": """agraph (float[3] x, bool c) => (float[3] y) {
            w = f.two(x)
            y = If(c) <
                then_branch = t () => (float[3] p) { b = Neg(w)
                    p = f.two(b) },
                else_branch = e () => (float[3] q) { b_2 = Abs(w)
                    q = f.two(b_2) } >
        }
        <domain: "f", opset_import: ["": 17]> two (a) => (r) { b = Relu(a)
            r = Neg(b) }""",
    "with a subgraph": """agraph (float[3] x, int64 n) => (float[3] y) { b = f.loop(x, n)
            y = f.loop(b, n) }
        <domain: "f", opset_import: ["": 17]> loop (a, n) => (r) {
            r = Loop(n, , a) <body = bd (int64 i, bool k, float[3] s) => (bool k2, float[3] b)
                <float[1] two = {2}> { k2 = Identity(k)
                b = Mul(s, two) }>
        }""",
    "called without an output": """agraph (float[3] x) => (int64[2] y) { , y = f.most(x) }
        <domain: "f", opset_import: ["": 17]> most (a) => (b, c) { k = Constant <value_ints = [2]> ()
            b, c = TopK(a, k) }""",
    "that leaves out an output": """agraph (float[3] x) => (float[1, 1, 1] y) { y = f.last(x) }
        <domain: "f", opset_import: ["": 17]> last (a) => (d) {
            s = Constant <value_ints = [1, 1, 3]> ()
            w = Constant <value = float[1, 3, 3] {1, 2, 3, 4, 5, 6, 7, 8, 9}> ()
            r = Constant <value = float[1, 3, 1] {1, 2, 3}> ()
            b = Reshape(a, s)
            , d = GRU <hidden_size = 1> (b, w, r) }""",
    "called without an input": """agraph (float[3] x) => (float[3] y) { y = f.clip(x, ) }
        <domain: "f", opset_import: ["": 17]> clip (a, least) => (b) { b = Clip(a, least) }""",
    "with an attribute handed on": """agraph (float[3] x) => (float[3] y) { y = f.outer<slope = 0.7>(x) }
        <domain: "f", opset_import: ["": 17]> inner <alpha: float = 0.3> (a) => (b) {
            b = LeakyRelu<alpha: float = @alpha>(a) }
        <domain: "f", opset_import: ["": 17, "f": 1]> outer <slope> (a) => (c) {
            b = f.inner<alpha: float = @slope>(a)
            c = f.inner(b) }""",
    "of an older operator set": """agraph (float[3] x) => (float[3] y) { y = f.id(x) }
        <domain: "f", opset_import: ["": 14]> id (a) => (b) { b = Relu(a) }""",
    "of a newer operator set": """agraph (float[3] x) => (float[3] y) { y = f.id(x) }
        <domain: "f", opset_import: ["": 18]> id (a) => (b) { b = Relu(a) }""",
}


@pytest.mark.parametrize("text", FUNCTIONS.values(), ids=FUNCTIONS)
def test_any_function_is_written_in_line(text: str) -> None:
    made = load(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17, "f": 1]>\n' + text))
    feeds = {
        value.name: {"x": np.array([-2, 3, 1], np.float32), "c": np.array(True), "n": np.array(2)}[value.name]  # type: ignore[index]
        for value in made.graph.inputs
    }
    expected = Interpreter.make().prepare(made).run(feeds)
    inline(made)
    assert not made.functions
    assert set(made.opset_imports) == {""}
    assert not is_encoded(made)
    for found, before in zip(run(made, feeds), expected.values(), strict=True):
        np.testing.assert_allclose(found, before, rtol=1e-6, atol=1e-6)


def test_a_call_that_does_not_fit_its_function_is_refused() -> None:
    text = """agraph (float[3] x) => (float[3] y) { y = f.id(x, x) }
        <domain: "f", opset_import: ["": 17]> id (a) => (b) { b = Relu(a) }"""
    made = load(onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17, "f": 1]>\n' + text))
    with pytest.raises(CompressError, match=r"can't be written in line: .*f::id.* has 2 inputs"):
        inline(made)


def test_a_model_without_functions_stays_as_it_is() -> None:
    made = encoded()
    unpack(made)
    before = serialised(made)
    inline(made)
    assert serialised(made) == before


def test_writing_in_line_twice_gives_the_same_file() -> None:
    made = encoded()
    before = serialised(made)
    inline(made)
    assert serialised(made) == before == serialised(encoded())


def test_what_is_encoded_later_is_found_beside_what_was_in_line() -> None:
    made = encoded()
    node = made.graph[-1]
    later = ir.Value(name="w3", const_value=ir.tensor(3 * FEW, name="w3"))
    made.graph.register_initializer(later)
    node.replace_input_with(1, later)
    Encode(format="codebook").call(made, Context(exclude=("_.*",)))
    inline(made)
    assert sorted(unpack(made)) == ["w1", "w3"]
    assert same(weight(made, "w3"), 3 * FEW)
    assert same(weight(made, "w1"), FEW)


RECORDS = {
    "no JSON": ("{", "is no JSON"),
    "nested too deep": ("[" * 100_000, "is no JSON"),
    "no object": ("3", "expected version and calls"),
    "no calls": ('{"version": 1}', "expected version and calls"),
    "of another version": ('{"version": 2, "calls": []}', "is of version 2, expected 1"),
    "calls that are no list": ('{"version": 1, "calls": "Lookup"}', "expected version and calls"),
}
CALLS_TOLD = {  # the second call is ["Codebook", "w1", [codes, table], {"shape": [64, 64]}]
    "an unknown function": ((1, 0), "Zip", r'holds \["Zip"'),
    "no function": ((1,), "Codebook", 'holds "Codebook", expected function'),
    "a call cut short": ((1,), ["Codebook", "w1"], "expected function, output"),
    "an input too many": ((1, 2), ["a", "b", "c"], "expected function"),
    "inputs of another type": ((1, 2), [1, 2], "expected function"),
    "an attribute that is no number": ((1, 3, "shape"), [64, "64"], "expected function"),
    "an attribute beyond 64 bits": ((1, 3, "shape"), [2**63, 0], "expected function"),
    "an attribute of another type": ((1, 3, "shape"), 4096, "w1: is not what onnxcompress.Codebook makes"),
    "another attribute": ((1, 3, "shape"), [32, 128], "w1: is not what onnxcompress.Codebook makes"),
    "no attribute": ((1, 3), {}, "w1: is not what"),
    "another function": ((1, 0), "Lookup", "w1: is not what onnxcompress.Lookup makes"),
    "an output that isn't there": ((0, 1), "nothing", "nothing: is not what onnxcompress.Unpack"),
    "an output of another node": ((1, 1), "y", "y: is not what"),
    "an input that isn't there": ((1, 2), ["nothing", "nothing"], "w1: is not what .* makes of nothing"),
    "inputs in a circle": ((1, 2), ["w1", "w1"], "w1: is not what"),
    "a call told twice": ((0,), None, "w1: is not what"),
}


def refused(text: str, said: str) -> None:
    made = encoded()
    made.metadata_props[CALLS] = text
    before = serialised(made)
    with pytest.raises(CompressError, match=said) as error:
        unpack(made)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert serialised(made) == before


@pytest.mark.parametrize(("text", "said"), RECORDS.values(), ids=RECORDS)
def test_a_record_that_makes_no_sense_is_one_line_of_error(text: str, said: str) -> None:
    refused(text, said)


@pytest.mark.parametrize(("keys", "lie", "said"), CALLS_TOLD.values(), ids=CALLS_TOLD)
def test_a_call_that_was_not_made_is_one_line_of_error(keys: tuple[Any, ...], lie: Any, said: str) -> None:
    record = json.loads(encoded().metadata_props[CALLS])
    place = record["calls"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = record["calls"][1] if lie is None else lie
    refused(json.dumps(record), said)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("w1"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=80)
@given(st.data())
def test_a_lie_in_the_record_gives_an_error_or_the_right_weights(data: st.DataObject) -> None:
    made = encoded()
    record = json.loads(made.metadata_props[CALLS])
    place: object = record["calls"]
    while data.draw(st.booleans()) and isinstance(place, list | dict) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        inner = place[key]  # type: ignore[index]
        if data.draw(st.integers(0, 2)) == 0:
            place[key] = data.draw(JSON)  # type: ignore[index]
        place = inner
    made.metadata_props[CALLS] = json.dumps(record)
    before = serialised(made)
    try:
        unpack(made)
    except CompressError:
        assert serialised(made) == before
        return
    for name in ("w1", "w2"):
        if name in made.graph.initializers:
            assert same(weight(made, name), FEW)
    np.testing.assert_array_equal(run(made, FEEDS)[0], run(encoded(), FEEDS)[0])


def test_weights_that_another_tool_folded_are_taken_as_they_are() -> None:
    before = run(encoded(), FEEDS)
    proto, _ = onnxsim.simplify(to_proto(encoded()))
    folded = load(proto)
    assert CALLS in folded.metadata_props
    assert unpack(folded) == []
    assert CALLS not in folded.metadata_props
    assert len(folded.graph) == 2
    np.testing.assert_array_equal(run(folded, FEEDS)[0], before[0])
    rows = ledger(load(proto))
    assert sum(row.bytes for row in rows) == load_size(proto)
    assert "decoders" not in {row.format for row in rows}


def load_size(proto: onnx.ModelProto) -> int:
    return to_proto(load(proto)).ByteSize()


def swap(made: ir.Model, op: str, other: str) -> None:
    next(node for node in reversed(made.graph) if node.op_type == op).op_type = other


def attribute(made: ir.Model) -> None:
    node = next(node for node in made.graph if "value_ints" in node.attributes)
    values = list(node.attributes["value_ints"].as_ints())
    node.attributes["value_ints"] = ir.AttrInt64s("value_ints", [values[0] + 1, *values[1:]])


def other_input(made: ir.Model) -> None:
    node = next(node for node in reversed(made.graph) if node.op_type == "Gather")
    table = node.inputs[0]
    assert table is not None
    new = ir.Value(name="table", const_value=ir.tensor(table.const_value.numpy() * 2, name="table"))  # type: ignore[union-attr]
    made.graph.register_initializer(new)
    node.replace_input_with(0, new)


def one_reader(made: ir.Model) -> None:
    """Let one of the nodes that read the width of a code read something else."""
    node = next(node for node in made.graph if node.op_type == "Mul")
    node.replace_input_with(1, next(node for node in made.graph if node.op_type == "Constant").outputs[0])


def half(made: ir.Model) -> None:
    """Let w1 be twice what was stored."""
    node = next(node for node in made.graph if node.outputs[0].name == "w1")
    node.outputs[0].name = "w1_half"
    twice = ir.node("Add", [node.outputs[0], node.outputs[0]])
    twice.outputs[0].name = "w1"
    for user, place in list(node.outputs[0].uses()):
        if user is not twice:
            user.replace_input_with(place, twice.outputs[0])
    made.graph.insert_after(node, twice)


@pytest.mark.parametrize(
    "change",
    [lambda made: swap(made, "Gather", "GatherElements"), attribute, other_input, one_reader, half],
    ids=["another operator", "another attribute", "another input", "one of two readers", "a node more"],
)
def test_nodes_changed_since_are_refused(change: Callable[[ir.Model], None]) -> None:
    made = encoded()
    change(made)
    with pytest.raises(CompressError, match=r"is not what onnxcompress.* another tool has changed the file"):
        unpack(made)


def test_what_was_stored_may_have_changed_and_is_what_comes_back() -> None:
    made = encoded()
    table = made.graph.initializers[json.loads(made.metadata_props[CALLS])["calls"][1][2][1]]
    table.const_value = ir.tensor(table.const_value.numpy() * 2, name=table.name)  # type: ignore[union-attr]
    unpack(made)
    assert same(weight(made, "w1"), 2 * FEW)


def test_a_stored_tensor_that_callers_give_is_refused() -> None:
    made = encoded()
    value = made.graph.initializers.pop(json.loads(made.metadata_props[CALLS])["calls"][0][2][0])
    value.const_value = None
    made.graph.inputs.append(value)
    with pytest.raises(CompressError, match="expected a constant"):
        unpack(made)


def test_the_pipeline_unpacks_what_is_in_line_and_says_so(tmp_path: Path) -> None:
    recipe = "prune(sparsity=0.8),cluster(bits=4)"
    compress(LENET, recipe, output=tmp_path / "dense.onnx", measure_latency=False)
    compress(LENET, f"{recipe},encode", output=tmp_path / "encoded.onnx", measure_latency=False)
    for source in ("dense.onnx", "encoded.onnx"):
        compress(
            tmp_path / source, "encode", inline=True, output=tmp_path / "line.onnx", measure_latency=False
        )
        made = load(tmp_path / "line.onnx")
        assert not made.functions
        assert is_encoded(made)
    rows = ledger(tmp_path / "line.onnx")
    assert sum(row.bytes for row in rows) == (tmp_path / "line.onnx").stat().st_size
    found = compress(tmp_path / "line.onnx", "simplify", measure_latency=False)
    assert "2 weights were encoded: they were unpacked before the first pass" in found.report.notes
    dense = load(tmp_path / "dense.onnx")
    for name in ("fc1.weight", "fc2.weight"):
        assert same(weight(found.model, name), weight(dense, name))
    assert opset(found.model) == opset(dense)
