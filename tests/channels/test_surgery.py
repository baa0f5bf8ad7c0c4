"""What a removal must rewrite, and what it can't."""

import masking
import models
import numpy as np
import pytest

SCALED = """net (float[N,5,6] x) => (float[N,5,4] y%s) <float[6,8] q = {}, float[6,8] k = {},
float[6,8] v = {}, float[8,4] b = {}, int64[1] i = {-1}, int64[1] j = {9223372036854775807}>
{ [q] q0 = MatMul(x, q) [k] k0 = MatMul(x, k) [v] v0 = MatMul(x, v) [z] z = Shape(q0) d = Slice(z, i, j)
  f = Cast<to=1>(d) g = Sqrt(f) t = Transpose<perm=[0,2,1]>(k0) l = MatMul(q0, t) [n] m = %s
  o = Softmax<axis=-1>(m) u = MatMul(o, v0) [b] y = MatMul(u, b) }"""


@pytest.mark.parametrize(
    ("output", "scaled", "reason"),
    [
        ("", "Div(l, g)", "n (Div) computes with a size that would change, at z (Shape)"),
        (", int64[1] d", "Identity(l)", "output d is a size that would change, at z (Shape)"),
    ],
)
def test_channels_stay_whose_number_is_computed_with(output: str, scaled: str, reason: str) -> None:
    _, records = masking.pruned_and_masked(models.model(SCALED % (output, scaled)))
    found = {record.layer: record for record in records}
    assert found["q"].what == found["k"].what == reason
    assert found["v"].numbers["outputs"] == 4


def test_the_shape_of_a_dequantized_weight_is_that_of_what_is_left() -> None:
    made = models.model(
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <int8[8,3,1,1] a, float[8] s, float[4,8,1,1] c = {},
        float[8,3,1,1] w> { [w] w = DequantizeLinear<axis=0>(a, s) [a] p = Conv(x, w) [c] y = Conv(p, c) }""",
        {
            "a": np.arange(-12, 12, dtype=np.int8).reshape(8, 3, 1, 1),
            "s": np.linspace(0.01, 0.05, 8, dtype=np.float32),
        },
    )
    after, _ = masking.pruned_and_masked(made)
    assert [value.shape for value in after.graph.node("w").outputs] == [[4, 3, 1, 1]]


def test_layers_whose_weights_are_quantized_in_blocks_stay() -> None:
    made = models.model(
        """<ir_version: 10, opset_import: ["": 21]>
        net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, int8[8,4] q, float[2,4] s, float[4,4] c = {}>
        { [a] p = MatMul(x, a) w = DequantizeLinear<axis=0,block_size=4>(q, s) [b] r = MatMul(p, w)
          [c] y = MatMul(r, c) }""",
        {
            "q": np.arange(-16, 16, dtype=np.int8).reshape(8, 4),
            "s": np.linspace(0.01, 0.05, 8, dtype=np.float32).reshape(2, 4),
        },
    )
    _, records = masking.pruned_and_masked(made)
    assert {record.layer: record.what for record in records if not record.changed} == {
        "a": "its weight is quantized in blocks at b (MatMul)",
        "b": "its weight is quantized in blocks at b (MatMul)",
        "c": "graph output y",
    }
