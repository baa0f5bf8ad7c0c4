"""What a removal must rewrite, and what it can't."""

import masking
import models
import pytest

SCALED = """net (float[N,5,6] x) => (float[N,5,4] y%s) <float[6,8] q = {}, float[6,8] k = {}, float[6,8] v = {},
float[8,4] b = {}, int64[1] i = {-1}, int64[1] j = {9223372036854775807}>
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
