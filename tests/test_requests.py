"""What a run reads is never written, and what is asked for is done or refused; each was once neither."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress import BoundError, Context, Effect, Pass, Recipe, Result, UsageError, compress
from onnxcompress.check import UNSOUND
from onnxcompress.model import load, tensors
from onnxcompress.passes import Prune
from onnxcompress.verify import Tolerance, compare

TESTDATA = Path(__file__).parent.parent / "testdata"
LENET = TESTDATA / "lenet5_digits.onnx"
TEST, CALIB = TESTDATA / "digits_test.npz", TESTDATA / "digits_calib.npz"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in line, one with external data, its data in `out.onnx.data`, and calibration data."""
    shutil.copy(LENET, tmp_path / "in.onnx")
    shutil.copy(CALIB, tmp_path / "calib.npz")
    compress(LENET, "prune", output=tmp_path / "out.onnx", external_data=True, measure_latency=False)
    os.rename(tmp_path / "out.onnx", tmp_path / "base.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "written", "said"),
    [
        ("in.onnx", {"output": "in.onnx"}, "in.onnx: is read by this run too"),
        ("in.onnx", {"report_file": "in.onnx"}, "in.onnx: is read by this run too"),
        ("in.onnx", {"output": "calib.npz"}, "calib.npz: is read by this run too"),
        ("in.onnx", {"output": "o.onnx", "report_file": "o.onnx"}, "o.onnx: is written twice by this run"),
        ("base.onnx", {"output": "out.onnx.data"}, "out.onnx.data: is read by this run too"),
        ("base.onnx", {"output": "out.onnx"}, "out.onnx.data: is read by this run too"),
        ("in.onnx", {"output": "new.onnx", "report_file": "."}, "is a folder"),
    ],
)
def test_what_a_run_reads_is_never_written(
    folder: Path, source: str, written: dict[str, str], said: str
) -> None:
    before = content(folder)
    targets = {key: folder / name for key, name in written.items()}
    with pytest.raises(UsageError, match=said):
        compress(folder / source, "prune", data=folder / "calib.npz", measure_latency=False, **targets)
    assert content(folder) == before


@pytest.mark.parametrize("runtime", ["onnxruntime", "interpreter"])
def test_each_step_is_compared_with_the_model_before_it_not_with_itself(runtime: str) -> None:
    recipe = "prune(sparsity=0.1),prune(sparsity=0.97)"
    report = compress(LENET, recipe, data=CALIB, runtime=runtime, measure_latency=False).report
    snr = [step.comparison.snr for step in report.steps if step.comparison is not None]
    assert snr[0] > 20 > 10 > snr[1]


def test_one_pattern_of_layers_may_be_given_as_a_text() -> None:
    report = compress(LENET, "prune", exclude="/fc1/Gemm", measure_latency=False).report
    assert [record.what for record in report.steps[0].records if record.layer == "/fc1/Gemm"] == ["excluded"]


def test_a_pattern_that_matches_nothing_is_told() -> None:
    notes = compress(LENET, "prune", exclude=["/fc1/Gemm", "fc9"], measure_latency=False).report.notes
    assert [note for note in notes if note.startswith("exclude")] == ["exclude: 'fc9' matches no layer"]


NAN = """<ir_version: 8, opset_import: ["": 17]>
agraph (float[N, 2] x) => (float[N, 2] y) <float[2] w = {-100, -200}> { s = Add(x, w) y = Log(s) }"""


def test_outputs_that_are_nan_from_the_start_are_told() -> None:
    report = compress(ir.from_onnx_text(NAN), "prune", measure_latency=False).report
    assert UNSOUND in report.notes


def test_accuracy_is_asked_for_only_where_there_are_labels() -> None:
    images = {"image": np.load(TEST)["image"][:64]}
    with pytest.raises(UsageError, match="top1: the evaluation data has no labels"):
        compress(LENET, "prune", evaluation=images, metric="top1", measure_latency=False)


def test_evaluation_is_done_even_where_outputs_are_not_verified() -> None:
    report = compress(LENET, "prune", evaluation=TEST, verify="off", measure_latency=False).report
    assert report.comparison is None
    assert report.steps[0].comparison is None
    assert report.evaluation is not None
    assert report.evaluation.top1 is not None


def test_class_scores_may_be_integers() -> None:
    class Scores:
        def run(self, feeds: object) -> dict[str, np.ndarray]:
            return {"y": np.array([[1, 9, 3], [7, 2, 3]], np.uint8)}

    found = compare(Scores(), Scores(), [{"x": np.zeros((2, 1))}], labels=np.array([1, 2]))
    assert found.top1 == (0.5, 0.5)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_tolerance_is_a_number_that_is_not_negative(value: float) -> None:
    with pytest.raises(UsageError, match="expected 0 or more"):
        Tolerance(rtol=value)


@pytest.mark.parametrize("passes", [Prune, [Prune], [3], 3, None])
def test_what_is_no_pass_is_refused_by_name(passes: object) -> None:
    with pytest.raises(UsageError, match="is no pass"):
        compress(LENET, passes, measure_latency=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, b"bytes", ""])
def test_what_is_no_model_is_refused(model: object) -> None:
    with pytest.raises(UsageError, match=r"model: .* is none"):
        compress(model, "prune")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"), [({"seed": -1}, "seed is -1"), ({"threads": 10**5}, "threads is")]
)
def test_numbers_out_of_bounds_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        compress(LENET, "prune", **options)  # type: ignore[arg-type]


def test_the_only_input_needs_no_name_for_its_shape() -> None:
    compress(LENET, "prune", shapes={"": (2, 1, 8, 8)}, measure_latency=False)
    with pytest.raises(UsageError, match="expected at most"):
        compress(LENET, "prune", shapes={"image": (10**11, 1, 8, 8)}, measure_latency=False)


@dataclass(frozen=True, kw_only=True)
class Plain(Pass):
    """A pass of a plug-in whose options are plain fields, and that breaks what it claims to keep."""

    name: ClassVar[str] = "plain"
    effect: ClassVar[Effect] = Effect.EXACT
    value: float = 1.0

    def call(self, model: ir.Model, context: Context) -> Result:
        bias = model.graph.initializers["fc1.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() * np.float32(self.value), name=bias.name)
        return Result(model)


def test_options_may_be_plain_fields() -> None:
    assert str(Plain(value=2)) == "plain(value=2.0)"


@pytest.mark.parametrize(("verify", "value"), [("each", 2.0), ("each", float("inf")), ("end", float("inf"))])
def test_the_pass_and_the_node_that_break_a_model_are_named(verify: str, value: float) -> None:
    with pytest.raises(BoundError, match=r"^plain: .*, first at node /fc1/Gemm \(Gemm\)$"):
        compress(LENET, Recipe((Prune(), Plain(value=value))), verify=verify, measure_latency=False)


def test_parameters_count_wherever_tensors_are() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    agraph (float[2] x) => (float[2] y) <float[2] w = {1, 0}>
    { c = Constant<value = float[3] {1, 2, 3}>() s = ReduceSum(c) a = Mul(x, w) y = Add(a, s) }"""
    model = load(compress(ir.from_onnx_text(text), "prune", measure_latency=False).model)
    assert len(list(tensors(model))) == 2
    report = compress(model, "prune", measure_latency=False).report
    assert (report.before.parameters, report.before.nonzeros) == (5, 4)
