"""Bounds as a user gives them: on the command line."""

import json
from pathlib import Path

import onnx
import pytest
from test_cli import in_process

TESTDATA = Path(__file__).parent.parent / "testdata"
LENET = TESTDATA / "lenet300_digits.onnx"
TEST = TESTDATA / "digits_test.npz"
CHOICE = "quant(activations=none)|cluster(bits=2),encode"

Capsys = pytest.CaptureFixture[str]


def test_a_choice_under_max_drop_is_replayed_to_the_same_bytes(tmp_path: Path, capsys: Capsys) -> None:
    first, second, report = (tmp_path / name for name in ("first.onnx", "second.onnx", "report.json"))
    bounds = ("--eval", TEST, "--metric", "agreement", "--max-drop", 2, "--confidence", 0.9)
    code, said, _ = in_process(capsys, LENET, first, "--passes", CHOICE, *bounds, "--report", report)
    assert code == 0
    assert "drop of agreement" in said
    assert "standard error" in said
    document = json.loads(report.read_text())
    assert document["drop"]["points"] + 1.28 * document["drop"]["error"] <= 2
    assert len(document["mixed"]["rows"]) == 6
    recipe = document["recipe"]
    assert recipe in {each.value for each in onnx.load(first).metadata_props}
    assert in_process(capsys, LENET, second, "--passes", recipe)[0] == 0
    assert first.read_bytes() == second.read_bytes()


def test_a_choice_under_max_size_takes_no_more(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "out.onnx"
    code, _, _ = in_process(capsys, LENET, out, "--passes", CHOICE, "--eval", TEST, "--max-size", 0.2)
    assert code == 0
    assert 0 < out.stat().st_size <= 0.2 * LENET.stat().st_size


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        (("--max-drop", 0, "--metric", "cosine"), "cosine: drops by"),
        (("--max-drop", 0.5, "--confidence", 0.99), "at 0.99 confidence"),
        (("--max-size", 0.01), "max-size: "),
    ],
)
def test_an_impossible_bound_exits_with_3_names_the_best_and_writes_nothing(
    bound: tuple[object, ...], said: str, tmp_path: Path, capsys: Capsys
) -> None:
    arguments = ("--passes", CHOICE, "--eval", f"{TEST}[:100]", *bound)
    code, _, error = in_process(capsys, LENET, tmp_path / "out.onnx", *arguments)
    assert code == 3
    assert error.count("\n") == 1
    assert said in error
    assert "best found: " in error
    assert list(tmp_path.iterdir()) == []


def test_a_plain_recipe_that_misses_max_latency_exits_with_3(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "out.onnx"
    code, _, error = in_process(capsys, LENET, out, "--passes", "prune", "--max-latency", 0.001)
    assert code == 3
    assert "max-latency: " in error
    assert not out.exists()


@pytest.mark.parametrize(
    "bound",
    [
        (),
        ("--max-drop", -1),
        ("--max-drop", 1, "--metric", "speed"),
        ("--confidence", 0.9),
        ("--max-drop", 1, "--confidence", 1.5),
        ("--max-drop", 1, "--metric", "snr", "--confidence", 0.9),
        ("--max-size", 0),
        ("--max-latency", 1.5),
    ],
)
def test_bounds_that_mean_nothing_exit_with_2(
    bound: tuple[object, ...], tmp_path: Path, capsys: Capsys
) -> None:
    arguments = ("--passes", CHOICE, "--eval", TEST, *bound)
    code, _, error = in_process(capsys, LENET, tmp_path / "out.onnx", *arguments)
    assert code == 2
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sensitivity_takes_what_its_report_holds(tmp_path: Path, capsys: Capsys) -> None:
    report = tmp_path / "report.json"
    arguments = ("sensitivity", LENET, "--eval", f"{TEST}[:32]", "--report", report)
    assert in_process(capsys, *arguments)[0] == 0
    document = json.loads(report.read_text())
    document["rows"][0]["saved"] = 123_000_000
    report.write_text(json.dumps(document))
    code, said, _ = in_process(capsys, *arguments, "--schemes", "quant(activations=none)|cluster(bits=4)")
    assert code == 0
    assert "123 MB" in said
    assert len(json.loads(report.read_text())["rows"]) == 6
