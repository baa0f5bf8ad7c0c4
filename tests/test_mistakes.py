import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import onnx
import pytest
from command import LENET, ROOT, TEST, TESTDATA, in_process, run


def npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return make


IMAGES = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)

# What a user can get wrong besides the model file: arguments, and the exit code.
MISTAKES: dict[str, tuple[list[object], int, str]] = {
    "no recipe": ([LENET, "OUT"], 2, "exactly one of --passes"),
    "two recipes": ([LENET, "OUT", "--passes", "prune", "--preset", "fast"], 2, "exactly one of --passes"),
    "unknown pass": ([LENET, "OUT", "--passes", "prun"], 2, "did you mean prune"),
    "unknown preset": ([LENET, "OUT", "--preset", "faster"], 2, "did you mean fast"),
    "unknown option of a pass": ([LENET, "OUT", "--passes", "prune(sparse=1)"], 2, "did you mean sparsity"),
    "option out of bounds": ([LENET, "OUT", "--passes", "prune(sparsity=7)"], 2, "expected 0 to 1"),
    "option of the wrong kind": ([LENET, "OUT", "--passes", "prune(sparsity=much)"], 2, "expected float"),
    "bad pattern of a pass": ([LENET, "OUT", "--passes", "prune(exclude='(')"], 2, "no regular expression"),
    "bad pattern": ([LENET, "OUT", "--passes", "prune", "--exclude", "["], 2, "no regular expression"),
    "unreadable recipe": ([LENET, "OUT", "--passes", "prune(("], 2, "unexpected"),
    "missing recipe file": ([LENET, "OUT", "--recipe", "none.toml"], 2, "none.toml"),
    "unknown flag": ([LENET, "OUT", "--passes", "prune", "--frobnicate"], 2, "frobnicate"),
    "bad verify": (
        [LENET, "OUT", "--passes", "prune", "--verify", "never"],
        2,
        "expected one of each, end, off",
    ),
    "bad metric": ([LENET, "OUT", "--passes", "prune", "--metric", "f1"], 2, "expected one of top1"),
    "metric without data": (
        [LENET, "OUT", "--passes", "prune", "--metric", "top1"],
        2,
        "needs evaluation data",
    ),
    "negative tolerance": ([LENET, "OUT", "--passes", "prune", "--check-atol", "-1"], 2, "check-atol"),
    "negative threads": ([LENET, "OUT", "--passes", "prune", "--threads", "-1"], 2, "threads"),
    "unknown target": ([LENET, "OUT", "--passes", "prune", "--target", "avx51"], 2, "avx512"),
    "missing input": (["none.onnx", "OUT", "--passes", "prune"], 2, "none.onnx"),
    "input is a folder": ([TESTDATA, "OUT", "--passes", "prune"], 2, "testdata"),
    "missing output": ([LENET, "--passes", "prune"], 2, "OUT.onnx"),
    "missing target folder": ([LENET, "none/out.onnx", "--passes", "prune"], 2, "does not exist"),
    "output is a folder": ([LENET, "FOLDER", "--passes", "prune"], 2, "is a folder"),
    "missing report folder": (
        [LENET, "OUT", "--passes", "prune", "--report", "none/r.json"],
        2,
        "does not exist",
    ),
    "page over the output": ([LENET, "OUT", "--passes", "prune", "--html", "out.onnx"], 2, "written twice"),
    "page without a folder": ([LENET, "OUT", "--passes", "prune", "--html", "none/a.html"], 2, "not exist"),
    "missing report": (["report", "none.json"], 2, "none.json"),
    "a model as a report": (["report", LENET], 2, "is no JSON"),
    "no reports": (["report"], 2, "A.json"),
    "missing data": ([LENET, "OUT", "--passes", "quant", "--calib", "none.npz"], 2, "none.npz"),
    "data that is no array": ([LENET, "OUT", "--passes", "quant", "--calib", LENET], 2, "lenet5_digits.onnx"),
    "unreachable exactness": (
        [
            TESTDATA / "transformer_digits.onnx",
            "OUT",
            "--passes",
            "simplify",
            "--check-rtol",
            "0",
            "--check-atol",
            "0",
        ],
        3,
        "simplify: outputs differ",
    ),
}
BAD_DATA: dict[str, tuple[Callable[[Path], Path], str]] = {
    "wrong shape": (npz(image=np.zeros((4, 3, 8, 8), np.float32)), "expected"),
    "wrong name": (npz(imagee=IMAGES, other=IMAGES), "image"),
    "wrong type": (npz(image=np.array([["a"]] * 4)), "image"),
    "not a number": (npz(image=np.full((4, 1, 8, 8), np.nan, np.float32)), "NaN"),
    "no samples": (npz(image=np.zeros((0, 1, 8, 8), np.float32)), "sample"),
    "pickled objects": (npz(image=np.array([{}, {}, {}, {}], object)), "object"),
}


def expect(done: subprocess.CompletedProcess[str], code: int, said: str, folder: Path) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, said = MISTAKES[mistake]
    before = LENET.read_bytes()
    monkeypatch.chdir(tmp_path)
    given = [{"OUT": "out.onnx", "FOLDER": tmp_path}.get(str(each), each) for each in arguments]
    left, _, error = in_process(capsys, *given)
    expect(subprocess.CompletedProcess([], left, "", error), code, said, tmp_path)
    assert LENET.read_bytes() == before


@pytest.mark.parametrize("mistake", BAD_DATA)
@pytest.mark.parametrize("role", ["--calib", "--eval"])
def test_unfit_data_is_one_line_and_leaves_nothing(
    mistake: str, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = BAD_DATA[mistake]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    left, _, error = in_process(
        capsys, LENET, tmp_path / "out" / "out.onnx", "--passes", "quant", role, make(tmp_path / "in")
    )
    expect(subprocess.CompletedProcess([], left, "", error), 2, said, tmp_path / "out")


@pytest.mark.parametrize("case", hostile.CASES)
def test_a_hostile_model_is_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    model = hostile.CASES[case](tmp_path / "in")
    before = model.read_bytes() if model.is_file() else b""
    left, _, error = in_process(
        capsys, model, tmp_path / "out" / "out.onnx", "--passes", "simplify,prune(min_size=1),quant"
    )
    assert left in (1, 2)
    expect(subprocess.CompletedProcess([], left, "", error), left, "", tmp_path / "out")
    assert (model.read_bytes() if model.is_file() else b"") == before


def test_output_over_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(LENET.read_bytes())
    (tmp_path / "link.onnx").symlink_to(model)
    for out in (model, tmp_path / "link.onnx"):
        code, _, said = in_process(capsys, model, out, "--passes", "prune")
        assert code == 2
        assert "is read by this run too" in said
    assert model.read_bytes() == LENET.read_bytes()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    for extra in ([], ["--external-data"]):
        done = run(LENET, tmp_path / "out.onnx", "--passes", "prune", *extra, preexec_fn=limit)
        expect(done, 1, "can't be written", tmp_path)


def test_an_interrupt_is_one_line_and_a_code_of_its_own() -> None:
    code = (
        "import os, signal, sys, threading\n"
        "from onnxcompress.cli import main\n"
        "threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"main(['bench', {str(LENET)!r}, '--seconds', '60'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=50
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "onnxcompress: interrupted; nothing was written"
    assert "Traceback" not in done.stderr


def test_no_page_is_written_over_data_or_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model, weights = tmp_path / "x.npz", tmp_path / "in.onnx", tmp_path / "in.data"
    shutil.copy(TEST, data)
    onnx.save(onnx.load(LENET), model, save_as_external_data=True, location=weights.name, size_threshold=0)
    for arguments in (
        ("sensitivity", LENET, "--eval", f"{data}[:4]", "--html", data),
        ("sensitivity", LENET, "--calib", f"{data}[:4]", "--report", data),
        ("sensitivity", model, "--html", weights),
        ("analyze", model, "--html", weights),
        ("analyze", model, "--csv", weights),
    ):
        before = [each.read_bytes() for each in (data, weights)]
        code, _, said = in_process(capsys, *arguments)
        assert (code, said.count("\n")) == (2, 1)
        assert "is read by this run too" in said
        assert [each.read_bytes() for each in (data, weights)] == before
