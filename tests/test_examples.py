import re
import runpy
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcompress import compress

ROOT = Path(__file__).parent.parent
EXAMPLES, TESTDATA = ROOT / "examples", ROOT / "testdata"
SMALL = TESTDATA / "lenet300_digits.onnx"


def test_an_archive_of_the_model_zoo_is_unpacked_and_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "lenet300"
    samples = inner / "test_data_set_0"
    samples.mkdir(parents=True)
    shutil.copy(SMALL, inner / "model.onnx")
    image = np.load(TESTDATA / "digits_test.npz")["image"][:1]
    onnx.save_tensor(numpy_helper.from_array(image, "image"), samples / "input_0.pb")
    with tarfile.open(tmp_path / "lenet300-7.tar.gz", "w:gz") as tar:
        tar.add(inner, "lenet300")
    (tmp_path / "zoo").mkdir()
    text = (EXAMPLES / "model_zoo" / "zoo.toml").read_text()
    (tmp_path / "zoo" / "zoo.toml").write_text(text)
    arguments = [str(tmp_path / "lenet300-7.tar.gz"), "--manifest", str(tmp_path / "zoo" / "zoo.toml")]
    monkeypatch.setattr("sys.argv", ["convert.py", *arguments])
    runpy.run_path(str(EXAMPLES / "model_zoo" / "convert.py"), run_name="__main__")
    assert "2 of 2 jobs done" in capsys.readouterr().out
    made = tmp_path / "zoo" / "out" / "lenet300-7" / "lenet300"
    assert {each.name for each in made.glob("*.onnx")} == {"lossless.onnx", "int8.onnx"}
    int8 = {node.op_type for node in onnx.load(made / "int8.onnx").graph.node}
    assert "QuantizeLinear" in int8  # static: the zoo's samples were the calibration data
    assert (tmp_path / "zoo" / "out" / "summary.csv").read_text().count("\n") == 3


def test_an_archive_that_would_write_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        tar.add(SMALL, "../../../escaped.onnx")
    (tmp_path / "zoo").mkdir()
    shutil.copy(EXAMPLES / "model_zoo" / "zoo.toml", tmp_path / "zoo")
    arguments = [str(tmp_path / "bad.tar.gz"), "--manifest", str(tmp_path / "zoo" / "zoo.toml")]
    monkeypatch.setattr("sys.argv", ["convert.py", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / "model_zoo" / "convert.py"), run_name="__main__")
    assert "belongs elsewhere" in str(left.value.code) + capsys.readouterr().err
    assert not (tmp_path / "escaped.onnx").exists()
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plug-in as if it were installed: its entry points are those of its pyproject.toml."""
    project = tomllib.loads((EXAMPLES / "plugin" / "pyproject.toml").read_text())["project"]
    info = tmp_path / "onnxcompress_round_mantissa-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    points = project["entry-points"]["onnxcompress.passes"]
    lines = "".join(f"{name} = {place}\n" for name, place in points.items())
    (info / "entry_points.txt").write_text(f"[onnxcompress.passes]\n{lines}")
    monkeypatch.syspath_prepend(str(EXAMPLES / "plugin"))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugged")
def test_the_plug_in_s_pass_is_found_and_pays_with_encode(tmp_path: Path) -> None:
    recipe = "round-mantissa(bits=3),encode"
    rounded = compress(SMALL, recipe, output=tmp_path / "out.onnx", measure_latency=False).report
    plain = compress(SMALL, "encode", output=tmp_path / "plain.onnx", measure_latency=False).report
    assert rounded.after is not None
    assert plain.after is not None
    assert rounded.after.bytes < 0.4 * plain.after.bytes
    assert rounded.comparison is not None
    assert rounded.comparison.snr > 20
    again = compress(tmp_path / "out.onnx", "round-mantissa(bits=3)", measure_latency=False).report
    assert {record.what for record in again.steps[0].records if not record.changed} >= {"rounded already"}
    assert not any(record.changed for record in again.steps[0].records)


@pytest.mark.usefixtures("plugged")
def test_rounding_keeps_the_leading_bits() -> None:
    from round_mantissa import rounded

    weight = np.array([1.0, 1.0624, 1.0626, -5.3, 0.0, np.inf, 3e-42], np.float32)
    found = rounded(weight, 3)
    assert found[:5].tolist() == [1.0, 1.0, 1.125, -5.5, 0.0]
    assert found[5] == np.inf
    assert found.dtype == np.float32
    error = np.abs(rounded(weight[:4], 8) - weight[:4]) / np.abs(weight[:4])
    assert error.max() <= 2**-9


class Tensor:
    """What a PyTorch tensor is to the example: something with ``numpy()``."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def numpy(self) -> np.ndarray:
        return self.values


class Loader:
    """A loader of (images, labels) that is gone through as often as one likes, as PyTorch's."""

    def __init__(self) -> None:
        self.image = np.load(TESTDATA / "digits_calib.npz")["image"]
        self.read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.image), 8):
            self.read += 1
            yield Tensor(self.image[start : start + 8]), Tensor(np.zeros(8, np.int64))


def test_a_loader_of_batches_calibrates(tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "pytorch" / "calibrate.py"))
    loader, out = Loader(), tmp_path / "out.onnx"
    example["quantize"](str(SMALL), str(out), loader, batches=3)
    assert loader.read > 0
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    images = example["Images"](loader, 3)
    assert [len(each) for each in images] == [8, 8, 8] == [len(each) for each in images]


def test_the_page_loads_nothing_from_the_network() -> None:
    for path in (EXAMPLES / "browser").iterdir():
        if path.suffix in (".html", ".js"):
            code = re.sub(r"//.*", "", path.read_text()) if path.suffix == ".js" else path.read_text()
            assert "http" not in code, path.name


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_page_s_inputs_fit_any_model() -> None:
    code = f"""
    import {{ describe, dimsOf, randomInputs }} from "{EXAMPLES / "browser" / "model.js"}";
    class Tensor {{ constructor(type, data, dims) {{ Object.assign(this, {{ type, data, dims }}); }} }}
    const metadata = [
      {{ name: "a", type: "float32", shape: ["N", 3, 2] }},
      {{ name: "b", type: "int64", shape: [] }},
      {{ name: "c", type: "bool", shape: ["N"] }},
    ];
    const found = randomInputs({{ Tensor }}, metadata, dimsOf(["c:4x2"]));
    console.log(JSON.stringify(Object.values(found).map(({{ dims, data }}) => [dims, data.length])));
    console.log(describe(new Tensor("int64", BigInt64Array.from([1n, 2n]), [2])));
    for (const text of ["c", "c:", "c:1,2"])
      try {{ dimsOf([text]); }} catch (error) {{ console.log(error.message); }}
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[[[1,3,2],6],[[],1],[[4,2],8]]",
        "int64 [2]: 1.000, 2.000",
        *(f"{text}: expected such as image:1x3x224x224" for text in ("c", "c:", "c:1,2")),
    ]


def test_the_list_of_examples_names_them_all() -> None:
    page = (EXAMPLES / "README.md").read_text()
    for each in EXAMPLES.iterdir():
        if each.is_dir():
            assert f"[{each.name}]({each.name})" in page
