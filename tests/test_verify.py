import math

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.model import signature
from onnxcompress.runtimes import OnnxRuntime
from onnxcompress.verify import Tolerance, check_valid, compare, first_difference


class Fixed:
    """A runnable that answers each run with the next of some outputs."""

    def __init__(self, *outputs: dict[str, np.ndarray]) -> None:
        self.outputs = iter(outputs)

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        return next(self.outputs)


def rows(*values: list[float]) -> dict[str, np.ndarray]:
    return {"y": np.array(values, np.float32)}


FEED = [{"x": np.zeros((2, 1), np.float32)}]


def test_equal_outputs_have_infinite_snr_and_agree() -> None:
    found = compare(Fixed(rows([1, 2], [3, 1])), Fixed(rows([1, 2], [3, 1])), FEED)
    assert (found.exact, found.snr, found.cosine, found.agreement) == (True, math.inf, 1.0, 1.0)
    assert found.samples == 2


def test_figures_are_those_of_the_formulas() -> None:
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32), np.array([[3.0, 2.0], [1.0, 0.0]], np.float32)
    found = compare(Fixed({"y": a}), Fixed({"y": b}), FEED, labels=np.array([1, 0]))
    assert not found.exact
    assert found.snr == pytest.approx(10 * math.log10(26 / 4))
    assert found.cosine == pytest.approx((9 + 8 + 1) / math.sqrt(26 * 14))
    assert (found.agreement, found.changed_predictions, found.predictions) == (0.5, 1, 2)
    assert found.top1 == (1.0, 0.5)
    assert found.largest_difference == 2.0


def test_the_output_that_agrees_least_is_named() -> None:
    before = {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 2), np.float32)}
    after = {"a": np.ones((1, 2), np.float32), "b": np.full((1, 2), 1.5, np.float32)}
    assert compare(Fixed(before), Fixed(after), FEED).worst_output == "b"


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"z": np.ones((1, 2), np.float32)}, "output y: is missing"),
        (rows([1, 2, 3]), r"output y: has shape \[1, 3\], expected \[1, 2\]"),
        (rows([math.nan, 2]), "output y: holds NaN or infinity"),
    ],
)
def test_a_broken_output_misses_the_bound(after: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(BoundError, match=said):
        compare(Fixed(rows([1, 2])), Fixed(after), FEED)


def test_accuracy_needs_one_prediction_a_label() -> None:
    with pytest.raises(UsageError, match="top1: no output has a class axis"):
        compare(Fixed(rows([1])), Fixed(rows([1])), FEED, labels=np.array([0, 1]))


def test_integers_must_be_equal_and_floats_only_close() -> None:
    assert not Tolerance().allows(np.array([100]), np.array([101]))
    assert Tolerance().allows(np.float32([1, 100]), np.float32([1.005, 100]))  # relative to the largest
    assert not Tolerance().allows(np.float32([1, 100]), np.float32([1.02, 100]))
    assert Tolerance(rtol=1e-3).allows(np.float32([1, 100]), np.float32([1.02, 100]))
    assert not Tolerance().allows(np.float32([1]), np.float64([1]))


@given(st.sampled_from([np.inf, -np.inf, np.nan]), st.sampled_from([np.inf, -np.inf, np.nan, 0.0]))
def test_infinities_and_nan_must_stand_at_the_same_places(a: float, b: float) -> None:
    same = a == b or (math.isnan(a) and math.isnan(b))
    assert Tolerance().allows(np.float32([a, 1]), np.float32([b, 1])) == same


CHAIN = """<ir_version: 8, opset_import: ["": 17]>
agraph (float[N, 4] x) => (float[N, 4] y)
<float[4] w = {1, 2, 3, 4}, float[4] b = {OFFSET, 1, 1, 1}>
{
    [first] p = Mul(x, w)
    [second] q = Add(p, b)
    [third] r = Relu(q)
    [fourth] s = Mul(r, w)
    [fifth] y = Tanh(s)
}"""


def chain(offset: int) -> ir.Model:
    return ir.from_onnx_text(CHAIN.replace("OFFSET", str(offset)))


def test_the_first_node_that_differs_is_found() -> None:
    feeds = {"x": np.full((2, 4), 0.01, np.float32)}

    def differ(a: np.ndarray, b: np.ndarray) -> bool:
        return not Tolerance().allows(a, b)

    assert first_difference(chain(1), chain(2), OnnxRuntime(), feeds, differ) == "second (Add)"
    assert first_difference(chain(1), chain(1), OnnxRuntime(), feeds, differ) is None


def test_a_changed_signature_is_refused() -> None:
    model = chain(1)
    expected = signature(model)
    check_valid(model, expected)
    model.graph.outputs[0].name = "z"
    with pytest.raises(CompressError, match=r"the outputs are .*z.*, expected .*y"):
        check_valid(model, expected)


def test_a_value_that_nothing_makes_is_refused() -> None:
    model = chain(1)
    expected = signature(model)
    model.graph.node("second").replace_input_with(
        1, ir.Value(name="ghost", type=ir.TensorType(ir.DataType.FLOAT))
    )
    with pytest.raises(CompressError, match="ghost"):
        check_valid(model, expected)
