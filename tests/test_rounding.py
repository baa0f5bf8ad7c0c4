import numpy as np
import pytest
from models import model, run

from onnxcompress.base import Context, Pass
from onnxcompress.data import load_data
from onnxcompress.passes import Binarise, QuantFixed, QuantLog, Ternarise
from onnxcompress.registry import runtimes

TEXT = """g (float[N,4] x) => (float[N] y, float[N,0] z, float[N,2] c, float[N,2] k)
<float[4] w = {}, float[4,0] e = {}, float[4,2] n = {0,0,0,0,0,0,0,0}, float[4,2] o = {5,5,5,5,5,5,5,5}> {
    [vector] y = MatMul(x, w)
    [empty] z = MatMul(x, e)
    [zeros] c = MatMul(x, n)
    [equal] k = MatMul(x, o)
}"""


@pytest.mark.parametrize(
    "each",
    [
        *(Ternarise(keep_ends=False, min_size=0, importance=each) for each in ("equal", "inputs")),
        Binarise(keep_ends=False, min_size=0, importance="inputs", activations="sign"),
        *(QuantLog(min_size=0, importance=each) for each in ("equal", "inputs")),
        *(QuantFixed(min_size=0, bits=4, importance=each) for each in ("equal", "inputs")),
    ],
    ids=str,
)
def test_vectors_empty_weights_zeros_and_equal_numbers_are_rounded_or_left(each: Pass) -> None:
    made = model(TEXT)
    feed = {"x": np.full((3, 4), 2, np.float32)}
    context = Context(calibration=load_data(feed, made), runtime=runtimes()["onnxruntime"].make())
    found = {record.layer: record.changed for record in each.call(made, context).records}
    assert found["vector"]
    assert not found["empty"]
    assert not found["zeros"]
    y, z, c, k = run(made, feed)
    assert (y.shape, z.shape) == ((3,), (3, 0))
    assert not c.any()
    np.testing.assert_allclose(k, 40, rtol=0.2)
