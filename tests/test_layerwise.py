from collections.abc import Mapping

import models
import numpy as np
import pytest

from onnxcompress import Context
from onnxcompress.data import load_data
from onnxcompress.layers import constant
from onnxcompress.layerwise import Passage, passages, worst
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

CHAIN = """
g (float[N, 16] x) => (float[N, 16] y) <float[16, 16] u, float[16, 16] v, float[16, 16] w> {
  [first] a = MatMul(x, u)
  [relu] b = Relu(a)
  [second] c = MatMul(b, v)
  [tanh] d = Tanh(c)
  [third] y = MatMul(d, w)
}
"""
BODY = """
g (float[1, 4] x, bool yes) => (float[1, 4] y) {
  y = If (yes) <
    then_branch = t () => (float[1, 4] p) <float[4, 4] w = {}> { [inner] p = MatMul(x, w) },
    else_branch = e () => (float[1, 4] q) { q = Identity(x) }>
}
"""


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(16, 16)).astype(np.float32) / 4 for name in "uvw"}


def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(1)
    return [{"x": draw.normal(size=(8, 16)).astype(np.float32)} for _ in range(count)]


def around(text: str, changed: Mapping[str, np.ndarray]) -> dict[str, Passage]:
    before, after = models.model(CHAIN, weights()), models.model(text, {**weights(), **changed})
    return {each.layer: each for each in passages(before, after, OnnxRuntime(), feeds())}


def test_error_appears_where_a_weight_was_changed_and_is_carried_on() -> None:
    found = around(CHAIN, {"v": weights()["v"] * np.float32(1.1)})
    assert found["first"].entering == found["first"].leaving == np.inf
    assert found["second"].entering == np.inf
    assert found["second"].leaving == pytest.approx(20.0, abs=0.01)  # a tenth of the signal
    assert found["third"].entering is not None
    assert 15 < found["third"].entering < 30
    assert [each.layer for each in worst(list(found.values()), 1)] == ["second"]


def test_renamed_and_resized_values_are_not_matched() -> None:
    renamed = around(CHAIN.replace("c = ", "other = ").replace("Tanh(c)", "Tanh(other)"), {})
    assert renamed["second"].leaving is None
    assert renamed["second"].entering == np.inf
    assert renamed["second"].added == 0
    assert renamed["third"].leaving == np.inf
    narrow = CHAIN.replace("[16, 16] u, float[16, 16] v", "[16, 8] u, float[8, 16] v")
    resized = around(narrow, {"u": weights()["u"][:, :8].copy(), "v": weights()["v"][:8].copy()})
    assert resized["first"].leaving is None
    assert resized["third"].leaving is not None


def test_an_activation_that_a_quantized_range_absorbs_is_part_of_its_layer() -> None:
    before, after = models.model(CHAIN, weights()), models.model(CHAIN, weights())
    data = feeds()
    context = Context(calibration=load_data(data, before), runtime=OnnxRuntime())
    after = Quant(gate="off", equalize=False).call(after, context).model
    assert not [node for node in after.graph if node.op_type == "Relu"]
    found = {each.layer: each for each in passages(before, after, OnnxRuntime(), data)}
    for each in found.values():
        assert each.leaving is not None
        assert 25 < each.leaving < 60
    assert found["first"].leaving == found["second"].entering


def test_layers_inside_bodies_are_listed_as_not_matched() -> None:
    made = models.model(BODY)
    found = passages(
        made, models.model(BODY), OnnxRuntime(), [{"x": np.ones((1, 4), np.float32), "yes": np.array(True)}]
    )
    assert found == [Passage("inner", None, None)]


def test_zero_points_that_went_into_biases_are_no_error() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) <float[4, 3, 3, 3] w = {}, float half = {0.5}> {
      s = Sub(x, half)
      [conv] y = Conv(s, w)
    }"""
    before, after = models.model(text), models.model(text)
    draw = np.random.default_rng(0)
    data = [{"x": draw.random((1, 3, 8, 8), np.float32)} for _ in range(4)]
    context = Context(calibration=load_data(data, before), runtime=OnnxRuntime())
    after = Quant(gate="off", equalize=False, min_size=1).call(after, context).model
    zeros = {
        node.op_type: constant(node.inputs[2]).numpy()  # type: ignore[union-attr]
        for node in after.graph
        if node.op_type.endswith("Linear") and node.outputs[0].name.startswith("s_")  # type: ignore[union-attr]
    }
    assert zeros["QuantizeLinear"] > zeros["DequantizeLinear"] == 0
    (found,) = passages(before, after, OnnxRuntime(), data)
    assert found.entering == np.inf
    assert found.leaving is not None
    assert found.leaving > 30
