"""Counts of whole models: by hand, against the interpreter, and where something isn't known."""

import json
from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress import compress
from onnxcompress.analysis import Analysis, Row, analyze, columns
from onnxcompress.analysis.tables import document, fits, model_tables, pearson, spreadsheet
from onnxcompress.energy import Energy
from onnxcompress.errors import UsageError
from onnxcompress.formats.unpack import unpack
from onnxcompress.model import load
from onnxcompress.runtimes.interpreter import Interpreter
from onnxcompress.target import Machine

TESTDATA = Path(__file__).parents[2] / "testdata"
LENET = TESTDATA / "lenet5_digits.onnx"

NET = """net (float[N, 4, 8, 8] x) => (float[N, 5] y) <float[6] b = {}, float[6, 5] d = {}> {
    c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g)
    y = MatMul(f, d) }"""


def net(zeros: int = 0) -> ir.Model:
    """A convolution, ReLU, pooling and a product; the first weights of the convolution are zero."""
    weight = np.random.default_rng(0).random((6, 4, 3, 3), np.float32) + 1
    weight.reshape(-1)[:zeros] = 0
    return models.model(NET, {"w": weight})


def by_name(found: Analysis) -> dict[str, Row]:
    return {row.op: row for row in found.rows}


def test_a_small_model_is_counted_as_by_hand() -> None:
    found = analyze(net(zeros=54))
    rows, total = by_name(found), found.total
    conv, product = rows["Conv"], rows["MatMul"]
    assert (conv.parameters, conv.nonzeros, conv.stored_bytes) == (216 + 6, 162 + 6, 4 * 222)
    assert (conv.macs, conv.effective_macs) == (6 * 64 * 36, 6 * 64 * 36 * 162 // 216)
    assert (conv.read, conv.written, conv.moved_bytes) == (256, 384, 4 * (256 + 384 + 222))
    assert (conv.matrix, product.matrix) == ("gemm", "gemv")
    assert (product.macs, product.read, product.written) == (30, 6, 5)
    assert rows["Relu"].written == 384
    assert rows["Relu"].moved_bytes == 0  # computed with the convolution
    assert (total.macs, total.parameters, total.written) == (13824 + 30, 252, 384 + 384 + 6 + 5)
    assert total.macs_per_parameter == pytest.approx(13854 / 252)
    assert conv.intensity == pytest.approx(13824 / (4 * 862))
    assert found.memory.file_order == 4 * (256 + 384)
    assert found.memory.optimal
    assert found.footprint == 4 * (252 + 256 + 384)
    assert not found.notes


def test_a_batch_counts_every_sample() -> None:
    one, three = analyze(net()), analyze(net(), shapes={"x": (3, 4, 8, 8)})
    assert (three.total.macs, three.total.written) == (3 * 13854, 3 * (one.total.written or 0))
    assert by_name(three)["MatMul"].matrix == "gemm"
    assert three.shapes == {"x": (3, 4, 8, 8)}


def test_energy_is_that_of_its_figures() -> None:
    row = by_name(analyze(net(), energy=Energy(mac32=2, sram=4, dram=40)))["Conv"]
    assert row.compute_energy == 2 * 13824
    assert (row.sram_energy, row.dram_energy) == (862 * 4, 862 * 40)


def test_what_fits_on_the_chip_does_not_come_from_outside() -> None:
    machine = Machine(1e3, 1e3, 1e3, 1e2, 0, "")
    held, conv = 4 * 222, 4 * (256 + 384)
    for on_chip, outside in ((0, held + conv), (conv, held), (4 * 252 + conv, 0)):
        found = analyze(net(), machine=Machine(1e3, 1e3, 1e3, 1e2, on_chip, ""))
        row = by_name(found)["Conv"]
        assert row.dram_energy == pytest.approx(outside / 4 * 640)
        assert row.roofline_seconds == pytest.approx(max(13824 / machine.macs32, outside / machine.bandwidth))
        assert row.bound == ("memory" if outside == held + conv else "compute")


def test_a_target_without_a_typical_machine_is_said() -> None:
    found = analyze(net(), target="cpu")
    assert any(note.startswith("cpu stands for many machines") for note in found.notes)
    assert found.total.roofline_seconds is None


def test_a_shared_weight_counts_once_in_all() -> None:
    made = models.model(
        "net (float[1, 6] x) => (float[1, 6] y) <float[6, 6] w = {}> { a = MatMul(x, w) y = MatMul(a, w) }"
    )
    found = analyze(made)
    assert [row.parameters for row in found.rows] == [36, 36]
    assert (found.total.parameters, found.total.stored_bytes, found.total.weight_bytes) == (36, 144, 144)
    assert found.total.macs == 72


def test_a_weight_that_is_read_as_it_is_and_transposed_counts_once() -> None:
    made = models.model(
        """net (float[1, 6] x) => (float[1, 6] y) <float[5, 6] w = {}> {
            t = Transpose<perm=[1, 0]>(w) a = MatMul(x, t) y = MatMul(a, w) }"""
    )
    total = analyze(made).total
    assert (total.parameters, total.stored_bytes, total.weight_bytes) == (30, 120, 240)


def test_weights_that_float_operators_read_are_held_dense_however_stored() -> None:
    made = models.model(
        """net (float[1, 6] x) => (float[1, 6] y) <float s = {0.5}> {
            d = DequantizeLinear(w, s) y = MatMul(x, d) }""",
        {"w": np.arange(36, dtype=np.int8).clip(5, 40).reshape(6, 6) - np.int8(5)},
    )
    (row,) = analyze(made).rows
    assert (row.bits, row.nonzeros, row.stored_bytes, row.weight_bytes) == (32, 30, 40, 144)
    assert analyze(made).total.weight_bytes == 144


def test_a_scalar_that_a_reduction_makes_is_counted() -> None:
    made = models.model(
        "net (float[4, 6] x) => (float[4, 6] y) { m = ReduceMean<keepdims=0>(x) y = Sub(x, m) }"
    )
    made.graph.node(0).outputs[0].shape = None
    assert [row.written for row in analyze(made).rows] == [1, 24]


def test_weights_that_nodes_compute_count_as_weights() -> None:
    made = models.model(
        """net (float[1, 6] x) => (float[1, 5] y, float[1, 4] b) <float[5, 6] w = {}, int64[2] s = {4, 6}> {
            t = Transpose<perm=[1, 0]>(w) a = MatMul(x, t)
            z = ConstantOfShape(s) b = Gemm<transB=1>(x, z) y = Identity(a) }"""
    )
    found = analyze(made)
    assert [row.op for row in found.rows] == ["MatMul", "Gemm", "Identity"]
    rows = by_name(found)
    assert (rows["MatMul"].parameters, rows["MatMul"].nonzeros, rows["MatMul"].macs) == (30, 30, 30)
    assert (rows["Gemm"].parameters, rows["Gemm"].nonzeros, rows["Gemm"].stored_bytes) == (24, 0, 16)
    assert rows["Gemm"].effective_macs == 0


def test_operators_of_others_are_unknown_and_said_so() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 13, "com.example": 1]>
        net (float[1, 6] x) => (float[1, 6] y) <float[6, 6] w = {}> {
            a = com.example.Twist(x, w) y = MatMul(a, w) }"""
    )
    found = analyze(made)
    twist, product = found.rows
    assert (twist.macs, twist.written, twist.energy, twist.parameters) == (None, None, None, 36)
    assert twist.unknown == "the operator is of com.example"
    assert product.unknown == "shapes depend on the data"
    assert any("Twist" in note for note in found.notes)
    assert found.total.unknown == "without 2 nodes that are not counted"
    assert any("1 values whose size" in note for note in found.notes)


def test_what_depends_on_the_data_is_counted_as_one_and_said_so() -> None:
    made = models.model("net (float[2, 3] x) => (int64[2, N] y) { y = NonZero(x) }")
    found = analyze(made)
    assert (found.rows[0].written, found.rows[0].read) == (2, 6)
    assert found.notes == ["how much y make depends on the data: counted as one"]


@pytest.mark.parametrize(
    "text",
    [
        "net (string[2] x) => (string[2] y) { y = Identity(x) }",
        "net (string[2] x) => (string[2] y) { y = StringNormalizer(x) }",
        "net (float[0, 3] x) => (float[0, 3] y) { y = Relu(x) }",
        "net (float[1] x) => (float[1] x) { }",
        """net (float[2] x) => (float[2] y) { s = SequenceConstruct(x, x)
            i = Constant<value = int64 {0}>() y = SequenceAt(s, i) }""",
    ],
)
def test_unusual_models_are_counted_and_printed(text: str) -> None:
    found = analyze(models.model(text))
    assert found.total.macs == 0
    assert list(model_tables(found))
    assert json.loads(document([found]))["models"][0]["total"]["parameters"] <= 1


def test_graphs_inside_nodes_are_said_and_their_parameters_counted() -> None:
    found = analyze(TESTDATA / "branch_digits.onnx")
    assert any("(If)" in note and "(Loop)" in note for note in found.notes)
    unknown = [row for row in found.rows if row.unknown]
    assert sum(row.parameters for row in unknown) > 10_000
    assert found.total.parameters > sum(row.parameters for row in found.rows if not row.unknown)


def test_encoded_weights_count_by_what_they_stand_for_and_what_they_store() -> None:
    made = compress(LENET, "prune(sparsity=0.9),cluster(bits=4),encode", verify="off", measure_latency=False)
    found = analyze(made.model)
    plain = load(made.model)
    unpack(plain)
    dense = analyze(plain)
    assert [(row.name, row.macs, row.nonzeros) for row in found.rows] == [
        (row.name, row.macs, row.nonzeros) for row in dense.rows
    ]
    assert found.total.stored_bytes < dense.total.stored_bytes / 5
    assert found.total.weight_bytes == dense.total.weight_bytes
    assert (found.total.effective_macs or 0) < 0.3 * (found.total.macs or 0)


def test_effective_multiply_adds_are_those_the_interpreter_does() -> None:
    made = compress(LENET, "prune(sparsity=0.9),encode", verify="off", measure_latency=False).model
    runnable = Interpreter().prepare(made)
    runnable.run({made.graph.inputs[0].name or "": np.ones((1, 1, 8, 8), np.float32)})
    rows = {f"{row.name} ({row.op})": row for row in analyze(made).rows}
    assert runnable.counts
    for name, counts in runnable.counts.items():
        assert rows[name].macs == counts.multiply_adds + counts.skipped
        assert rows[name].effective_macs == counts.multiply_adds


def test_quantized_models_count_as_int8_operations() -> None:
    data = np.load(TESTDATA / "digits_calib.npz")
    made = compress(
        LENET, "quant(gate=off)", data={name: data[name][:8] for name in data.files}, verify="off"
    ).model
    found, plain = analyze(made), analyze(LENET)
    assert found.total.macs == plain.total.macs
    products = [row for row in found.rows if row.macs]
    assert [row.bits for row in products] == [8] * len(products)
    assert sum(row.op == "DequantizeLinear" for row in found.rows) <= 1
    assert found.total.compute_energy == pytest.approx(0.3 / 4.6 * (plain.total.compute_energy or 0))
    first, before = products[1], [row for row in plain.rows if row.macs][1]
    assert (first.moved_bytes or 0) < 0.3 * (before.moved_bytes or 0)
    assert found.memory.file_order < 0.6 * plain.memory.file_order


def test_functions_are_counted_as_what_they_are_made_of() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 13, "local": 1]>
        net (float[1, 6] x) => (float[1, 5] y) <float[6, 5] w = {}> { y = local.Layer(x, w) }
        <domain: "local", opset_import: ["": 13]> Layer (a, b) => (c) { d = MatMul(a, b) c = Relu(d) }"""
    )
    found = analyze(made)
    assert [row.op for row in found.rows] == ["MatMul", "Relu"]
    assert found.total.macs == 30


@pytest.mark.parametrize(
    ("body", "matrix"),
    [
        ("y = Conv<group=4>(x, g)", "gemv"),  # one output channel a group
        ("y = Conv(x, w)", "gemm"),
        ("y = Conv<strides=[8, 8]>(x, w)", "gemv"),  # one place
        ("f = Flatten(x) y = Gemm(f, d)", "gemv"),  # one sample
        ("y = MatMul(x, m)", "gemm"),
        ("y = MatMul(x, v)", "gemv"),
        ("y = Relu(x)", None),
    ],
)
def test_products_with_one_row_or_column_are_of_a_matrix_and_a_vector(body: str, matrix: str | None) -> None:
    dims = "N, A" if "Gemm" in body else "N, A, B, C"
    made = models.model(
        f"""net (float[1, 4, 8, 8] x) => (float[{dims}] y) <float[4, 1, 3, 3] g = {{}},
        float[5, 4, 3, 3] w = {{}}, float[256, 3] d = {{}}, float[8, 3] m = {{}}, float[8, 1] v = {{}}>
        {{ {body} }}"""
    )
    assert analyze(made).rows[-1].matrix == matrix


def test_crossbars_of_a_grouped_convolution_are_those_of_its_groups() -> None:
    made = models.model(
        """net (float[1, 4, 8, 8] x) => (float[1, 6, 6, 6] y) <float[6, 2, 3, 3] w = {}> {
            y = Conv<group=2>(x, w) }"""
    )
    found = analyze(made, crossbar=(16, 16)).total.crossbars
    assert found is not None
    assert (found.rows, found.columns, found.arrays) == (2 * 18, 2 * 3 * 8, 2 * 2 * 2)


@pytest.mark.parametrize("shapes", [{"x": (1, 3, 8, 8)}, {"z": (1, 4, 8, 8)}])
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(UsageError):
        analyze(net(), shapes=shapes)


def test_measured_times_stand_at_the_nodes_that_do_the_work() -> None:
    found = analyze(LENET, measure=True, threads=1)
    rows = {row.name: row for row in found.rows}
    products = [row for row in found.rows if row.macs]
    assert all(row.seconds and row.seconds > 0 for row in products)
    relu = next(row for row in found.rows if row.op == "Relu")
    assert relu.measured_with is not None
    assert rows[relu.measured_with].op in ("Conv", "Gemm")
    assert found.total.seconds == pytest.approx(sum(row.seconds or 0 for row in found.rows))


def test_this_machine_is_measured() -> None:
    found = analyze(net(), target="host", threads=1)
    assert found.machine is not None
    assert 1e8 < found.machine.macs32 < 1e14
    assert 1e8 < found.machine.bandwidth < 1e13


def test_json_and_csv_hold_every_node_and_the_sum() -> None:
    found = analyze(net(), target="mcu", crossbar=(128, 128))
    data = json.loads(document([found]))
    assert data["schema"] == 1
    (model,) = data["models"]
    assert [row["macs"] for row in model["rows"]] == [row.macs for row in found.rows]
    assert model["total"]["macs"] == 13854
    assert model["total"]["energy"] == pytest.approx(found.total.energy)
    assert model["machine"]["what"] == "STM32F746, 216 MHz"
    assert model["rows"][0]["crossbars"]["rows"] == 36
    lines = spreadsheet([found]).splitlines()
    assert len(lines) == 1 + len(found.rows) + 1
    assert len({line.count(",") for line in lines}) == 1
    assert set(columns()) <= set(lines[0].split(",")) | {"peak", "footprint", "file_bytes"}


def test_memory_is_told_for_each_node_in_both_orders() -> None:
    branches = """net (float[1] x) => (float[2] y) {
        [a1] a = Concat<axis=0>(x, x, x, x) [b1] b = Concat<axis=0>(x, x, x, x)
        [a2] c = ReduceSum<keepdims=1>(a) [b2] d = ReduceSum<keepdims=1>(b) [y1] y = Concat<axis=0>(c, d) }"""
    memory = analyze(models.model(branches)).memory
    assert (memory.file_order, memory.file_live) == (36, [20, 36, 36, 24, 16])
    assert (memory.best_order, memory.live) == (24, [20, 24, 24, 24, 16])
    assert [each[1] for each in memory.order] == ["1", "2", "1", "2", "1"]


def test_every_column_of_a_model_can_be_told() -> None:
    found = analyze(net())
    assert found.column("macs") == 13854
    assert found.column("peak") == found.memory.best_order
    assert found.column("seconds") is None
    assert {name for name in columns() if found.column(name) is None} == {"seconds", "roofline_seconds"}


def test_a_microcontroller_is_too_small_or_not() -> None:
    found = analyze(LENET)
    flash, sram = fits(found, found.file_bytes, found.memory.best_order - 1)
    assert flash.fits
    assert not sram.fits
    assert "1 B too much" in str(sram)
    assert fits(found, None, None) == []


def test_the_correlation_is_numpys() -> None:
    draw = np.random.default_rng(0).random((2, 9))
    assert pearson(*draw.tolist()) == pytest.approx(np.corrcoef(draw)[0, 1])
    assert pearson([1, 1, 1], [1, 2, 3]) is None
