import json
import sys
from pathlib import Path

import models
import onnx
import pytest
from command import CALIB, LENET, TEST, TESTDATA, in_process, run

import onnxcompress
from onnxcompress.model import save
from onnxcompress.passes import Prune
from onnxcompress.registry import passes
from onnxcompress.target import NAMES


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
