"""Means and variances that BatchNormalization tells, beside those of normal samples."""

import models
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.evaluate import run_node
from onnxcompress.expectation import expected

BETA, GAMMA = np.array([-1.0, 0.0, 0.5, 3.0]), np.array([1.0, -0.5, 2.0, 0.25])


def made(body: str, output: str) -> ir.Model:
    """A model whose normalized activation n, and another of it, o, run through `body` to y."""
    constants = {"g": GAMMA, "b": BETA, "m": np.ones(4), "v": np.full(4, 3.0)}
    made = models.model(
        f"""<ir_version: 8, opset_import: ["": 14]>
net (float[N, 4, 5, 5] x) => ({output} y) <float low = {{-0.5}}, float high = {{1}},
 int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}}>
{{
    n = BatchNormalization(x, g, b, m, v)
    a = Neg(x)
    o = BatchNormalization(a, b, g, m, v)
    {body}
}}""",
        {name: array.astype(np.float32) for name, array in constants.items()},
    )
    ShapeInferencePass()(made)
    return made


@pytest.mark.parametrize(
    "operator", ["Relu(n)", "Clip(n, low, high)", "LeakyRelu<alpha = 0.2>(n)", "HardSwish(n)", "Sigmoid(n)"]
)
def test_functions_of_a_normal_value_have_the_moments_that_samples_have(operator: str) -> None:
    model = made(f"y = {operator}", "float[N, 4, 5, 5]")
    (node,) = (each for each in model.graph if each.op_type == operator.split("(")[0].split("<")[0])
    draw = np.random.default_rng(0).standard_normal((4, 200_000)) * np.abs(GAMMA)[:, None] + BETA[:, None]
    constants = [value.const_value.numpy() for value in node.inputs[1:]]  # type: ignore[union-attr]
    (sampled,) = run_node(node, [draw.astype(np.float32), *constants], 17)
    found = expected(model)["y"]
    np.testing.assert_allclose(found.mean, sampled.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(found.variance, sampled.var(axis=1), rtol=0.02, atol=0.002)


@pytest.mark.parametrize(
    ("body", "output", "mean", "variance"),
    [
        ("y = Identity(n)", "float[N, 4, 5, 5]", BETA, GAMMA**2),
        ("y = GlobalAveragePool(n)", "float[N, 4, 1, 1]", BETA, GAMMA**2),
        ("y = Add(n, o)", "float[N, 4, 5, 5]", BETA + GAMMA, GAMMA**2 + BETA**2),
        ("y = Concat<axis = 1>(n, o)", "float[N, 8, 5, 5]", np.r_[BETA, GAMMA], np.r_[GAMMA, BETA] ** 2),
        ("y = Flatten(n)", "float[N, 100]", np.repeat(BETA, 25), np.repeat(GAMMA**2, 25)),
    ],
)
def test_moments_are_carried_on(body: str, output: str, mean: np.ndarray, variance: np.ndarray) -> None:
    found = expected(made(body, output))["y"]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("y = Add(n, x)", "float[N, 4, 5, 5]"),
        ("y = MaxPool<kernel_shape = [2, 2]>(n)", "float[N, 4, 4, 4]"),
        ("y = Concat<axis = 2>(n, o)", "float[N, 4, 10, 5]"),
        ("y = ReduceMean<axes = [1], keepdims = 0>(n)", "float[N, 5, 5]"),
        ("c = Slice(n, zero, four, two) y = ReduceMean<axes = [1], keepdims = 0>(c)", "float[N, 4, 5]"),
        ("y = Flatten<axis = 2>(n)", "float[K, 25]"),
        ("c = Slice(n, zero, one, zero) y = Squeeze(c, zero)", "float[4, 5, 5]"),
        ("c = ReduceMax<keepdims = 0>(x) y = Clip(n, low, c)", "float[N, 4, 5, 5]"),
        ("y = Relu(x)", "float[N, 4, 5, 5]"),
    ],
)
def test_what_statistics_do_not_tell_is_not_known(body: str, output: str) -> None:
    assert "y" not in expected(made(body, output))
