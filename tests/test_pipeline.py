import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcompress import (
    BoundError,
    Compressed,
    CompressError,
    Context,
    Effect,
    Pass,
    Result,
    UsageError,
    compress,
)
from onnxcompress.base import Need
from onnxcompress.layers import layers
from onnxcompress.model import load
from onnxcompress.passes import Prune, Quant, Simplify
from onnxcompress.request import RANDOM_WARNING
from onnxcompress.target import find_target

TESTDATA = Path(__file__).parent.parent / "testdata"
LENET = TESTDATA / "lenet5_digits.onnx"
TEST, CALIB = TESTDATA / "digits_test.npz", TESTDATA / "digits_calib.npz"


@dataclass(frozen=True, kw_only=True)
class Spoil(Pass):
    """Claims to be exact and adds one to a bias."""

    name: ClassVar[str] = "spoil"
    effect: ClassVar[Effect] = Effect.EXACT

    def call(self, model: ir.Model, context: Context) -> Result:
        bias = model.graph.initializers["fc1.bias"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + 1, name=bias.name)
        result = Result(model)
        result.changed("fc1", "spoilt")
        return result


@dataclass(frozen=True, kw_only=True)
class Poison(Pass):
    """Puts NaN into a weight."""

    name: ClassVar[str] = "poison"
    effect: ClassVar[Effect] = Effect.LOSSY

    def call(self, model: ir.Model, context: Context) -> Result:
        layer = next(iter(layers(model, context)))
        layer.replace_weight(lambda weight: np.full_like(weight, np.nan))
        return Result(model)


@dataclass(frozen=True, kw_only=True)
class Rename(Pass):
    """Renames an output."""

    name: ClassVar[str] = "rename"
    effect: ClassVar[Effect] = Effect.EXACT

    def call(self, model: ir.Model, context: Context) -> Result:
        model.graph.outputs[0].name = "other"
        return Result(model)


@dataclass(frozen=True, kw_only=True)
class Picky(Pass):
    """Needs calibration data."""

    name: ClassVar[str] = "picky"
    effect: ClassVar[Effect] = Effect.EXACT
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    def call(self, model: ir.Model, context: Context) -> Result:
        return Result(model)


def quick(passes: object, **options: object) -> Compressed:
    return compress(LENET, passes, measure_latency=False, **options)  # type: ignore[arg-type]


def test_prune_and_quant_keep_accuracy_and_shrink_the_file(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = quick([Prune(), Quant(gate="off")], output=out, evaluation=TEST).report
    assert report.after is not None
    assert report.after.bytes == out.stat().st_size
    assert report.after.bytes <= 0.35 * report.before.bytes
    assert report.evaluation is not None
    assert report.evaluation.top1 is not None
    before, after = report.evaluation.top1
    assert before > 0.95
    assert after >= before - 0.01
    session = onnxruntime.InferenceSession(out)
    data = np.load(TEST)
    logits = session.run(None, {"image": data["image"]})[0]
    assert np.mean(logits.argmax(1) == data["labels"]) == pytest.approx(after)


def test_the_input_is_never_changed() -> None:
    proto = onnx.load(LENET)
    bytes_before = proto.SerializeToString(deterministic=True)
    compress(proto, [Prune(), Quant(gate="off"), Simplify()], data=CALIB, measure_latency=False)
    assert proto.SerializeToString(deterministic=True) == bytes_before
    model = load(LENET)
    weight = model.graph.initializers["fc1.weight"].const_value
    compress(model, "prune", measure_latency=False)
    assert model.graph.initializers["fc1.weight"].const_value is weight


def test_an_exact_pass_that_is_not_is_caught_at_the_node_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("earlier work")
    with pytest.raises(
        BoundError, match=r"^spoil: outputs differ: logits by .*, first at node /fc1/Gemm \(Gemm\)$"
    ):
        quick([Prune(), Spoil()], output=out)
    assert out.read_text() == "earlier work"
    assert list(tmp_path.iterdir()) == [out]


def test_values_that_turn_to_nan_are_a_missed_bound() -> None:
    with pytest.raises(BoundError, match="poison: output logits: holds NaN or infinity"):
        quick([Poison()])


def test_a_changed_signature_is_refused() -> None:
    with pytest.raises(CompressError, match=r"rename: the outputs are .*other.*, expected .*logits"):
        quick([Rename()])


def test_a_pass_that_lacks_what_it_needs_stops_the_run_before_it_starts() -> None:
    with pytest.raises(UsageError, match="picky: needs calibration, none was given"):
        quick([Spoil(), Picky()])
    quick([Picky()], data=CALIB)


def test_exact_recipes_verified_at_the_end_only_are_caught_too(tmp_path: Path) -> None:
    with pytest.raises(BoundError, match="spoil: outputs differ"):
        quick([Spoil()], verify="end", output=tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_the_file_says_what_was_done_and_whether_it_was_verified(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    quick("prune(sparsity=0.6)", output=first, verify="off")
    compress(first, "quant(gate=off, reduce_range=off)", output=second, measure_latency=False)
    props = {each.key: each.value for each in onnx.load(first).metadata_props}
    assert props["onnxcompress.recipe"] == "prune(sparsity=0.6)"
    assert props["onnxcompress.verify"] == "off"
    props = {each.key: each.value for each in onnx.load(second).metadata_props}
    assert props["onnxcompress.recipe"] == "prune(sparsity=0.6),quant(gate=off, reduce_range=off)"
    assert props["onnxcompress.verify"] == "each"


def test_the_file_names_the_machine_only_where_a_pass_asked_for_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    assert quick("prune", output=first, target="mcu").report.target == "mcu"
    assert "onnxcompress.target" not in {each.key for each in onnx.load(first).metadata_props}
    report = quick("prune-channels", output=second).report
    props = {each.key: each.value for each in onnx.load(second).metadata_props}
    assert props["onnxcompress.target"] == report.target == find_target("host").name


def test_without_data_the_user_is_warned_that_inputs_were_random() -> None:
    assert RANDOM_WARNING in quick("prune").report.notes
    report = quick("prune", data=CALIB).report
    assert RANDOM_WARNING not in report.notes
    assert report.comparison is not None
    assert not report.comparison.random


def test_every_step_is_compared_with_the_model_it_was_given() -> None:
    simplify, prune = quick("simplify,prune(sparsity=0.7)", data=CALIB).report.steps
    assert simplify.comparison is not None
    assert prune.comparison is not None
    assert simplify.comparison.exact
    assert 0 < prune.comparison.snr < 40
    assert prune.comparison.samples == 32


def test_the_report_is_plain_json() -> None:
    report = quick("simplify,prune,quant(gate=off)", data=CALIB, evaluation=TEST).report
    document = json.loads(report.as_json())
    assert document["schema"] == 2
    assert [step["recipe"] for step in document["steps"]] == ["simplify", "prune", "quant(gate=off)"]
    layer = next(each for each in document["steps"][1]["records"] if each["layer"] == "/fc1/Gemm")
    assert layer["numbers"]["zeros"] >= layer["numbers"]["size"] // 2
    assert document["evaluation"]["top1"][0] > 0.95


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"verify": "maybe"}, "verify is 'maybe', expected one of each, end, off"),
        ({"metric": "f1"}, "metric is 'f1', expected one of top1"),
        ({"output": LENET}, "is read by this run too"),
        ({"output": TESTDATA}, "is a folder, expected a file"),
        ({"output": TESTDATA / "none" / "out.onnx"}, "its folder does not exist"),
        ({"runtime": "tflite"}, "tflite: no such runtime"),
        ({"metric": "top1"}, "top1: needs evaluation data, none was given"),
        ({"exclude": ["("]}, r"exclude: '\(' is no regular expression"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        quick("prune", **options)


def test_no_pass_is_no_recipe() -> None:
    with pytest.raises(UsageError, match="recipe: names no pass"):
        quick([])


def test_progress_is_reported_from_start_to_end() -> None:
    seen: list[tuple[int, int | None, str]] = []
    quick("prune,quant", progress=lambda done, total, what: seen.append((done, total, what)))
    assert seen[0] == (0, 2, "prune")
    assert seen[-1][:2] == (2, 2)


def test_either_runtime_verifies() -> None:
    report = quick("simplify,prune", data=CALIB, runtime="interpreter").report
    assert report.comparison is not None
    assert report.comparison.snr > 0


def test_a_collapse_of_accuracy_is_never_silent() -> None:
    notes = quick("prune(sparsity=0.97)", data=CALIB).report.notes
    assert any(note.startswith("prune: only ") and "of predictions stayed the same" in note for note in notes)
    assert not quick("prune(sparsity=0.1)", data=CALIB).report.notes


def test_outputs_that_are_random_are_told_and_not_held_to_a_bound() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    agraph (float[N, 4] x) => (float[N, 4] y) { r = RandomNormalLike(x) i = Identity(r) y = Add(x, i) }"""
    report = compress(ir.from_onnx_text(text), "simplify", measure_latency=False).report
    assert any("differ from run to run" in note for note in report.notes)


@pytest.mark.parametrize("step", ["quant", "checking the whole"])
def test_an_interrupt_leaves_nothing(step: str, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None, what: str) -> None:
        if what == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick("prune,quant", output=tmp_path / "out.onnx", progress=interrupt)
    assert not list(tmp_path.iterdir())
