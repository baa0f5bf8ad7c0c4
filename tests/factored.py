"""A network to factorise, data for it, and what is done to it."""

from collections.abc import Mapping

import models
import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.passes import Factorise
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

NETWORK = """net (float[N, 6, 10, 9] x) => (float[N, 20] y)
<float[12, 6, 3, 3] w1 = {}, float[12] b1 = {}, float[16, 12, 5, 5] w2 = {}, float[256, 40] w3 = {},
 float[20, 40] w4 = {}, float[20] b4 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1, b1)
    a = Relu(c)
    [second] d = Conv<pads = [2, 1, 1, 2]>(a, w2)
    e = Relu(d)
    f = Flatten(e)
    [third] g = MatMul(f, w3)
    h = Relu(g)
    [last] y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(h, w4, b4)
}"""


def images(
    count: int = 4, dims: tuple[int, ...] = (2, 6, 10, 9), seed: int = 8
) -> list[dict[str, np.ndarray]]:
    """Images most of which lies in few of their channels."""
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(0, 1, (dims[1], dims[1])) * 0.5 ** np.arange(dims[1])
    return [
        {"x": np.einsum("dc,nc...->nd...", mix, draw.normal(0.2, 1, dims)).astype(np.float32)}
        for _ in range(count)
    ]


def calibrated(made: ir.Model, feeds: list[dict[str, np.ndarray]]) -> Context:
    return Context(calibration=load_data(feeds, made), runtime=OnnxRuntime())


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Factorise(**{"min_size": 0, **options}).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def apart(before: ir.Model, after: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    """Return how far the outputs are apart, relative to the largest."""
    pairs = list(zip(models.run(before, feeds), models.run(after, feeds), strict=True))
    return max(float(np.abs(found - expected).max() / np.abs(expected).max()) for expected, found in pairs)


def operators(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A weight whose matrices, however it is cut, have few large singular values."""
    draw = np.random.default_rng(seed)
    sides = [draw.normal(0, 1, (size, 3)) * [1, 0.3, 0.1] for size in shape]
    letters = "abcdef"[: len(shape)]
    formula = ",".join(f"{letter}z" for letter in letters) + "->" + letters
    return np.einsum(formula, *sides).astype(np.float32)
