"""A network to quantize, samples for it, and what is looked at afterwards."""

import models
import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

NETWORK = """net (float[N, 4, 8, 8] x) => (float[N, 10] y)
<float[16, 4, 3, 3] w1 = {}, float[16] b1 = {}, float[16, 16, 3, 3] w2 = {}, float[16] b2 = {},
 float[576, 10] w3 = {}, float[10] b3 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    a = Relu(c)
    [second] d = Conv(a, w2, b2)
    e = Relu(d)
    f = Flatten(e)
    [last] y = Gemm(f, w3, b3)
}"""


def samples(count: int = 8, dims: tuple[int, ...] = (2, 4, 8, 8)) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(8)
    return [{"x": draw.normal(0.1, 1, dims).astype(np.float32)} for _ in range(count)]


def calibrated(made: ir.Model, feeds: list[dict[str, np.ndarray]] | None = None) -> Context:
    return Context(calibration=load_data(feeds or samples(), made), runtime=OnnxRuntime())


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Quant(**{"gate": "off", "reduce_range": "off", **options}).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def nodes(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def dtypes(made: ir.Model) -> dict[str, str]:
    return {name: str(value.dtype) for name, value in made.graph.initializers.items()}


def agree(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray], decibels: float) -> None:
    for expected, found in zip(models.run(before, feeds), models.run(after, feeds), strict=True):
        assert models.snr(expected, found) > decibels
