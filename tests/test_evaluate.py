import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.errors import CompressError
from onnxcompress.evaluate import label, operator, run_node


def node(text: str, opset: int = 17) -> ir.Node:
    """Return the only node of a graph whose inputs may be x, y and z."""
    inputs = "float[N] x, float[N] y, float[N] z"
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "ai.onnx.ml" : 3, "other" : 1]>'
    return ir.from_proto(
        onnx.parser.parse_model(f"{header} g ({inputs}) => (float[M] r) {{ {text} }}")
    ).graph[0]


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_node_runs_with_its_attributes() -> None:
    (found,) = run_node(node("r = Concat<axis = 0>(x, y)"), [floats(1, 2), floats(3)], 17)
    assert found.tolist() == [1, 2, 3]


def test_an_input_left_out_is_none() -> None:
    (found,) = run_node(node("r = Clip(x, , y)"), [floats(-9, 9), None, np.float32(2)], 17)
    assert found.tolist() == [-9, 2]


def test_an_attribute_not_given_has_its_default() -> None:
    (found,) = run_node(node("r = LeakyRelu(x)"), [floats(-1)], 17)
    assert found == pytest.approx(-0.01)


def test_attributes_can_be_given_in_place_of_the_nodes_own() -> None:
    run = operator(node("r = LeakyRelu<alpha = 0.5>(x)"), 17, {"alpha": ir.AttrFloat32("alpha", 0.25)})
    assert run([floats(-1)])[0] == -0.25


def test_a_node_has_as_many_outputs_as_its_operator() -> None:
    first, second = run_node(node("r, s = TopK(x, y)"), [floats(1, 5, 3), np.array([2])], 17)
    assert first.tolist() == [5, 3]
    assert second.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "value", "dtype"),
    [
        ("value = float[2] {1, 2}", [1, 2], np.float32),
        ("value_float = 1.5", 1.5, np.float32),
        ("value_floats = [1.5, 2.0]", [1.5, 2], np.float32),
        ("value_int = 3", 3, np.int64),
        ("value_ints = [3, 4]", [3, 4], np.int64),
        ('value_string = "a"', "a", np.dtype("<U1")),
        ('value_strings = ["a", "bc"]', ["a", "bc"], np.dtype("<U2")),
    ],
)
def test_a_constant_is_read_whatever_form_it_has(text: str, value: object, dtype: type) -> None:
    (found,) = run_node(node(f"r = Constant<{text}>()"), [], 17)
    assert found.tolist() == value
    assert found.dtype == dtype


def test_a_constant_is_read_when_it_is_needed() -> None:
    reads = []

    def read() -> ir.Tensor:
        reads.append(1)
        return ir.tensor(floats(1))

    lazy = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([1]))
    run = operator(ir.node("Constant", [], {"value": lazy}), 17)
    assert not reads
    assert run([])[0].tolist() == [1]


@pytest.mark.parametrize("op", ["Gelu", "HardSwish", "Mish"])
def test_an_operator_that_is_defined_by_a_function_runs(op: str) -> None:
    (found,) = run_node(node(f"r = {op}(x)", 20), [floats(0, 4)], 20)
    assert found == pytest.approx([0, 4], abs=0.01)


def test_the_opset_decides_on_the_meaning() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    softmax = node("r = Softmax(x)")
    assert run_node(softmax, [x], 13)[0].sum() == pytest.approx(3)  # over the last axis
    assert run_node(softmax, [x], 11)[0].sum() == pytest.approx(1)  # over all from the second on


@pytest.mark.parametrize("opset", [10, 13, 19, 21])
def test_weights_are_dequantized_in_every_opset(opset: int) -> None:
    inputs = [np.array([1, 3], np.int8), np.float32(0.5), np.int8(1)]
    (found,) = run_node(node("r = DequantizeLinear(x, y, z)", opset), inputs, opset)
    assert found.tolist() == [0, 1]


def test_a_tensor_of_strings_is_read_as_text() -> None:
    holder = ir.node("Constant", [], {"value": ir.StringTensor(["grün".encode()], shape=ir.Shape([1]))})
    assert run_node(holder, [], 17)[0].tolist() == ["grün"]


def test_operators_of_the_machine_learning_domain_run() -> None:
    (found,) = run_node(node("r = ai.onnx.ml.Binarizer<threshold = 1.0>(x)"), [floats(0, 2)], 3)
    assert found.tolist() == [0, 1]


def test_overflow_is_no_error() -> None:
    assert run_node(node("r = Exp(x)"), [floats(1000)], 17)[0] == np.inf


def test_an_unknown_operator_is_named() -> None:
    unknown = ir.node("Fooify", [], name="first")
    with pytest.raises(CompressError, match=r"^first \(Fooify\): opset 17: .*'Fooify'"):
        operator(unknown, 17)


def test_an_unknown_domain_is_named() -> None:
    with pytest.raises(CompressError, match=r"^r \(Foo\): no operators of domain other are known here"):
        operator(node("r = other.Foo(x)"), 1)


def test_a_failure_names_the_node_in_one_line() -> None:
    adding = node("r = Add(x, y)")
    with pytest.raises(CompressError) as caught:
        run_node(adding, [floats(1, 2), floats(1, 2, 3)], 17)
    assert str(caught.value).startswith("r (Add): operands could not be broadcast")
    assert "\n" not in str(caught.value)


def test_a_node_is_called_by_its_name_or_its_first_output() -> None:
    named = node("r = Relu(x)")
    assert label(named) == "r (Relu)"
    named.name = "first"
    assert label(named) == "first (Relu)"
