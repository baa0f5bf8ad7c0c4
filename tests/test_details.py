from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest
from made_reports import TESTDATA, real

from onnxcompress.analysis import analyze
from onnxcompress.details import SHOWN, origin, spread, weights
from onnxcompress.model import load
from onnxcompress.pipeline import compress


def test_ledgers_add_up_to_the_files_and_steps_lead_from_one_to_the_other() -> None:
    report = real()
    assert report.details is not None
    assert report.after is not None
    assert sum(row.bytes for row in report.details.before) == report.before.bytes
    assert sum(row.bytes for row in report.details.after) == report.after.bytes
    sizes = [step.bytes for step in report.steps]
    assert report.decoded == sizes[0] == report.before.bytes  # prune makes nothing smaller
    assert sizes[-1] is not None
    assert sizes[-1] < 0.1 * report.before.bytes
    assert 0 < report.after.bytes - sizes[-1] < 1000  # what is noted in the file


def test_weights_are_those_that_layers_compute_with() -> None:
    report = real()
    assert report.details is not None
    rows = {row.layer: row for row in report.details.weights}
    assert list(rows) == ["/conv1/Conv", "/conv2/Conv", "/fc1/Gemm", "/fc2/Gemm"]
    row = rows["/fc1/Gemm"]
    assert row.before is not None
    assert row.after is not None
    assert (row.before.elements, row.before.zeros) == (100_000, 0)
    assert row.after.zeros == 80_000  # though encoded
    assert sum(row.after.counts) == 20_000
    assert row.error is not None
    assert 0.1 < row.error < 1


def test_noise_comes_in_with_the_first_layer_that_changes() -> None:
    report = real()
    assert report.details is not None
    first, second, *_ = report.details.noise
    assert (first.layer, first.entering, first.leaving) == ("/conv1/Conv", 0, 0)  # too small to be pruned
    assert second.entering == 0
    assert second.leaving is not None
    assert 0.001 < second.leaving < 1


def test_energy_is_told_before_and_after_for_the_machine_compiled_for(tmp_path: Path) -> None:
    spent = []
    for target in ("cpu", "avx2"):
        report = compress(
            TESTDATA / "lenet5_digits.onnx",
            "prune-channels(ratio=0.5),encode",
            target=target,
            report_file=tmp_path / f"{target}.json",
        ).report
        assert report.details is not None
        before, after = report.details.energy_before, report.details.energy_after
        expected = analyze(TESTDATA / "lenet5_digits.onnx", target=target).total
        assert sum(each.total for each in before) == pytest.approx(expected.energy)
        assert sum(each.total for each in after) < 0.6 * sum(each.total for each in before)
        assert sum(each.compute or 0 for each in after) > 0  # though encoded
        assert {"Conv gemm", "Gemm gemv"} <= {each.kind for each in after}
        spent.append(sum(each.dram or 0 for each in before))
    assert spent[0] > spent[1] == 0  # all of it fits into the cache of avx2


@pytest.mark.parametrize("passes", ["quant(activations=none)", "quant(equalize=false,gate=off)"])
def test_quantized_weights_are_told_as_the_numbers_they_stand_for(passes: str) -> None:
    model = load(TESTDATA / "lenet5_digits.onnx")
    calibration = TESTDATA / "digits_calib.npz"
    made = compress(model, passes, data=calibration, verify="off").model
    for row in weights(model, made):
        assert row.error is not None
        assert 0 < row.error < 0.02
        assert row.before is not None
        assert row.after is not None
        assert row.after.low == pytest.approx(row.before.low, abs=0.1)


def test_a_layer_that_is_gone_and_one_that_is_new_are_told() -> None:
    one = models.model("net (float[1,4] x) => (float[1,4] y) <float[4,4] w = {}> { [old] y = MatMul(x, w) }")
    other = models.model(
        "net (float[1,4] x) => (float[1,4] y) <float[4,4] w = {}> { [new] y = MatMul(x, w) }"
    )
    first, second = weights(one, other)
    assert (first.layer, first.after, first.error) == ("old", None, None)
    assert (second.layer, second.before, second.error) == ("new", None, None)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-1, 3, 1001, dtype=np.float32),
        np.float32([0, 0, 0]),
        np.float32([]),
        np.float32([1e10, -1e-10, 0]),
        np.float32([np.nan, np.inf, 7]),
        -np.ones((3, 4), np.float32),
    ],
    ids=["even", "zeros", "empty", "far apart", "not finite", "one value"],
)
def test_a_histogram_counts_all_that_is_finite_and_not_zero_in_its_place(values: np.ndarray) -> None:
    found = spread(values)
    proper = values[np.isfinite(values) & (values != 0)]
    assert (found.elements, found.zeros) == (values.size, int((values == 0).sum()))
    assert sum(found.counts) == proper.size
    assert 1 <= len(found.counts) <= SHOWN + 1
    if proper.size:
        assert found.low <= proper.min()
        assert proper.max() <= found.low + found.width * len(found.counts)
    edges = found.low + found.width * np.arange(len(found.counts) + 1)
    expected = np.histogram(proper.astype(np.float64), edges)[0] if proper.size else [0]
    np.testing.assert_array_equal(found.counts, expected)


def test_what_repeats_a_run_names_the_versions_of_all_that_matters() -> None:
    found = origin("onnxcompress a b", 3, 2)
    assert (found.command, found.seed, found.threads) == ("onnxcompress a b", 3, 2)
    assert {"Python", "onnxruntime", "onnx", "onnx-ir", "numpy"} <= found.versions.keys()
    assert found.versions["numpy"] == np.__version__
    assert found.system
    assert "threads" in found.processor


def test_what_was_encoded_is_told_to_be_unpacked(tmp_path) -> None:  # type: ignore[no-untyped-def]
    first = tmp_path / "first.onnx"
    compress(TESTDATA / "lenet5_digits.onnx", "prune(sparsity=0.9),encode", output=first, verify="off")
    report = compress(
        first, "simplify", output=tmp_path / "b.onnx", report_file=tmp_path / "b.json", verify="off"
    ).report
    assert report.decoded is not None
    assert report.before.bytes == first.stat().st_size < 0.5 * report.decoded
    assert report.steps[0].bytes == pytest.approx(report.decoded, rel=0.01)


def test_a_model_in_memory_has_a_ledger_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = ir.from_proto(ir.to_proto(load(TESTDATA / "lenet300_digits.onnx")))
    report = compress(model, "prune", report_file=tmp_path / "a.json", verify="off").report
    assert report.details is not None
    for rows in (report.details.before, report.details.after):
        assert {row.name: row.bytes for row in rows}["fc2.weight"] == 4 * 300 * 100
