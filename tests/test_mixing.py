import json
from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from onnxcompress import BoundError, UsageError, compress
from onnxcompress.base import Runnable
from onnxcompress.model import save
from onnxcompress.recipe import Mix, Recipe, parse

TESTDATA = Path(__file__).parent.parent / "testdata"
LENET = TESTDATA / "lenet300_digits.onnx"
CALIB, TEST = TESTDATA / "digits_calib.npz", TESTDATA / "digits_test.npz"
CHOICE = "quant(activations=none)|cluster(bits=2),encode"


def mixed(passes: str = CHOICE, **options: object) -> object:
    return compress(LENET, passes, measure_latency=False, **options)  # type: ignore[arg-type]


def test_what_the_speed_gate_finds_for_the_whole_is_part_of_the_scheme_that_is_tried() -> None:
    report = mixed("quant|cluster(bits=4)", data=CALIB, evaluation=TEST, max_drop=0.5).report  # type: ignore[attr-defined]
    schemes = {row.scheme for row in report.mixed.rows}
    assert len(schemes) == 2
    assert all(scheme.startswith("cluster") or "gate=off" in scheme for scheme in schemes)
    assert "gate=on" not in report.recipe
    assert report.mixed.schemes  # some layer has changed, and nothing was timed after that
    assert not any("repeat" in step.numbers for step in report.steps)


def test_a_choice_is_part_of_a_recipe() -> None:
    mix = parse("simplify,quant|cluster(bits=4),encode")
    assert isinstance(mix, Mix)
    assert [str(each) for each in mix.schemes] == ["quant", "cluster(bits=4)"]
    assert parse(str(mix)) == mix
    assert isinstance(parse("simplify,quant"), Recipe)
    for text in ("quant|prune,quant|prune", "simplify|quant", "quant|", "quant||prune"):
        with pytest.raises(UsageError):
            parse(text)
    with pytest.raises(UsageError, match="a choice of"):
        Recipe.parse("quant|prune")


def test_the_choice_keeps_the_bound_and_is_smaller_than_the_mild_scheme(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = mixed(output=out, evaluation=TEST, max_drop=0.5, metric="top1").report  # type: ignore[attr-defined]
    mild = mixed("quant(activations=none),encode", output=tmp_path / "mild.onnx").report  # type: ignore[attr-defined]
    assert report.drop.points <= 0.5
    assert report.drop.error > 0
    assert report.after.bytes < mild.after.bytes
    assert len(report.mixed.rows) == 6
    assert json.loads(report.as_json())["mixed"]["schemes"] == report.mixed.schemes


def test_the_choice_is_never_larger_than_a_scheme_for_all_layers_that_keeps_the_bound(tmp_path: Path) -> None:
    few = f"{TEST}[:40]"  # the standard error is above the bound: nothing that is searched for is sure
    schemes, sizes = ("quant(activations=none)", "cluster(bits=3)", "cluster(bits=2)"), []
    for number, passes in enumerate(("|".join(schemes), *schemes)):
        out = tmp_path / f"{number}.onnx"
        mixed(f"{passes},encode", output=out, evaluation=few, max_drop=0.5 if number < 3 else None)
        sizes.append(out.stat().st_size)
    assert sizes[3] < sizes[2] < sizes[1]  # the last of them loses 10 points
    assert sizes[0] == sizes[2]


def test_its_recipe_gives_the_same_file_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    mixed(output=first, evaluation=TEST, max_drop=2.0, metric="agreement")
    recipe = next(p.value for p in onnx.load(first).metadata_props if p.key == "onnxcompress.recipe")
    assert "|" in recipe
    assert "exclude=" in recipe
    mixed(recipe, output=second, evaluation=TEST)
    assert first.read_bytes() == second.read_bytes()


def test_a_size_is_met_with_as_few_steps_as_it_takes(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = mixed(output=out, data=CALIB, max_size=0.4).report  # type: ignore[attr-defined]
    assert out.stat().st_size <= 0.4 * LENET.stat().st_size
    assert 0 < report.mixed.taken < report.mixed.steps


def test_a_latency_is_met_by_the_scheme_that_is_faster() -> None:
    draw = np.random.default_rng(0)
    text = """g (float[1, 1024] x) => (float[1, 1024] y) <float[1024, 1024] w, float[1024, 1024] v> {
        [first] a = MatMul(x, w)
        b = Relu(a)
        [second] y = MatMul(b, v)
    }"""
    model = models.model(
        text, {name: draw.normal(size=(1024, 1024)).astype(np.float32) / 32 for name in "wv"}
    )
    passes = "cluster(bits=4)|factorise(rank=1, when=always)"
    report = compress(model, passes, data=np.ones((2, 1024), np.float32), max_latency=0.9).report
    assert report.recipe.startswith("factorise(")  # a thousandth of the work, on any machine
    assert "cluster" not in report.recipe
    assert report.latency is not None
    assert report.latency.low <= 0.9
    assert report.mixed is not None
    assert report.mixed.taken >= 1
    with pytest.raises(
        BoundError, match=r"max-latency: 0\..* expected 0\.0001 at most; best found: factorise"
    ):
        compress(model, passes, data=np.ones((2, 1024), np.float32), max_latency=0.0001)


def test_impossible_bounds_say_the_best_there_is_and_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    for options, said in (
        ({"max_drop": 0.0, "metric": "snr"}, r"snr: drops by .*best found: quant\(activations=none, exclude"),
        ({"max_size": 0.001}, r"max-size: .*best found: "),
    ):
        with pytest.raises(BoundError, match=said):
            mixed(output=out, evaluation=TEST, **options)
    assert not out.exists()


def test_a_function_may_be_the_metric() -> None:
    calls = []

    def quality(runnable: Runnable) -> float:
        calls.append(runnable)
        return 1.0 if runnable is calls[0] else 0.75

    with pytest.raises(BoundError, match=r"quality: drops by 0\.25, expected 0\.1"):
        mixed("prune", metric=quality, max_drop=0.1)
    calls.clear()
    assert mixed("prune", metric=quality, max_drop=0.3).report.metric == "quality"  # type: ignore[attr-defined]


def test_a_plain_recipe_is_held_to_the_bound_too(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(BoundError, match="top1: drops by"):
        mixed("prune(sparsity=0.98)", output=out, evaluation=TEST, max_drop=0.5)
    with pytest.raises(BoundError, match=r"at 0\.95 confidence"):
        mixed("quant(activations=none)", output=out, evaluation=f"{TEST}[:50]", max_drop=0.5, confidence=0.95)
    with pytest.raises(BoundError, match="max-size"):
        mixed("prune", output=out, max_size=0.5)
    assert not out.exists()
    mixed("quant(activations=none)", output=out, evaluation=TEST, max_drop=1.0, confidence=0.9)
    assert out.exists()


def test_bounds_that_say_nothing_are_refused() -> None:
    for options in (
        {},
        {"max_drop": 0.5},
        {"max_drop": 0.5, "evaluation": CALIB},
        {"confidence": 0.9, "max_size": 0.5},
        {"max_size": 2.0},
    ):
        with pytest.raises(UsageError):
            mixed(**options)


def test_a_scheme_that_breaks_the_whole_model_is_not_taken(tmp_path: Path) -> None:
    small, large = np.full((32, 64), 0.1, np.float32), np.ones((32, 64), np.float32)
    weight = np.concatenate([small, large])  # of which the inputs see the small half only
    made = models.model(
        "g (float[N, 64] x) => (float[N, 64] y) {"
        "[one] a = MatMul(x, v) [two] b = MatMul(x, w) c = Add(a, b) y = Log(c) }",
        {"v": weight, "w": weight * 2},
    )
    save(made, tmp_path / "in.onnx")
    given = np.concatenate([np.ones((8, 32), np.float32), np.zeros((8, 32), np.float32)], axis=1)
    np.savez(tmp_path / "x.npz", x=given)
    report = compress(
        tmp_path / "in.onnx",
        "prune(sparsity=0.5, min_size=1)|quant(activations=none)",
        evaluation=tmp_path / "x.npz",
        metric="snr",
        max_drop=1.0,
        measure_latency=False,
    ).report
    assert report.mixed is not None
    assert set(report.mixed.schemes.values()) == {"quant(activations=none)"}
