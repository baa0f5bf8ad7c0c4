"""A model with a layer of each kind to round, and what a pass made of it."""

import numpy as np
import onnx_ir as ir
from models import model, run, snr

from onnxcompress.base import Context, Pass, Record
from onnxcompress.data import load_data
from onnxcompress.layers import constant
from onnxcompress.registry import runtimes

LEFT = {  # by passes that round what has at least 300 elements, without ends and what is called tu.*
    "first": "a first or last layer",
    "last": "a first or last layer",
    "table": "too small",
    "depthwise": "too small",
    "again": "tied to middle, done there",
    "turned": "excluded",
}
TEXT = """network (float[N,8,6,6] x, int64[N] at) => (float[N,16] y, float[N,24] t)
<float[24,8,3,3] w1 = {}, float[24] b1 = {}, float[24,24] w2 = {}, float[128,24] w3 = {},
 float[128,16] w4 = {}, float[10,24] w5 = {}, float[24,1,3,3] w6 = {}> {
    [first] c1 = Conv<pads = [1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    [depthwise] c2 = Conv<group = 24>(r1, w6)
    p = GlobalAveragePool(c2)
    f = Flatten(p)
    [middle] m = MatMul(f, w2)
    [again] a = MatMul(m, w2)
    [turned] g = Gemm<transB = 1>(a, w3)
    s = Relu(g)
    [last] y = MatMul(s, w4)
    [table] t = Gather(w5, at)
}"""


def network() -> ir.Model:
    """Return the model; ``first``, ``last`` and ``table`` are ends."""
    return model(TEXT)


def feeds(count: int = 64) -> dict[str, np.ndarray]:
    """Return inputs of the model whose numbers have much in common."""
    draw = np.random.default_rng(1)
    images = draw.standard_normal((count, 8, 6, 6)) + 2 * draw.standard_normal((count, 8, 1, 1))
    return {"x": images.astype(np.float32), "at": draw.integers(0, 10, count)}


def calibrated(made: ir.Model) -> Context:
    """Return a context with calibration data for `made`, a model with the inputs of :func:`network`."""
    return Context(calibration=load_data(feeds(), made, batch=16), runtime=runtimes()["onnxruntime"].make())


def weight(made: ir.Model, layer: str) -> np.ndarray:
    """Return the weight of the node `layer`."""
    node = made.graph.node(layer)
    tensor = constant(node.inputs[0 if node.op_type == "Gather" else 1])
    assert tensor is not None
    return tensor.numpy()


def records(each: Pass, made: ir.Model, context: Context | None = None) -> dict[str, Record]:
    """Return what `each` recorded of every layer of `made`."""
    return {record.layer: record for record in each.call(made, context or Context()).records}


def left(each: Pass, made: ir.Model) -> dict[str, str]:
    """Return why `each` left layers of `made` alone."""
    return {name: record.what for name, record in records(each, made).items() if not record.changed}


def quality(each: Pass) -> float:
    """Return the signal-to-noise ratio of the first output, in dB, of what `each` makes of the model."""
    made = network()
    each.call(made, calibrated(made))
    return snr(run(network(), feeds())[0], run(made, feeds())[0])
