import importlib.util
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest

from onnxcompress import compress
from onnxcompress.base import Context
from onnxcompress.data import load_data, random_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import clone, load
from onnxcompress.passes import Quant
from onnxcompress.runtimes import OnnxRuntime, OpenVino

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
THERE = importlib.util.find_spec("openvino") is not None
needed = pytest.mark.skipif(not THERE, reason="openvino, an extra, is not installed")


@pytest.mark.skipif(THERE, reason="openvino is installed")
def test_it_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^openvino: it is not installed, .*onnxcompress\[openvino\]'$"):
        OpenVino.make()
    command = [sys.executable, "-m", "onnxcompress", TESTDATA / "lenet5_digits.onnx", tmp_path / "out.onnx"]
    options = ["--passes", "simplify", "--runtime", "openvino"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "openvino: it is not installed" in done.stderr


@needed
def test_a_model_in_memory_gives_what_its_file_and_onnxruntime_give() -> None:
    path = TESTDATA / "branch_digits.onnx"
    model = load(path)
    feeds = next(iter(random_data(model, count=1)))
    (found,) = OpenVino.make(threads=1).prepare(model).run(feeds).values()
    (other,) = OpenVino.make(threads=1).prepare(path).run(feeds).values()
    (expected,) = OnnxRuntime().prepare(path).run(feeds).values()
    np.testing.assert_array_equal(found, other)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@needed
def test_any_values_can_be_asked_for() -> None:
    model = load(TESTDATA / "lenet5_digits.onnx")
    feeds = next(iter(random_data(model, count=1)))
    names = [value.name or "" for node in model.graph for value in node.outputs]
    names.append(next(iter(feeds)))
    found, expected = (each.make().prepare(model, names).run(feeds) for each in (OpenVino, OnnxRuntime))
    assert list(found) == names
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@needed
def test_the_functions_of_an_encoded_model_are_written_in_line(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    compress(TESTDATA / "lenet5_digits.onnx", "prune,encode", output=out, measure_latency=False)
    model = load(out)
    assert model.functions
    feeds = next(iter(random_data(model, count=1)))
    expected = OnnxRuntime().prepare(out).run(feeds)
    for given in (out, model):
        for name, value in OpenVino.make().prepare(given).run(feeds).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    assert model.functions  # inlined in a copy


@needed
@pytest.mark.parametrize("static", [True, False])
def test_quantized_models_run_and_the_gate_times_them_in_it(static: bool) -> None:
    made = load(TESTDATA / "lenet5_digits.onnx")
    data = load_data(TESTDATA / "digits_calib.npz", made).take(8)
    after = clone(made)
    context = Context(calibration=data if static else None, runtime=OpenVino.make(threads=1), threads=1)
    result = Quant(reduce_range="off").call(after, context)
    assert "time of int8 to float, Gemm" in result.numbers
    Quant(gate="off", reduce_range="off").call(made, context)  # where it is possible, not where it pays
    feeds = next(iter(data))
    found, expected = (each.make().prepare(made).run(feeds) for each in (OpenVino, OnnxRuntime))
    for name, value in found.items():
        assert models.snr(expected[name], value) > 30


@needed
def test_feeds_that_do_not_fit_and_models_it_can_not_take_are_refused_in_one_line() -> None:
    model = load(TESTDATA / "lenet5_digits.onnx")
    runnable = OpenVino.make().prepare(model)
    given = np.zeros((1, 1, 8, 8), np.float32)
    for feeds, said in (
        ({}, "^openvino: image is missing, expected image$"),
        ({"image": given, "zoo": given}, "^openvino: zoo is not an input of the model, expected image"),
        ({"image": given.astype(np.float64)}, "^openvino: input image is float64, expected float32$"),
        ({"image": given[:, :, :3]}, r"^openvino: .*\{1, 1, 3, 8\}\.$"),
    ):
        with pytest.raises(UsageError, match=said):
            runnable.run(feeds)
    unknown = models.model(
        '<ir_version: 8, opset_import: ["": 17, "foo": 1]> g (float x) => (float y) { y = foo.Bar(x) }'
    )
    with pytest.raises(CompressError, match=r"^openvino: [^\n]*foo\.Bar[^\n]*$"):
        OpenVino.make().prepare(unknown)
