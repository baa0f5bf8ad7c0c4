from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.channels import find
from onnxcompress.channels.elimination import eliminate
from onnxcompress.channels.fitting import Wanted, Weights, fit
from onnxcompress.channels.repair import Aim, aims, repair
from onnxcompress.channels.stages import staged
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.layers import Layer, put_constant
from onnxcompress.model import clone, load
from onnxcompress.registry import runtimes

TESTDATA = Path(__file__).parent.parent / "testdata"
RUNTIME = runtimes()["onnxruntime"].make()


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def stripes() -> np.ndarray:
    """Images of four channels that don't change along their width: one tap of a row does what three do."""
    return np.broadcast_to(drawn(40, 4, 9, 1), (40, 4, 9, 7)).copy()


def rows() -> np.ndarray:
    """Sequences of four features, the last of which repeats the first."""
    x = drawn(40, 6, 4)
    x[..., 3] = x[..., 0]
    return x


def node(model: ir.Model, name: str) -> ir.Node:
    return next(each for each in model.graph if each.name == name)


def change(model: ir.Model, name: str, values: np.ndarray) -> None:
    put_constant(model.graph.initializers[name], ir.tensor(values, name=name))


def found(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return models.run(model, {"x": x})[0]


def repaired(whole: ir.Model, model: ir.Model, x: np.ndarray, kind: str = "least-squares") -> dict[str, str]:
    layers = [Aim(Layer(each, 1), None) for each in model.graph if each.op_type in ("Conv", "Gemm", "MatMul")]
    return repair(whole, model, layers, [{"x": each[None]} for each in x], RUNTIME, kind)


CONVOLUTION = """net (float[N,4,9,7] x) => (float[N,8,%d,5] y) <float[8,%d,3,3] w = {}%s>
{ [c] y = Conv<group=%d, %s>(x, w%s) }"""


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("where", ["strides=[2,1], pads=[1,0,1,0]", 'auto_pad="VALID"'])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_fit_finds_what_is_redundant_in_any_convolution(groups: int, where: str, bias: bool) -> None:
    declared, read = (", float[8] b = {}", ", b") if bias else ("", "")
    height = 5 if "strides" in where else 7
    whole = models.model(CONVOLUTION % (height, 4 // groups, declared, groups, where, read))
    model = clone(whole)
    weight = drawn(8, 4 // groups, 3, 3)
    weight[..., 1:] = 0
    change(model, "w", weight)
    if bias:
        change(model, "b", np.zeros(8, np.float32))
    x = stripes()
    assert models.snr(found(whole, x), found(model, x)) < 5
    assert repaired(whole, model, x) == {"c": "weights fitted"}
    assert models.snr(found(whole, x), found(model, x)) > 50


def test_a_fit_gives_a_bias_where_there_was_none() -> None:
    text = CONVOLUTION % (7, 4, ", float[8] b = {}", 1, "", ", b")
    whole = models.model(text.replace("group=1, ", "group=1"))
    model = models.model((CONVOLUTION % (7, 4, "", 1, "", "")).replace("group=1, ", "group=1"))
    x = stripes()
    repaired(whole, model, x)
    assert models.snr(found(whole, x), found(model, x)) > 60


PRODUCTS = {
    "alone": "[c] y = MatMul(x, w)",
    "with an Add": "[c] p = MatMul(x, w) [a] y = Add(p, b)",
    "rows": "[r] q = Reshape(x, s) [c] p = Gemm<alpha=2.0, beta=0.5>(q, w, b) [t] y = Reshape(p, u)",
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_fit_finds_what_is_redundant_in_products(kind: str) -> None:
    whole = models.model(
        """net (float[N,6,4] x) => (float[N,6,5] y)
        <float[4,5] w = {}, float[5] b = {}, int64[2] s = {-1, 4}, int64[3] u = {-1, 6, 5}> {"""
        + PRODUCTS[kind]
        + "}"
    )
    model = clone(whole)
    weight = model.graph.initializers["w"].const_value.numpy().copy()
    weight[3] = 0
    change(model, "w", weight)
    x = rows()
    assert repaired(whole, model, x) == {"c": "weights fitted"}
    assert models.snr(found(whole, x), found(model, x)) > 60


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_layer_makes_up_for_what_the_shortcut_it_is_added_to_has_lost(normalised: bool, relu: bool) -> None:
    norm = "[n] q = BatchNormalization(p, g, h, m, v)" if normalised else "[n] q = Identity(p)"
    end = "[e] y = Relu(t)" if relu else "[e] y = Identity(t)"
    text = f"""net (float[N,4,9,7] x) => (float[N,4,9,7] y)
    <float[4,4,1,1] w = {{}}, float[1] f = {{1.0}}, float[4] g = {{1.0, 2.0, 0.5, -1.0}},
     float[4] h = {{0.1, 0.2, 0.3, 0.4}}, float[4] m = {{0.5, 0.0, 0.2, 0.1}},
     float[4] v = {{1.0, 2.0, 3.0, 0.5}}>
    {{ [c] p = Conv(x, w) {norm} [f] z = Mul(x, f) [a] t = Add(q, z) {end} }}"""
    if not normalised:
        text = text.replace("[n] q = Identity(p)", "").replace("Add(q,", "Add(p,")
    whole = models.model(text)
    model = clone(whole)
    change(model, "f", np.float32([0.5]))
    x = drawn(40, 4, 9, 7)
    before = models.snr(found(whole, x), found(model, x))
    repaired(whole, model, x)
    assert before < 15
    assert models.snr(found(whole, x), found(model, x)) > 50


def test_means_come_back_with_biases_alone() -> None:
    whole = models.model(CONVOLUTION % (5, 4, "", 1, "strides=[2,1], pads=[1,0,1,0]", ""))
    model = clone(whole)
    change(model, "w", model.graph.initializers["w"].const_value.numpy() * np.float32(0.5))
    x = stripes() + np.float32(1)
    lost = (found(whole, x) - found(model, x)).mean(axis=(0, 2, 3))
    assert repaired(whole, model, x, "bias") == {"c": "mean corrected"}
    left = (found(whole, x) - found(model, x)).mean(axis=(0, 2, 3))
    assert np.abs(left).max() < 0.1 * np.abs(lost).max()


def test_what_cannot_be_repaired_is_returned_with_its_reason() -> None:
    whole = models.model(
        """net (float[N,6,4] x) => (float[N,6,5] y) <float[4,5] w = {}> { [c] y = MatMul(x, w) }"""
    )
    layer = Layer(node(whole, "c"), 1)
    data = [{"x": rows()}]
    assert repair(whole, clone(whole), [Aim(layer, None, False)], data, RUNTIME, "least-squares") == {
        "c": "none: it computes what it did"
    }
    model = clone(whole)
    assert repaired(whole, model, rows(), "bias") == {"c": "none: there is no place for a bias"}


def test_data_that_are_missing_or_not_finite_are_refused() -> None:
    whole = models.model(
        PRODUCT := "net (float[N,4] x) => (float[N,5] y) <float[4,5] w = {}> { [c] y = MatMul(x, w) }"
    )
    with pytest.raises(UsageError, match="there are no data"):
        repaired(whole, models.model(PRODUCT), np.zeros((0, 4), np.float32))
    with pytest.raises(CompressError, match="c: what it reads or computes on the calibration data holds NaN"):
        repaired(whole, models.model(PRODUCT), np.full((8, 4), np.nan, np.float32))


def test_a_fit_with_more_weights_than_places_is_the_same_by_either_form() -> None:
    inputs, weights = drawn(2, 12, 12), Weights(np.zeros((2, 3, 12)), np.zeros(6))
    wanted = Wanted(drawn(12, 6), np.ones(6), np.zeros((1, 6), np.float32))
    narrow = fit(weights, inputs, wanted, True)
    padded = np.concatenate([inputs, np.zeros((2, 12, 1), np.float32)], axis=2)  # one more than places
    wide = fit(Weights(np.zeros((2, 3, 13)), np.zeros(6)), padded * np.float32(1), wanted, True)
    assert np.abs(wide.apply(padded) - narrow.apply(inputs)).max() < 0.02
    missing = narrow.apply(inputs) - wanted.values
    assert np.square(missing).mean() < 0.2 * np.square(wanted.values).mean()


def test_before_a_relu_only_the_sign_of_negative_outputs_matters() -> None:
    inputs = drawn(1, 500, 2)
    values = np.maximum(inputs[0, :, :1], 0) - (inputs[0, :, :1] < 0) * np.abs(drawn(500, 1))
    plain, rectified = (
        fit(Weights(np.zeros((1, 1, 2)), np.zeros(1)), inputs,
            Wanted(values, np.ones(1), np.zeros((1, 1), np.float32), flag), True)
        for flag in (False, True)
    )  # fmt: skip
    error = [
        np.square(np.maximum(each.apply(inputs), 0) - np.maximum(values, 0)).mean()
        for each in (plain, rectified)
    ]
    assert error[1] < 0.5 * error[0]


def test_channels_go_in_the_order_in_which_the_others_can_make_up_for_them() -> None:
    x = drawn(5000, 4).astype(np.float64)
    x[:, 3] = x[:, 0] + 0.01 * x[:, 3]  # nearly a twin of the first
    weight = np.array([[1.0, 0.5, 2.0, 1.0], [0.3, -0.2, 1.0, -0.5]])
    costs = eliminate(np.cov(x.T), weight.T @ weight)
    order = np.argsort(costs, kind="stable")
    assert order[0] in (0, 3)
    assert costs[order[0]] < 1e-3 < costs[order[1]]
    assert order[1:3].tolist() == [1, *{0, 3} - {order[0]}]
    y = (x - x.mean(axis=0)) @ weight.T
    kept = np.delete(x - x.mean(axis=0), order[:2], axis=1)
    left = y - kept @ np.linalg.lstsq(kept, y)[0]
    assert costs[order[0]] + costs[order[1]] == pytest.approx(np.square(left).sum() / len(x), rel=0.02)


def test_a_model_run_in_parts_computes_what_it_does_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("residual_digits", "branch_digits"):
        model = load(TESTDATA / f"{name}.onnx")
        shape = [1 if not isinstance(each, int) else each for each in model.graph.inputs[0].shape or ()]
        feeds = [{model.graph.inputs[0].name or "": drawn(*shape) * np.float32(each)} for each in (1, 2)]
        names = [each.outputs[0].name or "" for each in model.graph if each.op_type != "Constant"]
        expected = [RUNTIME.prepare(model, outputs=names).run(feed) for feed in feeds]
        for memory in (1 << 29, 0):
            monkeypatch.setattr("onnxcompress.channels.stages.MEMORY", memory)
            steps = [[each] for each in (names if memory else names[2::3])]
            for (name,), arrays in zip(steps, staged(model, steps, feeds, RUNTIME), strict=True):
                for array, whole in zip(arrays, expected, strict=True):
                    np.testing.assert_allclose(array[name], whole[name], rtol=1e-3, atol=1e-4)


def test_parts_that_have_not_run_may_change() -> None:
    model = models.model(
        """net (float[N,4] x) => (float[N,4] z) <float[4,4] v = {}, float[4,4] w = {}>
        { y = MatMul(x, v) z = MatMul(y, w) }"""
    )
    x = drawn(3, 4)
    steps = staged(model, [["y"], ["z"]], [{"x": x}], RUNTIME)
    y = next(steps)[0]["y"]
    change(model, "v", np.zeros((4, 4), np.float32))  # too late
    change(model, "w", np.eye(4, dtype=np.float32))
    np.testing.assert_allclose(next(steps)[0]["z"], y, rtol=1e-6)


def test_layers_that_read_what_they_did_are_no_aims() -> None:
    model = load(TESTDATA / "residual_digits.onnx")
    channels = find(model)
    plan = channels.plan(lambda units: np.ones(units.count, bool))
    assert not aims(channels, plan)
    first = next(each for each in model.graph if each.op_type == "Conv")
    plan = channels.plan(lambda units: units.choose(np.arange(units.count), np.full(units.count, 0.25)))
    assert first not in [aim.layer.node for aim in aims(channels, plan)]
    assert len(aims(channels, plan)) > 2
