import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import model, operators, run

from onnxcompress import Context, compress
from onnxcompress.base import Record
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.formats.unpack import Row, is_encoded, ledger, unpack
from onnxcompress.model import clone, load, opset, save, to_proto
from onnxcompress.passes import Encode, Prune, QuantBlocks
from onnxcompress.runtimes.interpreter import Interpreter

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
TEXT = """agraph (float[N, 64] x) => (float[N, 10] y)
<float[64, 64] w1 = {}, float[64, 64] w2 = {}, float[32, 64] w3 = {}, float[32, 10] w4 = {}>
{
    [first] a = MatMul(x, w1)
    [second] b = MatMul(a, w2)
    [third] c = Gemm<transB=1>(b, w3)
    [last] y = MatMul(c, w4)
}"""
DRAW = np.random.default_rng(0)
FEW = (np.round(DRAW.standard_normal((64, 64)) * 4) / 8).astype(np.float32)
SPARSE = (DRAW.standard_normal((64, 64)) * (DRAW.random((64, 64)) < 0.1)).astype(np.float32)
SQUARE = np.where(
    DRAW.random((256, 256)) < 0.1, np.round(DRAW.standard_normal((256, 256)) * 4) / 8 + 0.0, 0
).astype(np.float32)
FEEDS = {"x": DRAW.standard_normal((3, 64)).astype(np.float32)}


def made() -> ir.Model:
    text = model(TEXT)
    for name, array in (("w1", FEW), ("w2", FEW), ("w3", SPARSE[:32])):
        text.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return text


def encode(target: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Encode(**options).call(target, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def weights(target: ir.Model) -> dict[str, bytes]:
    return {
        name: hashlib.sha256(value.const_value.tobytes()).digest()  # type: ignore[union-attr]
        for name, value in target.graph.initializers.items()
    }


def test_stores_weights_that_can_shrink_and_leaves_the_others_and_says_so() -> None:
    target = made()
    before = run(target, FEEDS)
    records = encode(target)
    assert (records["w1"].changed, records["w1"].what) == (True, "encoded")
    assert records["w3"].numbers["bytes"] == 32 * 64 * 4
    assert (records["w4"].changed, records["w4"].what) == (False, "no format is smaller")
    assert "w4" in target.graph.initializers
    assert "w1" not in target.graph.initializers
    np.testing.assert_array_equal(run(target, FEEDS)[0], before[0])


def test_the_engine_runs_the_same_operators_as_without(tmp_path: Path) -> None:
    target = made()
    before = operators(target, tmp_path)
    encode(target)
    assert operators(target, tmp_path) == before


def test_tied_weights_are_stored_once_and_come_back_apart() -> None:
    target = made()
    before = weights(target)
    assert encode(target)["w2"].what == "tied to w1"
    assert [node.op_type for node in target.graph].count("Identity") == 1
    assert sorted(unpack(target)) == ["w1", "w2", "w3"]
    assert weights(target) == before


@pytest.mark.parametrize("option", ["format", "sparse_format"])
def test_tied_weights_may_be_sparse_tensors(option: str) -> None:
    target = made()
    for name in ("w1", "w2"):
        target.graph.initializers[name].const_value = ir.tensor(SPARSE + np.float32(0), name=name)
    before = weights(target)
    assert encode(target, **{option: "coo"})["w2"].numbers["formats"] == "COO"
    unpack(target, sparse=True)
    assert weights(target) == before


def test_a_second_run_is_idle() -> None:
    target = made()
    encode(target)
    before = to_proto(target).SerializeToString(deterministic=True)
    again = Encode().call(target, Context())
    assert not again.modified
    assert to_proto(target).SerializeToString(deterministic=True) == before


def test_what_is_excluded_or_small_stays() -> None:
    target = made()
    records = encode(target, Context(exclude=("first", "w3")), min_size=400)
    assert (records["w1"].what, records["w3"].what) == ("excluded", "excluded")
    assert records["w4"].what == "fewer than 400 elements"
    assert records["w2"].changed


@pytest.mark.parametrize(("word", "function"), [("codebook", "Codebook"), ("relative", "RelativeIndex")])
def test_a_format_can_be_forced(word: str, function: str) -> None:
    target = made()
    encode(target, format=word)
    assert ("onnxcompress", function, "") in target.functions
    assert not {"Joint"} & {name for _, name, _ in target.functions}


def square(weight: np.ndarray) -> ir.Model:
    """A model with one weight [256, 256]."""
    made = model("g (float[N, 256] x) => (float[N, 256] y) <float[256, 256] w = {}> { y = MatMul(x, w) }")
    made.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    return made


def test_a_format_for_sparse_weights_can_be_forced() -> None:
    target = square(SQUARE)
    encode(target, sparse_format="csr")
    assert ("onnxcompress", "CSR", "") in target.functions
    assert not {"Joint", "RelativeIndex", "Bitmask"} & {name for _, name, _ in target.functions}


def test_memory_at_load_can_be_bounded() -> None:
    sizes, peaks = [], []
    for bound in (0, 2.6, 2):
        target = square(SQUARE)
        encode(target, load_memory=bound)
        sizes.append(to_proto(target).ByteSize())
        peaks.append(intermediate(target))
        assert not bound or peaks[-1] <= 2 * SQUARE.nbytes * (bound - 1)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert peaks == sorted(peaks, reverse=True)


def intermediate(target: ir.Model) -> int:
    """How many bytes the results have that come before the weight w."""
    found = [0]

    def hook(node: ir.Node, inputs: object, outputs: list[np.ndarray]) -> None:
        found[0] += sum(each.nbytes for each in outputs) if node.domain == "" else 0

    Interpreter(hooks=(hook,)).prepare(target, outputs=["w"]).run({"x": FEEDS["x"][:1].repeat(4, 1)})
    return found[0] - SQUARE.nbytes


def test_only_known_formats_and_blocks_are_taken() -> None:
    with pytest.raises(UsageError, match="option format"):
        Encode(format="zip")
    with pytest.raises(UsageError, match="option block is 50"):
        Encode(block=50)


def test_a_weight_in_a_subgraph_is_stored_there() -> None:
    target = model(
        """agraph (bool c, float[3, 64] x) => (float[3, 64] y)
        {
            y = If (c) <
                then_branch = yes () => (float[3, 64] p) <float[64, 64] w1 = {}> { p = MatMul(x, w1) },
                else_branch = no () => (float[3, 64] q) { q = Relu(x) }
            >
        }"""
    )
    body = next(node for node in target.graph).attributes["then_branch"].as_graph()
    body.initializers["w1"].const_value = ir.tensor(FEW, name="w1")
    feeds = {"c": np.array(True), "x": FEEDS["x"]}
    before = run(target, feeds)
    assert encode(target)["w1"].changed
    np.testing.assert_array_equal(run(target, feeds)[0], before[0])
    assert unpack(target) == ["w1"]
    np.testing.assert_array_equal(run(target, feeds)[0], before[0])


def test_a_constant_node_is_stored() -> None:
    target = made()
    value = target.graph.initializers.pop("w1")
    node = ir.node("Constant", [], {"value": ir.AttrTensor("value", value.const_value)})  # type: ignore[arg-type]
    node.outputs[0].name = "w1"
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    target.graph.insert_before(target.graph[0], node)
    before = run(target, FEEDS)
    assert encode(target)["w1"].changed
    np.testing.assert_array_equal(run(target, FEEDS)[0], before[0])


def test_a_weight_that_is_handed_out_stays() -> None:
    target = made()
    target.graph.outputs.append(target.graph.initializers["w1"])
    assert encode(target)["w1"].what == "an output of the model"


def test_an_old_model_is_raised_to_an_operator_set_that_functions_can_be_written_for() -> None:
    target = model('<ir_version: 6, opset_import: ["": 11]>\n' + TEXT)
    target.graph.initializers["w1"].const_value = ir.tensor(FEW, name="w1")
    before = run(target, FEEDS)
    encode(target)
    assert opset(target) >= 13
    np.testing.assert_array_equal(run(target, FEEDS)[0], before[0])


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint8])
def test_other_types_keep_their_bits(kind: type) -> None:
    array = (FEW * 8).astype(kind)
    target = made()
    value = ir.Value(
        name="v",
        const_value=ir.tensor(array, name="v"),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    target.graph.initializers["v"] = value
    node = ir.node("Cast", [value], {"to": 1})
    node.outputs[0].name = "z"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((64, 64))
    target.graph.append(node)
    target.graph.outputs.append(node.outputs[0])
    before = run(target, FEEDS)
    assert encode(target)["v"].changed
    for a, b in zip(run(target, FEEDS), before, strict=True):
        np.testing.assert_array_equal(a, b)
    unpack(target)
    assert target.graph.initializers["v"].const_value.numpy().tobytes() == array.tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("*.onnx")), ids=lambda path: path.stem)
def test_pruned_models_shrink_and_come_back_bit_by_bit(path: Path, tmp_path: Path) -> None:
    plain = load(path)
    Prune(sparsity=0.9, min_size=64).call(plain, Context())
    save(plain, tmp_path / "plain.onnx")
    before = weights(load(tmp_path / "plain.onnx"))
    target = load(tmp_path / "plain.onnx")
    Encode().call(target, Context())
    save(target, tmp_path / "encoded.onnx")
    proto = onnx.load(tmp_path / "encoded.onnx")
    onnx.checker.check_model(proto, full_check=True)
    small, large = ((tmp_path / name).stat().st_size for name in ("encoded.onnx", "plain.onnx"))
    assert small < large
    if is_encoded(target):
        assert small < 0.6 * large
    rows = ledger(tmp_path / "encoded.onnx")
    assert sum(row.bytes for row in rows) == small
    assert all(row.bytes >= 0 for row in rows)
    back = load(tmp_path / "encoded.onnx")
    unpack(back)
    after = weights(back)
    assert after == before
    sessions = [
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        for name in ("plain.onnx", "encoded.onnx")
    ]
    entry = sessions[0].get_inputs()[0]
    feed = np.random.default_rng(1).random([each if isinstance(each, int) else 2 for each in entry.shape])
    first, second = (each.run(None, {entry.name: feed.astype(np.float32)}) for each in sessions)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_ledger_names_each_tensor_its_format_and_its_bytes() -> None:
    target = made()
    encode(target)
    rows = {row.name or row.format: row for row in ledger(target)}
    assert rows["w4"] == Row("w4", "float", 32 * 10 * 4)
    assert rows["w1"].format.startswith(("Codebook", "Lookup"))
    assert rows["w2"].format == "tied to w1"
    assert rows["decoders"].bytes > 500
    assert sum(row.bytes for row in rows.values()) == to_proto(target).ByteSize()


def test_unpack_leaves_a_plain_model_alone() -> None:
    target = made()
    before = to_proto(target).SerializeToString(deterministic=True)
    assert unpack(target) == []
    assert to_proto(target).SerializeToString(deterministic=True) == before


def test_unpack_refuses_what_it_does_not_know() -> None:
    target = made()
    encode(target)
    newer = clone(target)
    newer.opset_imports["onnxcompress"] = 2
    with pytest.raises(CompressError, match="version 2, expected 1"):
        unpack(newer)
    for node in target.graph:
        if node.domain == "onnxcompress":
            node.op_type = "Zip"
    with pytest.raises(CompressError, match="is stored as Zip"):
        unpack(target)


def test_the_pipeline_runs_it_after_quantization(tmp_path: Path) -> None:
    path, data = TESTDATA / "lenet300_digits.onnx", TESTDATA / "digits_calib.npz"
    compress(
        path,
        "prune(sparsity=0.8),quant(gate=off)",
        data=data,
        output=tmp_path / "int8.onnx",
        measure_latency=False,
    )
    compress(
        path,
        "prune(sparsity=0.8),quant(gate=off),encode",
        data=data,
        output=tmp_path / "small.onnx",
        measure_latency=False,
    )
    plain, small = load(tmp_path / "int8.onnx"), load(tmp_path / "small.onnx")
    assert operators(small, tmp_path) == operators(plain, tmp_path)
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / "int8.onnx").stat().st_size


@pytest.mark.parametrize(("share", "told"), [(1.0, "an excerpt has less than 10% to save"), (0.2, "encoded")])
def test_blocks_that_wait_to_be_computed_are_judged_by_an_excerpt(share: float, told: str) -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((512, 600)) * (draw.random((512, 600)) < share)
    made = model(
        "net (float[N, 512] x) => (float[N, 600] y) { y = MatMul(x, w) }", {"w": weight.astype(np.float32)}
    )
    (record,) = QuantBlocks(when="always").call(made, Context()).records
    plain = clone(made)
    found = {each.layer: each.what for each in Encode().call(made, Context()).records}
    assert found["w_blocks"] == told
    assert ("snr" in record.numbers) == (told == "encoded")  # only then were all blocks computed
    feeds = {"x": draw.standard_normal((2, 512)).astype(np.float32)}
    np.testing.assert_array_equal(run(made, feeds)[0], run(plain, feeds)[0])


@pytest.mark.parametrize("shape", [(2**15, 2**10), (2**25,)])
def test_a_large_weight_in_a_file_is_judged_by_an_excerpt(shape: tuple[int, ...], tmp_path: Path) -> None:
    judged = {}
    for values in (30_001, 101):
        weight = np.resize(np.arange(values, dtype=np.uint16), shape).view(np.float16)
        made = model("net (float16[1] x) => (float16[1] y) { y = Identity(x) }")
        made.graph.register_initializer(ir.Value(name="w", const_value=ir.tensor(weight, name="w")))
        save(made, tmp_path / "in.onnx", external_data=True)
        tensor = load(tmp_path / "in.onnx").graph.initializers["w"].const_value
        judged[values] = Encode().unpromising(tensor)
    assert judged == {30_001: "an excerpt has less than 10% to save", 101: None}


@cache
def encoded() -> bytes:
    target = made()
    encode(target)
    return bytes(to_proto(target).SerializeToString())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_unpacks_to_arrays_of_the_same_size_or_not_at_all(data: st.DataObject) -> None:
    proto = onnx.ModelProto.FromString(encoded())
    held = [tensor for tensor in proto.graph.initializer if tensor.name.startswith("_")]
    tensor = data.draw(st.sampled_from(held))
    raw = bytearray(tensor.raw_data)
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=20)) if raw else ():
        raw[place] = data.draw(st.integers(0, 255))
    tensor.raw_data = bytes(raw)
    broken = load(proto)
    try:
        unpack(broken)
    except CompressError:
        return
    for name, array in (("w1", FEW), ("w2", FEW), ("w3", SPARSE[:32])):
        assert broken.graph.initializers[name].shape == array.shape
