import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import SparseTensor, load, save
from onnxcompress.runtimes import Interpreter, OnnxRuntime

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
SETTINGS = [
    OnnxRuntime(threads=1),
    OnnxRuntime(threads=1, optimise=False),
    OnnxRuntime.make(threads=1, frugal=True),
]
each_setting = pytest.mark.parametrize("runtime", SETTINGS, ids=["fast", "as it is", "frugal"])


def parse(text: str, opset: int = 17) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def hold(model: ir.Model, **tensors: ir.TensorProtocol) -> ir.Model:
    """Make initializers of inputs of `model`."""
    inputs = {value.name: value for value in model.graph.inputs}
    for name, tensor in tensors.items():
        value = inputs[name]
        tensor.name = name
        value.const_value, value.dtype, value.shape = tensor, tensor.dtype, ir.Shape(tensor.shape)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    return model


def product(dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """Return y = x * w, where w is a [256, 256] matrix of `dtype` full of 1/4, or of 1 if it is whole."""
    text = "g (float[N, 256] x, float w) => (float[N, 256] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    array = np.full((256, 256), 0.25 if dtype.is_floating_point() else 1).astype(dtype.numpy())
    return hold(parse(text, 19), w=ir.Tensor(array, dtype=dtype))


@each_setting
def test_a_model_in_memory_gives_what_its_file_gives(runtime: OnnxRuntime) -> None:
    path = TESTDATA / "lenet300_digits.onnx"
    model = load(path)
    feeds = next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=3)))
    expected = runtime.prepare(path).run(feeds)
    for name, value in runtime.prepare(model).run(feeds).items():
        np.testing.assert_array_equal(value, expected[name])


@each_setting
def test_a_file_with_external_data_gives_the_same(runtime: OnnxRuntime, tmp_path: Path) -> None:
    model = load(TESTDATA / "lenet300_digits.onnx")
    feeds = next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=3)))
    save(model, tmp_path / "m.onnx", external_data=True)
    expected = runtime.prepare(model).run(feeds)
    for given in (tmp_path / "m.onnx", load(tmp_path / "m.onnx")):
        for name, value in runtime.prepare(given).run(feeds).items():
            np.testing.assert_array_equal(value, expected[name])


@each_setting
@pytest.mark.parametrize(
    "dtype", ["FLOAT", "FLOAT16", "DOUBLE", "INT8", "UINT8", "INT64", "BFLOAT16", "FLOAT8E4M3FN"]
)
def test_large_weights_of_any_type_are_read(runtime: OnnxRuntime, dtype: str) -> None:
    kind = ir.DataType[dtype]
    found = runtime.prepare(product(kind)).run({"x": np.ones((1, 256), np.float32)})
    assert (found["y"] == (64 if kind.is_floating_point() else 256)).all()


@each_setting
def test_a_lazy_weight_is_read_once_for_all_runs(runtime: OnnxRuntime) -> None:
    model = product()
    value = model.graph.initializers["w"]
    source, reads = value.const_value, []
    assert source is not None

    def read() -> ir.TensorProtocol:
        reads.append(1)
        return ir.Tensor(source.numpy() * 2, name="w")

    value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([256, 256]), name="w")
    runnable = runtime.prepare(model)
    for _ in range(2):
        assert (runnable.run({"x": np.ones((1, 256), np.float32)})["y"] == 128).all()
    assert len(reads) == 1


@each_setting
def test_a_session_outlives_its_model(runtime: OnnxRuntime) -> None:
    runnable = runtime.prepare(product())
    _ = [np.ones((256, 256), np.float32) for _ in range(9)]  # take the memory that was given back
    assert (runnable.run({"x": np.ones((1, 256), np.float32)})["y"] == 64).all()


@each_setting
def test_a_large_weight_may_be_shared_read_in_subgraphs_or_not_at_all(runtime: OnnxRuntime) -> None:
    text = """g (float[N, 256] x, bool c, float w, float v) => (float[N, 256] y) {
        a = MatMul(x, w)
        b = If(c)<then_branch = t () => (float[N, 256] p) { p = MatMul(a, w) },
                  else_branch = e () => (float[N, 256] q) { q = Neg(a) }>
        y = Add(b, b)
    }"""
    tensor = ir.Tensor(np.full((256, 256), 0.25, np.float32))
    model = hold(parse(text), w=tensor, v=ir.Tensor(tensor.numpy()))
    found = runtime.prepare(model).run({"x": np.ones((1, 256), np.float32), "c": np.array(True)})
    assert (found["y"] == 64 * 64 * 2).all()


@each_setting
def test_a_large_initializer_that_is_an_input_can_be_given_or_left(runtime: OnnxRuntime) -> None:
    model = product()
    model.graph.inputs.append(model.graph.initializers["w"])
    runnable = runtime.prepare(model)
    x = np.ones((1, 256), np.float32)
    assert (runnable.run({"x": x})["y"] == 64).all()
    assert (runnable.run({"x": x, "w": np.ones((256, 256), np.float32)})["y"] == 256).all()


@each_setting
def test_a_sparse_weight_is_read(runtime: OnnxRuntime) -> None:
    model = product()
    values, indices = ir.tensor(floats(2, 3), name="w"), ir.tensor(np.array([0, 256 * 256 - 1]))
    model.graph.initializers["w"].const_value = SparseTensor(values, indices, (256, 256), name="w")
    found = runtime.prepare(model).run({"x": np.ones((1, 256), np.float32)})["y"]
    assert (found[0, 0], found[0, -1], found.sum()) == (2, 3, 5)


@each_setting
def test_any_values_can_be_asked_for(runtime: OnnxRuntime, tmp_path: Path) -> None:
    text = "g (float[N] x) => (float[N] y) <float w = {2}> { a = Mul(x, w) s = Shape(a) y = Neg(a) }"
    model = parse(text)
    save(model, tmp_path / "m.onnx")
    for given in (model, tmp_path / "m.onnx"):
        found = runtime.prepare(given, ["s", "a", "w", "x"]).run({"x": floats(3, 4)})
        assert {name: value.tolist() for name, value in found.items()} == {
            "s": [2],
            "a": [6, 8],
            "w": 2,
            "x": [3, 4],
        }


def test_every_value_of_a_model_is_what_the_interpreter_makes_of_it() -> None:
    model = load(TESTDATA / "shufflenet_digits.onnx")
    names = [value.name for node in model.graph for value in node.outputs]
    feeds = next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=2)))
    expected = OnnxRuntime(optimise=False).prepare(model, names).run(feeds)
    found = Interpreter().prepare(model, names).run(feeds)
    assert list(found) == list(expected) == names
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_model_stays_as_it_was() -> None:
    model = load(TESTDATA / "lenet300_digits.onnx")
    text, tensors = str(model), {name: value.const_value for name, value in model.graph.initializers.items()}
    OnnxRuntime().prepare(model, [model.graph[0].outputs[0].name])
    assert str(model) == text
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in tensors.items())


def test_runs_are_the_same_each_time() -> None:
    model = load(TESTDATA / "residual_digits.onnx")
    feeds = next(iter(load_data(TESTDATA / "digits_test.npz", model, batch=8)))
    first, second = (OnnxRuntime().prepare(model).run(feeds) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


MEMORY = """
import numpy as np
import onnx_ir as ir
from onnxcompress.runtimes import OnnxRuntime

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))

def model(*weights):
    kind = ir.TensorType(ir.DataType.from_numpy(weights[0].dtype))
    value = ir.Value(name="x", shape=ir.Shape(["N", None]), type=kind)
    inputs, nodes, held = [value], [], []
    for i, weight in enumerate(weights):
        held.append(ir.Value(name=f"w{i}", const_value=ir.Tensor(weight, name=f"w{i}")))
        nodes.append(ir.node("MatMul", [value, held[-1]]))
        value = nodes[-1].outputs[0]
    value.name, value.type = "y", kind
    graph = ir.Graph(inputs, [value], nodes=nodes, initializers=held, opset_imports={"": 17})
    return ir.Model(graph, ir_version=8)

runtime = OnnxRuntime.make(frugal=True)
runtime.prepare(model(np.ones((4, 4), np.float32)))
"""
LOADED = """
weights = [np.ones((4096, 4096), np.float32) for _ in range(3)]
before = peak()
kept = runtime.prepare(model(*weights))
print((peak() - before) / sum(weight.nbytes for weight in weights))
"""
RUN = """
weights = [np.ones((2048, 2048), np.float16) for _ in range(8)]
kept = runtime.prepare(model(*weights))
before = peak()
kept.run({"x": np.zeros((1, 2048), np.float16)})
print((peak() - before) / sum(2 * weight.nbytes for weight in weights))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_weights_in_memory_are_not_put_in_a_protobuf_first() -> None:
    assert told(LOADED) < 1.5  # one copy while loading; through a protobuf and its bytes there are three


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_frugal_engine_widens_weights_of_16_bits_one_after_the_other() -> None:
    assert told(RUN) < 0.3


def told(script: str) -> float:
    """Return what the `script` prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEMORY + script], capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"Required inputs \(\['x'\]\) are missing"),
        ({"x": np.zeros((2, 3), np.float32), "q": floats(1)}, "Invalid input name: q"),
        ({"x": np.zeros((2, 3))}, "Unexpected input data type"),
        (
            {"x": np.zeros((2, 4), np.float32)},
            "Got invalid dimensions for input: x for the following indices",
        ),
    ],
    ids=["missing", "unknown", "type", "shape"],
)
def test_feeds_that_do_not_fit_are_refused(feeds: dict[str, np.ndarray], message: str) -> None:
    runnable = OnnxRuntime().prepare(parse("g (float[N, 3] x) => (float[N, 3] y) { y = Neg(x) }"))
    with pytest.raises(UsageError, match=f"^onnxruntime: {message}") as caught:
        runnable.run(feeds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = Fooify(x)", "This is an invalid model. .* No Op registered for Fooify"),
        ("a = Add(x, b) b = Neg(a) y = Neg(b)", "This is an invalid model. Error: the graph is not acyclic"),
        ("y = Add(x, q)", "Invalid model. Node input 'q' is not a graph input"),
        ("s = Shape(x) y = Add(x, s)", "Type Error: Type parameter .T. of Optype .Add. bound to different"),
    ],
    ids=["operator", "cycle", "undefined", "types"],
)
def test_a_model_the_engine_refuses_is_reported_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    onnx.save(
        onnx.parser.parse_model(f"{header} g (float[N] x) => (float[M] y) {{ {text} }}"), tmp_path / "m.onnx"
    )
    with pytest.raises(CompressError, match=f"^onnxruntime: .*{message}") as caught:
        OnnxRuntime().prepare(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UsageError)


def test_a_failure_of_a_node_is_reported_without_the_engines_source_lines(
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = "g (float[N] x) => (float[A, B] y) { s = Constant<value_ints = [3, 5]>() y = Reshape(x, s) }"
    runnable = OnnxRuntime().prepare(parse(text))
    with pytest.raises(CompressError) as caught:
        runnable.run({"x": floats(1, 2)})
    said = str(caught.value)
    assert said.startswith("onnxruntime: Non-zero status code returned while running Reshape node.")
    assert "The input tensor cannot be reshaped to the requested shape" in said
    assert not {".h:", "::", "\n"} & {part for part in (".h:", "::", "\n") if part in said}
    assert not isinstance(caught.value, UsageError)
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model at all")
    with pytest.raises(CompressError, match=r"^onnxruntime: Load model from .*m\.onnx failed"):
        OnnxRuntime().prepare(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_value_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CompressError, match=r"^onnxruntime: .*nothing"):
        OnnxRuntime().prepare(parse("g (float[N] x) => (float[N] y) { y = Neg(x) }"), ["nothing"])


def test_a_sequence_as_an_output_is_refused() -> None:
    model = parse("g (float[N] x) => (seq(float[N]) y) { y = SequenceConstruct(x, x) }")
    with pytest.raises(
        CompressError, match=r"onnxruntime: output y is a seq\(tensor\(float\)\), expected a tensor"
    ):
        OnnxRuntime().prepare(model)


def test_the_engine_is_imported_only_when_a_model_is_prepared() -> None:
    code = "import sys, onnxcompress.runtimes; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
