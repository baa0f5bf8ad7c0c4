"""Operators that move channels about, where what stays lies unevenly or comes to one."""

import masking
import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Record

HALVES = """net (float[N,3,4,4] x) => (float[N,4,4,4] y) <float[8,3,1,1] a, float[3,4,1,1] b = {},
float[5,4,1,1] c = {}, float[4,8,1,1] d = {}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}>
{ [a] p = Conv(x, a) %s
  [b] s = Conv(q, b) [c] t = Conv(r, c) [k] u = Concat<axis=1>(s, t) [d] y = Conv(u, d) }"""
CUT = {
    "Split": "[n] q, r = Split<axis=1%s>(p)",
    "Slice": """[s] s0 = Shape(p) [g] g = Gather(s0, one) [h] h = Div(g, two)
    [n] q = Slice(p, zero, h, one) [m] r = Slice(p, h, g, one)""",
}


def version(number: int) -> str:
    return f'<ir_version: 8, opset_import: ["": {number}]>\n'


def pruned(made: ir.Model, ratio: float, score: str = "l2") -> tuple[ir.Model, dict[str, Record]]:
    after, records = masking.pruned_and_masked(made, {"ratio": ratio, "score": score, "multiple_of": 1})
    return after, {record.layer: record for record in records}


@pytest.mark.parametrize("kept", [[0, 1, 2, 4], [0, 1, 2, 3, 4], [3, 4, 5, 6, 7], [0, 1, 4, 5]])
@pytest.mark.parametrize(("cut", "opset"), [("Split", 11), ("Split", 13), ("Split", 18), ("Slice", 13)])
def test_halves_may_keep_different_counts(cut: str, opset: int, kept: list[int]) -> None:
    weight = np.random.default_rng(1).uniform(0.5, 1, (8, 3, 1, 1)).astype(np.float32)
    weight[[channel for channel in range(8) if channel not in kept]] *= 0.01
    way = CUT[cut] % (",num_outputs=2" if opset == 18 else "") if cut == "Split" else CUT[cut]
    _, records = pruned(models.model(version(opset) + HALVES % way, {"a": weight}), 1 - len(kept) / 8)
    gone = masking.numbers(str(records["a"].numbers["outputs_removed"]))
    assert sorted({*range(8)} - {*gone}) == kept


@pytest.mark.parametrize("operator", ["DepthToSpace", "SpaceToDepth"])
def test_channels_along_the_axes_that_blocks_move_stay(operator: str) -> None:
    inside = 16 if operator == "DepthToSpace" else 4
    made = models.model(
        f"""net (float[N,3,8,8] x) => (float[N,4,p,q] y) <float[8,3,1,1] a = {{}}, float[4,{inside},1,1] c
        = {{}}> {{ [a] p = Conv(x, a) [t] t = Transpose<perm=[0,2,1,3]>(p) [n] u = {operator}<blocksize=2>(t)
        [v] v = Transpose<perm=[0,2,1,3]>(u) [c] y = Conv(v, c) }}"""
    )
    _, records = pruned(made, 0.5)
    assert records["a"].what == f"reads channels along several axes at n ({operator})"


def test_a_resize_of_some_axes_leaves_channels_alone() -> None:
    made = models.model(
        version(18)
        + """net (float[N,3,6,6] x) => (float[N,4,9,9] y) <float[8,3,1,1] a = {}, float[4,8,1,1] c = {},
        int64[2] s = {9,9}> { [a] p = Conv(x, a) [n] q = Resize<axes=[2,3]>(p, , , s) [c] y = Conv(q, c) }"""
    )
    _, records = pruned(made, 0.5)
    assert records["a"].numbers["outputs"] == 4


def test_one_head_that_stays_is_still_repeated_for_all_that_read_it() -> None:
    made = models.model(
        """net (float[N,5,6] x) => (float[N,5,4] y) <float[6,8] q = {}, float[6,4] k = {}, float[6,4] v = {},
        float[8,4] b = {}, int64[4] s = {0,5,4,2}, int64[4] t = {0,5,2,2}, int64[5] e = {1,2,2,5,2},
        int64[4] u = {0,4,5,2}, int64[1] i = {2}, int64[3] o = {0,5,8}>
        { [q] q0 = MatMul(x, q) [k] k0 = MatMul(x, k) [v] v0 = MatMul(x, v)
          q1 = Reshape(q0, s) k1 = Reshape(k0, t) v1 = Reshape(v0, t)
          q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,1,3]>(k1)
          v2 = Transpose<perm=[0,2,1,3]>(v1) k3 = Unsqueeze(k2, i) v3 = Unsqueeze(v2, i)
          k4 = Expand(k3, e) v4 = Expand(v3, e) k5 = Reshape(k4, u) v5 = Reshape(v4, u)
          k6 = Transpose<perm=[0,1,3,2]>(k5) l = MatMul(q2, k6) m = Softmax(l) n = MatMul(m, v5)
          n1 = Transpose<perm=[0,2,1,3]>(n) n2 = Reshape(n1, o) [b] y = MatMul(n2, b) }"""
    )
    _, records = pruned(made, 0.5)
    assert [records[name].numbers["outputs"] for name in "qkv"] == [4, 2, 2]


def test_the_places_of_one_channel_that_stays_are_flattened() -> None:
    made = models.model(
        """net (float[N,3,2,2] x) => (float[N,4] y) <float[8,3,1,1] a = {}, float[32,4] c = {}>
        { [a] p = Conv(x, a) [f] q = Flatten(p) [c] y = Gemm(q, c) }"""
    )
    _, records = pruned(made, 0.9)
    assert records["a"].numbers["outputs"] == 1


@pytest.mark.parametrize("kept", [[0], [5], [1, 2], [4, 5, 6, 7]])
@pytest.mark.parametrize("cut", CUT)
def test_each_half_keeps_its_best_channel(cut: str, kept: list[int]) -> None:
    weight = np.full((8, 3, 1, 1), 0.01, np.float32) * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1)
    weight[kept] += 1
    way = CUT[cut] % "" if cut == "Split" else CUT[cut]
    _, records = pruned(models.model(HALVES % way, {"a": weight}), 1 - len(kept) / 8)
    gone = masking.numbers(str(records["a"].numbers["outputs_removed"]))
    stay = {*range(8)} - {*gone}
    assert len(stay) == max(2, len(kept))
    assert min(stay) < 4 <= max(stay)


def test_places_in_a_row_may_become_channels() -> None:
    made = models.model(
        """net (float[N,8,6] x) => (float[N,4,5] y) <float[6,8] a = {}, float[16,5] c = {}, int64[3] s =
        {0,-1,16}> { [a] p = MatMul(x, a) [r] q = Reshape(p, s) [c] y = MatMul(q, c) }"""
    )
    for ratio, kept in ((0.5, 4), (1.0, 1)):
        _, records = pruned(made, ratio)
        assert records["a"].numbers["outputs"] == kept
