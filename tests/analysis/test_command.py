import csv
import json
from pathlib import Path

import pytest

from onnxcompress.cli import main

TESTDATA = Path(__file__).parents[2] / "testdata"
LENET, MLP = TESTDATA / "lenet5_digits.onnx", TESTDATA / "lenet300_digits.onnx"
RESIDUAL = TESTDATA / "residual_digits.onnx"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["analyze", *map(str, arguments)])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_a_model_is_printed_with_its_nodes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = tmp_path / "a.json", tmp_path / "a.csv"
    code, said, error = run(
        capsys, LENET, "--target", "mcu", "--crossbar", "64x64", "--json", files[0], "--csv", files[1]
    )
    assert (code, error) == (0, "")
    for word in ("parameters", "131,080", "537,000", "roofline", "STM32F746", "crossbars", "fc1"):
        assert word in said
    assert json.loads(files[0].read_text())["models"][0]["total"]["macs"] == 537_000
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert rows[-1]["name"] == "all"
    assert sum(int(row["macs"]) for row in rows[:-1]) == 537_000


def test_several_models_are_a_line_each_and_their_correlation(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys, LENET, MLP, RESIDUAL, "--correlate", "macs,compute_energy")
    assert code == 0
    assert "PPMCC(macs, compute_energy): +1.00" in said
    assert all(count in said for count in ("131k", "50.6k", "2.53M"))


def test_a_model_too_large_for_a_microcontroller_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, error = run(capsys, LENET, "--flash", "100kB", "--sram", "64KiB")
    assert code == 3
    assert "SRAM: 6.40 kB of 65.5 kB, 59.1 kB free" in said
    assert error.count("\n") == 1
    assert "too much" in error
    code, _, error = run(capsys, LENET, "--flash", "1MB", "--sram", "6400")
    assert (code, error) == (0, "")


def test_models_go_to_a_page_with_what_is_told_of_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["--correlate", "macs,energy", "--sram", "320kB", "--html", tmp_path / "a.html"]
    code, said, _ = run(capsys, LENET, MLP, RESIDUAL, *asked)
    assert code == 0
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    told = [line for line in said.splitlines() if "PPMCC" in line or "SRAM" in line]
    assert len(told) == 4
    assert all(f"<li>{line}</li>" in text for line in told)


MISTAKES: dict[str, tuple[list[object], str]] = {
    "no model": ([], "MODEL.onnx"),
    "missing model": (["none.onnx"], "none.onnx"),
    "unknown target": ([LENET, "--target", "mcuu"], "did you mean mcu"),
    "wrong shape": ([LENET, "--input-shape", "1,3,8,8"], "the model's is"),
    "bad shape": ([LENET, "--input-shape", "big"], "form name"),
    "bad energy": ([LENET, "--energy", "mac9=1"], "did you mean mac8"),
    "bad crossbar": ([LENET, "--crossbar", "128"], "128x128"),
    "bad flash": ([LENET, "--flash", "lots"], "1MB"),
    "one model to correlate": ([LENET, "--correlate", "macs,energy"], "three or more"),
    "unknown column": ([LENET, MLP, RESIDUAL, "--correlate", "mac,energy"], "did you mean macs"),
    "one column": ([LENET, MLP, RESIDUAL, "--correlate", "macs"], "two columns"),
    "a column nobody measured": ([LENET, MLP, RESIDUAL, "--correlate", "macs,seconds"], "is not known"),
    "output over input": ([LENET, "--json", LENET], "expected another file"),
    "one file for both": ([LENET, "--json", "a", "--csv", "a"], "expected another file"),
    "a page over JSON": ([LENET, "--json", "a", "--html", "a"], "expected another file"),
    "no folder": ([LENET, "--json", "none/a.json"], "does not exist"),
    "no folder for the page": ([LENET, "--json", "a.json", "--html", "none/a.html"], "does not exist"),
    "no ONNX": ([TESTDATA / "digits_calib.npz"], "digits_calib.npz"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said = MISTAKES[mistake]
    code, _, error = run(capsys, *arguments)
    assert code == (1 if mistake == "no ONNX" else 2)
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())
