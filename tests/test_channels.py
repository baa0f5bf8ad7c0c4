from collections.abc import Mapping

import masking
import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Record
from onnxcompress.channels import find
from onnxcompress.channels.balance import balancer, basis
from onnxcompress.channels.labels import TangledError, box, components, matched, reshaped, slabs
from onnxcompress.model import clone, to_proto, weight_bytes
from onnxcompress.passes import PruneChannels, RemoveMasked

H17 = '<ir_version: 8, opset_import: ["": 17]>\n'

# What goes through: every channel between two layers can be removed, and is, by half.
THROUGH: dict[str, tuple[str, Mapping[str, np.ndarray]]] = {
    "a transposed convolution": (
        """net (float[N,3,6,6] x) => (float[N,4,11,11] y) <float[8,3,3,3] a = {}, float[8,6,2,2] b = {},
        float[4,6,1,1] c = {}>
        { [a] p = Conv<pads=[1,1,1,1]>(x, a) [b] q = ConvTranspose<strides=[2,2],pads=[1,1,0,0]>(p, b)
        [c] y = Conv(q, c) }""",
        {},
    ),
    "Gemm either way": (
        """net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, float[8] b = {}, float[10,8] c = {},
        float[1,10] d = {}, float[10,4] e = {}>
        { [a] p = Gemm(x, a, b) [c] q = Gemm<transB=1>(p, c, d) [r] r = Tanh(q) [e] y = Gemm(r, e) }""",
        {},
    ),
    "a constant on the left": (
        """net (float[N,6,5] x) => (float[N,4,5] y) <float[8,6] a = {}, float[4,8] b = {}>
        { [a] p = MatMul(a, x) [r] q = Relu(p) [b] y = MatMul(b, q) }""",
        {},
    ),
    "squeeze and excite": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] a = {}, float[4,8,1,1] s = {},
        float[8,4,1,1] t = {}, float[4,8,1,1] c = {}>
        { [a] p = Conv(x, a) [g] g = GlobalAveragePool(p) [s] h = Conv(g, s) [r] i = Relu(h) [t] j =
        Conv(i, t) [k] k = Sigmoid(j) [m] m = Mul(p, k) [c] y = Conv(m, c) }""",
        {},
    ),
    "PRelu, InstanceNormalization, constants": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] a = {}, float[8,1,1] s = {},
        float[8] u = {}, float[8] v = {}, float[1,8,1,1] w = {}, float[4,8,1,1] c = {}>
        { [a] p = Conv(x, a) [b] q = PRelu(p, s) [d] r = InstanceNormalization(q, u, v) [e] t = Add(w, r)
        [c] y = Conv(t, c) }""",
        {},
    ),
    "Split, Slice, Concat": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[16,3,1,1] a = {}, float[4,20,1,1] c = {}>
        { [a] p = Conv(x, a) [z] z = Constant<value=int64[2]{10,6}>() [s] q, r = Split<axis=1>(p, z) [o]
        o = Constant<value=int64[1]{2}>()
          [e] e = Constant<value=int64[1]{9223372036854775807}>() [f] f = Constant<value=int64[1]{1}>()
          [t] t = Slice(q, o, e, f)
          [u] u = Concat<axis=1>(r, t, r) [c] y = Conv(u, c) }""",
        {},
    ),
    "Gather": (
        """net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, float[8,4] c = {}, int64[8] i =
        {7,6,5,4,3,2,1,0}>
        { [a] p = MatMul(x, a) [g] q = Gather<axis=1>(p, i) [c] y = MatMul(q, c) }""",
        {},
    ),
    "channels padded with zeros": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] a = {}, float[16,8,1,1] b = {},
        float[4,16,1,1] c = {}, int64[8] s = {0,4,0,0,0,4,0,0}>
        { [a] p = Conv(x, a) [b] q = Conv(p, b) [d] d = Pad(p, s) [e] e = Add(q, d) [r] r = Relu(e) [c] y
        = Conv(r, c) }""",
        {},
    ),
    "depth to space": (
        """net (float[N,3,6,6] x) => (float[N,4,12,12] y) <float[16,3,1,1] a = {}, float[4,4,1,1] c = {}>
        { [a] p = Conv(x, a) [d] q = DepthToSpace<blocksize=2>(p) [c] y = Conv(q, c) }""",
        {},
    ),
    "depth to space by columns": (
        """net (float[N,3,6,6] x) => (float[N,4,12,12] y) <float[16,3,1,1] a = {}, float[4,4,1,1] c = {}>
        { [a] p = Conv(x, a) [d] q = DepthToSpace<blocksize=2,mode="CRD">(p) [c] y = Conv(q, c) }""",
        {},
    ),
    "space to depth": (
        """net (float[N,3,6,6] x) => (float[N,4,3,3] y) <float[8,3,1,1] a = {}, float[4,32,1,1] c = {}>
        { [a] p = Conv(x, a) [d] q = SpaceToDepth<blocksize=2>(p) [c] y = Conv(q, c) }""",
        {},
    ),
    "Resize by sizes": (
        """net (float[1,3,6,6] x) => (float[1,4,9,9] y) <float[8,3,1,1] a = {}, float[4,8,1,1] c = {},
        int64[4] s = {1,8,9,9}>
        { [a] p = Conv(x, a) [d] q = Resize(p, , , s) [c] y = Conv(q, c) }""",
        {},
    ),
    "a mean over space, a sum over channels": (
        """net (float[N,3,6,6] x) => (float[N,4] y, float[N,1,6,6] z) <float[8,3,1,1] a = {}, float[8,4]
        c = {}, int64[1] i = {1}>
        { [a] p = Conv(x, a) [d] q = ReduceMean<axes=[2,3],keepdims=0>(p) [c] y = MatMul(q, c) [s] z =
        ReduceSum(p, i) }""",
        {},
    ),
    "a depthwise convolution with two outputs each": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] a = {}, float[16,1,3,3] b = {},
        float[16] d = {}, float[4,16,1,1] c = {}>
        { [a] p = Conv(x, a) [b] q = Conv<group=8,pads=[1,1,1,1]>(p, b, d) [c] y = Conv(q, c) }""",
        {},
    ),
    "grouped convolutions one after another": (
        """net (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[16,2,1,1] a = {}, float[12,4,3,3] b = {},
        float[12] d = {}, float[4,6,1,1] c = {}>
        { [a] p = Conv<group=2>(x, a) [b] q = Conv<group=4,pads=[1,1,1,1]>(p, b, d) [r] r = Relu(q) [c] y
        = Conv<group=2>(r, c) }""",
        {},
    ),
    "a channel shuffle of groups that do not divide": (
        """net (float[N,3,4,4] x) => (float[N,4,4,4] y) <float[20,3,1,1] a = {}, float[20,1,3,3] d = {},
        float[12,10,1,1] b = {}, float[4,12,1,1] c = {}, int64[5] s = {-1,2,10,4,4}, int64[4] t =
        {-1,20,4,4}>
        { [a] p = Conv(x, a) [s] q = Reshape(p, s) [u] r = Transpose<perm=[0,2,1,3,4]>(q) [t] v =
        Reshape(r, t)
          [d] w = Conv<group=20,pads=[1,1,1,1]>(v, d) [b] z = Conv<group=2>(w, b) [c] y = Conv(z, c) }""",
        {},
    ),
    "half of the channels go by, shuffled twice": (
        """net (float[N,3,4,4] x) => (float[N,4,4,4] y) <float[16,3,1,1] a = {}, float[8,8,1,1] b = {},
        float[8,8,1,1] e = {}, float[4,16,1,1] c = {}, int64[5] s = {-1,2,8,4,4}, int64[4] t =
        {-1,16,4,4}, int64[2] h = {8,8}>
        { [a] p = Conv(x, a) [s1] q = Reshape(p, s) [u1] r = Transpose<perm=[0,2,1,3,4]>(q) [t1] v =
        Reshape(r, t)
          [k1] l, m = Split<axis=1>(v, h) [b] n = Conv(m, b) [o1] o = Concat<axis=1>(l, n)
          [s2] q2 = Reshape(o, s) [u2] r2 = Transpose<perm=[0,2,1,3,4]>(q2) [t2] v2 = Reshape(r2, t)
          [k2] l2, m2 = Split<axis=1>(v2, h) [e] n2 = Conv(m2, e) [o2] o2 = Concat<axis=1>(l2, n2) [c] y
          = Conv(o2, c) }""",
        {},
    ),
    "attention with queries, keys and values in one": (
        """net (float[N,5,6] x) => (float[N,5,4] y) <float[6,48] a = {}, float[48] b = {}, float[16,4] c
        = {}, int64[5] s = {0,5,3,4,4}, int64[3] t = {0,5,16}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 =
        {2}>
        { [a] p = MatMul(x, a) [b] q = Add(p, b) [s] r = Reshape(q, s) [u] u =
        Transpose<perm=[2,0,3,1,4]>(r)
          [g0] v = Gather<axis=0>(u, i0) [g1] w = Gather<axis=0>(u, i1) [g2] z = Gather<axis=0>(u, i2)
          [k] k = Transpose<perm=[0,1,3,2]>(w) [l] l = MatMul(v, k) [m] m = Softmax(l) [n] n = MatMul(m, z)
          [o] o = Transpose<perm=[0,2,1,3]>(n) [t] d = Reshape(o, t) [c] y = MatMul(d, c) }""",
        {},
    ),
    "a shape computed from the activation": (
        """net (float[N,3,6,6] x) => (float[N,4] y) <float[8,3,1,1] a = {}, float[288,4] c = {}, int64 i
        = {0}, int64[1] m = {288}, int64[1] o = {0}>
        { [a] p = Conv(x, a) [s] s = Shape(p) [g] g = Gather(s, i) [u] u = Unsqueeze(g, o) [t] t =
        Concat<axis=0>(u, m)
          [r] r = Reshape(p, t) [c] y = MatMul(r, c) }""",
        {},
    ),
    "an embedding": (
        """net (float[N,5,7] x) => (float[N,5,4] y) <float[7,8] a = {}, float[9,8] e = {}, int64[5] i =
        {1,4,0,8,2}, float[8,4] c = {}>
        { [a] p = MatMul(x, a) [e] q = Gather(e, i) [s] r = Add(p, q) [c] y = MatMul(r, c) }""",
        {},
    ),
    "an LSTM both ways": (
        """net (float[5,N,6] x) => (float[5,N,4] y) <float[6,8] a = {}, float[2,24,8] w = {},
        float[2,24,6] r = {}, float[2,48] b = {}, float[12,4] c = {}, int64[3] s = {5,-1,12}>
        { [a] p = MatMul(x, a) [l] q = LSTM<hidden_size=6,direction="bidirectional">(p, w, r, b) [t] t =
        Transpose<perm=[0,2,1,3]>(q)
          [s] u = Reshape(t, s) [c] y = MatMul(u, c) }""",
        {},
    ),
    "a GRU": (
        """net (float[5,N,6] x) => (float[1,N,4] y) <float[1,24,6] w = {}, float[1,24,8] r = {},
        float[1,48] b = {}, float[8,4] c = {}>
        { [l] q, h = GRU<hidden_size=8,linear_before_reset=1>(x, w, r, b) [c] y = MatMul(h, c) }""",
        {},
    ),
    "values quantized for each channel": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] a = {}, float[8] s, int8[8] z,
        float[4,8,1,1] c = {}>
        { [a] p = Conv(x, a) [q] q = QuantizeLinear<axis=1>(p, s, z) [d] d = DequantizeLinear<axis=1>(q,
        s, z) [c] y = Conv(d, c) }""",
        {"s": np.linspace(0.01, 0.05, 8, dtype=np.float32), "z": np.arange(8, dtype=np.int8)},
    ),
    "weights quantized for each channel": (
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <int8[8,3,1,1] a, float[8] s, int8[8] z,
        float[4,8,1,1] c = {}>
        { [w] w = DequantizeLinear<axis=0>(a, s, z) [a] p = Conv(x, w) [c] y = Conv(p, c) }""",
        {
            "a": np.arange(-12, 12, dtype=np.int8).reshape(8, 3, 1, 1),
            "s": np.linspace(0.01, 0.05, 8, dtype=np.float32),
            "z": np.arange(8, dtype=np.int8),
        },
    ),
    "recurrent layers one after another, one with peepholes": (
        """net (float[4,N,5] x) => (float[N,3] y) <float[1,24,5] w = {}, float[1,24,6] r = {}, float[1,18] p
        = {}, float[1,16,6] v = {}, float[1,16,4] s = {}, float[4,3] c = {}, int64[1] i = {1}, int64[1] j =
        {0}>
        { [l] q = LSTM<hidden_size=6>(x, w, r, , , , , p) q1 = Squeeze(q, i) [m] t, h =
        LSTM<hidden_size=4>(q1, v, s) h1 = Squeeze(h, j) [c] y = MatMul(h1, c) }""",
        {},
    ),
    "one head of attention": (
        """net (float[N,5,6] x) => (float[N,5,4] y) <float[6,8] q = {}, float[6,8] k = {}, float[6,8] v =
        {}, float[8,4] c = {}>
        { [q] q0 = MatMul(x, q) [k] k0 = MatMul(x, k) [v] v0 = MatMul(x, v) t =
        Transpose<perm=[0,2,1]>(k0) l = MatMul(q0, t) m = Softmax(l) n = MatMul(m, v0)
        [c] y = MatMul(n, c) }""",
        {},
    ),
    "a product of what is transposed": (
        """net (float[3,6] x) => (float[3,4] y) <float[6,8] a = {}, float[8] b = {}, float[8,4] c = {}>
        { [a] p = Gemm(x, a, b) t = Transpose(p) [c] y = Gemm<transA=1>(t, c) }""",
        {},
    ),
    "repeated channels": (
        """net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, float[24,4] c = {}, int64[2] t = {1,3}>
        { [a] p = MatMul(x, a) [d] q = Tile(p, t) [c] y = MatMul(q, c) }""",
        {},
    ),
}

# What stays, and because of which node.
STAYS = {
    "is normalised over channels at n (LayerNormalization)": """
        net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, float[8] s = {}, float[8,4] c = {}>
        { [a] p = MatMul(x, a) [n] q = LayerNormalization(p, s) [c] y = MatMul(q, c) }""",
    "is normalised over channels at n (Softmax)": """
        net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, float[8,4] c = {}>
        { [a] p = MatMul(x, a) [n] q = Softmax(p) [c] y = MatMul(q, c) }""",
    "is reduced over channels at n (ReduceMax)": """
        net (float[N,6] x) => (float[N,1] y) <float[6,8] a = {}>
        { [a] p = MatMul(x, a) [n] y = ReduceMax<axes=[1]>(p) }""",
    "there is no rule at n (CumSum)": """
        net (float[N,6] x) => (float[N,4] y) <float[6,8] a = {}, int64 i = {1}, float[8,4] c = {}>
        { [a] p = MatMul(x, a) [n] q = CumSum(p, i) [c] y = MatMul(q, c) }""",
    "graph input x": """
        net (float[N,8] x) => (float[N,4] y) <float[8,8] a = {}, float[8,4] c = {}>
        { [a] p = MatMul(x, a) [n] q = Add(p, x) [c] y = MatMul(q, c) }""",
    "graph output p": """
        net (float[N,6] x) => (float[N,4] y, float[N,8] p) <float[6,8] a = {}, float[8,4] c = {}>
        { [a] p = MatMul(x, a) [c] y = MatMul(p, c) }""",
    "its weight is shared": """
        net (float[N,8] x) => (float[N,8] y) <float[8,8] a = {}, float[8,8] c = {}>
        { [a] p = MatMul(x, a) [c] q = MatMul(p, c) [b] y = MatMul(q, a) }""",
}


def build(text: str, arrays: Mapping[str, np.ndarray]) -> ir.Model:
    return models.model(H17 + text, arrays)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", THROUGH)
def test_channels_go_through(name: str, score: str) -> None:
    made = build(*THROUGH[name])
    after, records = masking.pruned_and_masked(made, {"score": score})
    assert weight_bytes(after) < 0.75 * weight_bytes(made), [each.what for each in records]


@pytest.mark.parametrize("name", THROUGH)
def test_masks_alone_compute_the_same_and_go_as_the_channels_would(name: str) -> None:
    made = build(*THROUGH[name])
    removed, masked = clone(made), clone(made)
    PruneChannels().call(removed, Context())
    PruneChannels(apply=False).call(masked, Context())
    given = masking.feeds(made)
    expected = masking.outputs(to_proto(removed), given)
    for found in (masked, RemoveMasked().call(clone(masked), Context()).model):
        for one, other in zip(expected, masking.outputs(to_proto(found), given), strict=True):
            assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()
    assert weight_bytes(found) <= weight_bytes(removed)


@pytest.mark.parametrize("reason", STAYS)
def test_what_stays_is_left_with_the_reason_and_the_node(reason: str) -> None:
    made = build(STAYS[reason], {})
    _, records = masking.pruned_and_masked(made)
    assert reason in [record.what for record in records if not record.changed]
    assert not any(changed(records))


def changed(records: list[Record]) -> list[str]:
    return [record.layer for record in records if record.changed]


def test_a_residual_sum_makes_units_of_both_its_branches() -> None:
    made = build(
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[8,3,1,1] a = {}, float[8,8,1,1] b = {},
        float[4,8,1,1] c = {}>
        { [a] p = Conv(x, a) [b] q = Conv(p, b) [s] r = Add(p, q) [c] y = Conv(r, c) }""",
        {},
    )
    families = find(made).units.families
    assert [([node.name for node in each.layers], len(each.units)) for each in families] == [
        (["a", "b"], 8),
        (["c"], 4),
    ]


def test_tied_labels_get_the_smallest_of_them() -> None:
    roots = components(7, np.array([1, 4, 5]), np.array([2, 5, 2]))
    assert roots.tolist() == [0, 1, 1, 3, 1, 1, 6]


def test_the_kth_occurrence_of_a_label_stands_for_its_kth_occurrence() -> None:
    old, new = np.array([5, 7, 5, 9]), np.array([9, 5, 5])
    assert matched(new, old).tolist() == [3, 0, 2]
    with pytest.raises(TangledError):
        matched(np.array([7, 7]), old)


def test_slices_of_channels_that_mix_are_refused() -> None:
    old = np.arange(8).reshape(2, 4)
    assert slabs(old[:, [1, 3]], old, 1).tolist() == [1, 3]
    with pytest.raises(TangledError):
        slabs(np.array([[0, 1], [6, 7]]), old, 1)


def test_what_is_left_of_a_box_must_be_a_box() -> None:
    kept = np.array([[True, False, True], [False, False, False], [True, True, False]])
    assert box(kept) == (2, 2)
    with pytest.raises(TangledError):
        box(kept & np.array([True, True, False]))


def test_a_reshape_leaves_the_axes_that_do_not_matter_alone() -> None:
    labels = np.arange(6).reshape(1, 6, 1, 1)
    assert reshaped(labels, (2, 6, 500, 500), (2, 3, 2, 500, 500)).shape == (1, 3, 2, 1, 1)
    assert reshaped(labels, (2, 6, 5, 5), (2, 150)).tolist() == [np.repeat(np.arange(6), 25).tolist()]


def test_counts_solve_their_equations_near_what_is_wanted() -> None:
    sizes = np.array([24, 44, 18, 50, 12, 56, 6, 62])  # ShuffleNet's second stage: groups of 68 and of 62
    blocks = [[0, 1], [2, 3], [4, 5], [6, 7]], [[1, 2], [3, 4], [5, 6], [7]]
    equations = [
        [int(cell in block) - int(cell in part[0]) for cell in range(8)]
        for part in blocks
        for block in part[1:]
    ]
    found = balancer(np.array(equations), sizes)(0.4 * sizes)
    assert found is not None
    assert not (np.array(equations) @ found).any()
    assert (found <= sizes).all()
    assert (found >= 0).all()
    assert abs(found.sum() - 0.4 * sizes.sum()) < 0.1 * sizes.sum()
    assert (np.array(equations) @ basis(np.array(equations)).T == 0).all()
