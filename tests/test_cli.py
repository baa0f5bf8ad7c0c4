import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hostile
import models
import numpy as np
import onnx
import pytest

import onnxcompress
from onnxcompress.model import save
from onnxcompress.passes import Prune
from onnxcompress.registry import passes
from onnxcompress.target import NAMES

ROOT = Path(__file__).parent.parent
TESTDATA = ROOT / "testdata"
LENET = TESTDATA / "lenet5_digits.onnx"
CALIB, TEST = TESTDATA / "digits_calib.npz", TESTDATA / "digits_test.npz"


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "onnxcompress", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        **options,  # type: ignore[call-overload]
    )


def in_process(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process, which saves its start."""
    from onnxcompress.cli import main

    with pytest.raises(SystemExit) as left:
        main([str(each) for each in arguments])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_the_main_job_prints_what_it_did(tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = run(
        LENET, out, "--passes", "prune,quant(gate=off)", "--calib", CALIB, "--eval", TEST, "--report", report
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "size",
        "non-zeros",
        "top-1 accuracy",
        "latency",
        "prune",
        "quant(gate=off)",
        "3 pruned",
        "1 too small",
    ):
        assert word in done.stdout
    assert done.stderr == ""
    onnx.checker.check_model(onnx.load(out))
    assert json.loads(report.read_text())["after"]["bytes"] == out.stat().st_size


def test_a_run_is_told_as_a_page_and_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        wanted = ["--passes", "prune", "--report", f"{name}.json", "--html", f"{name}.html"]
        assert in_process(capsys, LENET, f"{name}.onnx", *wanted)[0] == 0
    command = f"onnxcompress compress {LENET} a.onnx --passes prune --report a.json --html a.html"
    assert json.loads(Path("a.json").read_text())["origin"]["command"] == command
    assert command in Path("a.html").read_text()
    code, said, _ = in_process(capsys, "report", "a.json", "b.json")
    assert code == 0
    assert "b.json" in said
    code, said, _ = in_process(capsys, "report", "a.json", "b.json", "--html", "both.html")
    assert (code, said) == (0, "both.html: 2 reports\n")
    assert "Comparison" in Path("both.html").read_text()
    code, _, said = in_process(capsys, "report", "a.json", "--html", "a.json")
    assert code == 2
    assert "is read by this run too" in said


def test_without_jinja2_a_page_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    wanted = ["--passes", "prune", "--html", tmp_path / "a.html"]
    code, _, said = in_process(capsys, LENET, tmp_path / "a.onnx", *wanted)
    assert code == 2
    assert "onnxcompress[report]" in said
    assert not list(tmp_path.iterdir())


def test_without_data_a_note_says_that_accuracy_is_unknown(tmp_path: Path) -> None:
    done = run(LENET, tmp_path / "out.onnx", "--passes", "prune")
    assert done.returncode == 0
    assert "random inputs" in done.stderr


def test_an_exact_recipe_leaves_the_same_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    assert in_process(capsys, TESTDATA / "residual_digits.onnx", out, "--preset", "lossless")[0] == 0
    code, said, _ = in_process(
        capsys, "compare", TESTDATA / "residual_digits.onnx", out, "--eval", TEST, "--exact"
    )
    assert code == 0
    assert "100.00%" in said


def test_compare_exits_with_3_where_exact_was_asked_and_is_not_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    in_process(capsys, LENET, out, "--passes", "prune(sparsity=0.9)")
    code, said, _ = in_process(capsys, "compare", LENET, out, "--eval", TEST)
    assert code == 0
    assert "top1" in said
    code, _, said = in_process(capsys, "compare", LENET, out, "--exact")
    assert code == 3
    assert "outputs differ" in said


def test_bench_prints_ratios_to_the_first_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = in_process(capsys, "bench", LENET, TESTDATA / "lenet300_digits.onnx", "--seconds", "0.1")
    assert code == 0
    assert "1.00x" in said
    assert "pairs" in said


def test_help_lists_passes_presets_and_options() -> None:
    said = run("--help").stdout
    for name, each in passes().items():
        assert f"{name}  " in said
        assert each.effect.value in said
    for word in (
        "--passes",
        "--target",
        *NAMES,
        "--input-shape",
        "--overwrite-input-shape",
        "--save-as-external-data",
        "lossless",
        "bench",
    ):
        assert word in said


def test_a_pass_is_explained_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = in_process(capsys, "passes", "prune")
    assert code == 0
    for option in Prune.options():
        assert option.name in said
        assert option.help in said
    assert in_process(capsys, "passes")[1].count("\n") == len(passes())


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert onnxcompress.__version__ in in_process(capsys, "--version")[1]


def test_the_report_says_for_what_and_with_how_many_threads_latency_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = models.model(
        """net (float[N,16,40,40] x) => (float[N,16,40,40] y)
        <float[64,16,3,3] a = {}, float[16,64,3,3] b = {}>
        { [a] p = Conv<pads=[1,1,1,1]>(x, a) [b] y = Conv<pads=[1,1,1,1]>(p, b) }"""
    )
    source, out, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    save(made, source)
    options = ["--passes", "prune-channels(latency=0.9)", "--threads", 1, "--target", "avx512"]
    code, said, _ = in_process(capsys, source, out, *options, "--report", report)
    assert code == 0
    found = json.loads(report.read_text())
    numbers = found["steps"][0]["numbers"]
    assert found["target"] == numbers["target"] == "avx512"
    assert numbers["threads"] == 1
    assert numbers["latency"] <= numbers["latency_high"] <= 0.9
    assert f"ratio {numbers['ratio']:.4g}" in said
    again = tmp_path / "again.onnx"
    assert in_process(capsys, source, again, "--passes", numbers["repeat"], "--target", "avx512")[0] == 0
    stored = [
        {each.name: each.raw_data for each in onnx.load(path).graph.initializer} for path in (out, again)
    ]
    assert stored[0] == stored[1]


def test_recipes_come_from_toml_files_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[pass]]\nname = "prune"\nsparsity = 0.25\n')
    out = tmp_path / "out.onnx"
    assert in_process(capsys, LENET, out, "--recipe", recipe)[0] == 0
    props = {each.key: each.value for each in onnx.load(out).metadata_props}
    assert props["onnxcompress.recipe"] == "prune(sparsity=0.25)"


def test_layers_can_be_excluded_and_weights_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    options = ["--passes", "prune", "--exclude", ".*fc1.*", "--external-data", "--jobs", 2, "--threads", 1]
    code, said, _ = in_process(capsys, LENET, out, *options)
    assert code == 0
    assert "1 excluded" in said
    assert (tmp_path / "out.onnx.data").stat().st_size > 400_000
    assert out.stat().st_size < 20_000


def test_shapes_can_be_given_either_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag, shape in (("--input-shape", "image:2,1,8,8"), ("--overwrite-input-shape", "image:2x1x8x8")):
        assert in_process(capsys, LENET, tmp_path / "out.onnx", "--passes", "prune", flag, shape)[0] == 0
    code, _, said = in_process(
        capsys, LENET, tmp_path / "o.onnx", "--passes", "prune", "--input-shape", "image:2,x"
    )
    assert code == 2
    assert "not of the form" in said


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


def test_an_encoded_model_is_smaller_and_unpacks_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned, encoded, plain = (tmp_path / f"{name}.onnx" for name in ("pruned", "encoded", "plain"))
    assert in_process(capsys, LENET, pruned, "--passes", "prune(sparsity=0.9),cluster(bits=5)")[0] == 0
    assert in_process(capsys, pruned, encoded, "--passes", "encode")[0] == 0
    assert encoded.stat().st_size < 0.2 * pruned.stat().st_size
    code, said, _ = in_process(capsys, "inspect", encoded)
    assert code == 0
    assert f"{encoded.stat().st_size:,}" in said
    code, said, _ = in_process(capsys, "unpack", encoded, plain)
    assert code == 0
    assert "weights unpacked" in said
    weights = [
        {each.name: each.raw_data for each in onnx.load(path).graph.initializer} for path in (pruned, plain)
    ]
    assert weights[0] == weights[1]
    assert in_process(capsys, "unpack", encoded, encoded)[0] == 2
    assert "nothing was encoded" in in_process(capsys, "unpack", pruned, tmp_path / "same.onnx")[1]


def test_passes_see_through_an_encoded_model_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = tmp_path / "encoded.onnx"
    in_process(capsys, LENET, encoded, "--passes", "prune(sparsity=0.9),encode")
    code, _, said = in_process(capsys, encoded, tmp_path / "out.onnx", "--passes", "quant")
    assert code == 0
    assert "were unpacked before the first pass" in said


def test_what_is_written_in_line_has_no_functions_and_unpacks_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded, line, plain = (tmp_path / f"{name}.onnx" for name in ("encoded", "line", "plain"))
    in_process(capsys, LENET, encoded, "--passes", "prune(sparsity=0.9),cluster(bits=5),encode")
    code, _, said = in_process(capsys, encoded, line, "--passes", "encode", "--inline")
    assert code == 0
    assert "were unpacked before the first pass" in said
    proto = onnx.load(line)
    assert not proto.functions
    assert [each.domain for each in proto.opset_import] == [""]
    code, said, _ = in_process(capsys, "inspect", line)
    assert code == 0
    assert f"{line.stat().st_size:,}" in said
    assert "decoders" in said
    assert in_process(capsys, "compare", encoded, line, "--exact")[0] == 0
    for source in (encoded, line):
        assert (
            "3 weights unpacked"
            in in_process(capsys, "unpack", source, plain.with_stem(source.stem + "2"))[1]
        )
    weights = [
        {each.name: each.raw_data for each in onnx.load(tmp_path / name).graph.initializer}
        for name in ("encoded2.onnx", "line2.onnx")
    ]
    assert weights[0] == weights[1]
    next(each for each in proto.metadata_props if each.key == "onnxcompress.calls").value = "{"
    onnx.save(proto, line)
    code, _, said = in_process(capsys, "unpack", line, plain)
    assert code == 1
    assert said.startswith("onnxcompress: onnxcompress.calls: is no JSON")
    assert said.count("\n") == 1
    assert not plain.exists()


# channels


def test_channels_lists_units_with_the_layers_they_span_and_why_they_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said, _ = in_process(capsys, "channels", TESTDATA / "branch_digits.onnx")
    assert code == 0
    assert "stem.conv" in said
    assert "read inside" in said
    assert "inside a body" in said
    code, said, _ = in_process(capsys, "channels", LENET, "--input-shape", "image:1,2,8,8")
    assert code == 2


def test_sensitivity_lists_layers_and_schemes(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = in_process(
        capsys, "sensitivity", TESTDATA / "lenet300_digits.onnx", "--eval", f"{TEST}[:64]", "--metric", "snr"
    )
    assert code == 0
    for word in ("fc1", "quant(activations=none)", "dB"):
        assert word in said
    assert "cosine" not in said


def test_sensitivity_goes_to_a_page_at_once_or_from_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, report, first = TESTDATA / "lenet300_digits.onnx", tmp_path / "a.json", tmp_path / "a.html"
    asked = ["--eval", f"{TEST}[:64]", "--report", report, "--html", first]
    assert in_process(capsys, "sensitivity", model, *asked)[0] == 0
    again = tmp_path / "b.html"
    code, said, _ = in_process(capsys, "report", report, "--html", again)
    assert (code, said) == (0, f"{again}\n")
    pages = [each.read_text().replace(str(name), "") for each, name in ((first, model), (again, report))]
    assert pages[0] == pages[1]
    code, said, _ = in_process(capsys, "report", report)
    assert code == 0
    assert "fc1" in said
    code, _, said = in_process(capsys, "sensitivity", model, "--html", model)
    assert (code, said.count("\n")) == (2, 1)
    assert "is read by this run too" in said


def test_a_missed_max_drop_exits_with_3_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.onnx"
    code, _, said = in_process(
        capsys, LENET, out, "--passes", "prune(sparsity=0.98)", "--eval", TEST, "--max-drop", 0.5
    )
    assert code == 3
    assert "top1: drops by" in said
    assert list(tmp_path.iterdir()) == []


def test_compare_lists_the_error_around_every_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = TESTDATA / "lenet300_digits.onnx", tmp_path / "out.onnx"
    assert in_process(capsys, first, second, "--passes", "quant(activations=none),encode")[0] == 0
    code, said, _ = in_process(capsys, "compare", first, second, "--eval", f"{TEST}[:32]", "--layers")
    assert code == 0
    for word in ("entering", "leaving", "fc1", "fc3", "adds most", "equal"):
        assert word in said
    assert "not matched" not in said


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
