import models
import pytest
from fused import NORM, fuse, image, operators, rows

# Before, weights, and the operators after: with when=always.
MERGED = {
    "3x1 then 1x3": (
        "a = Conv<pads=[1,0,1,0]>(x, v) y = Conv<pads=[0,1,0,1]>(a, w, b)",
        "float[3, 4, 3, 1] v = {}, float[5, 3, 1, 3] w = {}, float[5] b = {}",
    ),
    "1x3 then 3x1, biased but not padded": (
        "a = Conv(x, v, b) y = Conv(a, w, c)",
        "float[3, 4, 1, 3] v = {}, float[3] b = {}, float[5, 3, 3, 1] w = {}, float[5] c = {}",
    ),
    "1x1 then 3x3": (
        "a = Conv(x, v) y = Conv<pads=[1,1,1,1]>(a, w, b)",
        "float[7, 4, 1, 1] v = {}, float[5, 7, 3, 3] w = {}, float[5] b = {}",
    ),
    "1x1 with a bias that is zero, then 3x3 by SAME": (
        'a = Conv(x, v, b) y = Conv<auto_pad="SAME_UPPER">(a, w)',
        "float[7, 4, 1, 1] v = {}, float[7] b = {0, 0, 0, 0, 0, 0, 0}, float[5, 7, 3, 3] w = {}",
    ),
    "1x1, then 2x4 by SAME with strides": (
        'a = Conv(x, v) y = Conv<auto_pad="SAME_UPPER", strides=[3,1]>(a, w)',
        "float[7, 4, 1, 1] v = {}, float[5, 7, 2, 4] w = {}",
    ),
    "4x2 by SAME, then 1x1 by VALID": (
        'a = Conv<auto_pad="SAME_LOWER">(x, v) y = Conv<auto_pad="VALID">(a, w)',
        "float[7, 4, 4, 2] v = {}, float[5, 7, 1, 1] w = {}",
    ),
    "3x3 then 1x1": (
        "a = Conv<pads=[1,1,1,1]>(x, v, b) y = Conv(a, w)",
        "float[7, 4, 3, 3] v = {}, float[7] b = {}, float[5, 7, 1, 1] w = {}",
    ),
    "depthwise then pointwise": (
        "a = Conv<pads=[1,1,1,1], group=4, strides=[2,2]>(x, v, b) y = Conv(a, w)",
        "float[4, 1, 3, 3] v = {}, float[4] b = {}, float[5, 4, 1, 1] w = {}",
    ),
    "groups, strides and dilations": (
        "a = Conv<group=4, strides=[2,1], dilations=[1,2]>(x, v, b) y = Conv<group=2, dilations=[2,1]>(a, w)",
        "float[4, 1, 2, 2] v = {}, float[4] b = {}, float[6, 2, 2, 2] w = {}",
    ),
    "three in a row": (
        "a = Conv(x, v) b = Conv(a, w) y = Conv(b, u)",
        "float[3, 4, 1, 1] v = {}, float[5, 3, 3, 1] w = {}, float[2, 5, 1, 3] u = {}",
    ),
    "a Pad and a BatchNormalization between": (
        "a = Conv(x, v) p = Pad(a, q) c = Conv(p, w) y = BatchNormalization(c, scale, shift, mean, variance)",
        "float[3, 4, 1, 1] v = {}, float[4, 3, 3, 3] w = {}, int64[8] q = {0,0,1,1,0,0,1,1}" + NORM,
    ),
    "a sum of 3x3 and 1x1": (
        "a = Conv<pads=[1,1,1,1]>(x, v, b) c = Conv(x, w) y = Add(a, c)",
        "float[5, 4, 3, 3] v = {}, float[5] b = {}, float[5, 4, 1, 1] w = {}",
    ),
    "RepVGG's block": (
        """a = Conv<pads=[1,1,1,1]>(x, v) d = BatchNormalization(a, scale, shift, mean, variance)
        c = Conv(x, w) e = BatchNormalization(c, shift, scale, mean, variance)
        i = BatchNormalization(x, mean, shift, scale, variance) f = Add(d, e) y = Add(i, f)""",
        "float[4, 4, 3, 3] v = {}, float[4, 4, 1, 1] w = {}" + NORM,
    ),
    "a residual of one convolution, in groups": (
        "a = Conv<pads=[1,1,1,1], group=4>(x, v, b) y = Add(x, a)",
        "float[4, 1, 3, 3] v = {}, float[4] b = {}",
    ),
    "a Sum of all kinds": (
        "a = Conv<pads=[2,1,2,1]>(x, v) b = Conv(x, w) s = Mul(x, k) y = Sum(x, a, s, b, x)",
        "float[4, 4, 5, 3] v = {}, float[4, 4, 1, 1] w = {}, float[4, 1, 1] k = {}",
    ),
    "kernels side by side": (
        "a = Conv<pads=[1,1,1,1]>(x, v, b) c = Conv(x, w) y = Concat<axis=1>(a, c)",
        "float[2, 4, 3, 3] v = {}, float[2] b = {}, float[3, 4, 1, 1] w = {}",
    ),
    "kernels of other dilations and groups side by side": (
        """a = Conv<pads=[2,2,2,2], dilations=[2,2], group=2>(x, v, b)
        c = Conv<pads=[1,0,1,0]>(x, w) y = Concat<axis=-3>(a, c)""",
        "float[2, 2, 3, 3] v = {}, float[2] b = {}, float[3, 4, 3, 1] w = {}",
    ),
}


@pytest.mark.parametrize(("body", "weights"), MERGED.values(), ids=MERGED)
def test_layers_become_one_convolution(body: str, weights: str) -> None:
    made = image(body, weights)
    records = fuse(made)
    assert operators(made) == "Conv"
    assert made.graph.outputs[0].name == "y"
    assert all(record.changed for record in records)
    assert {"x", *made.graph.initializers} == {value.name for value in made.graph.node(0).inputs if value}


PRODUCTS = {
    "MatMuls": ("a = MatMul(x, v) y = MatMul(a, w)", "float[8, 3] v = {}, float[3, 5] w = {}", "MatMul"),
    "Gemms": (
        "a = Gemm<alpha=0.5, beta=2.0, transB=1>(x, v, b) y = Gemm<alpha=3.0>(a, w, c)",
        "float[3, 8] v = {}, float[3] b = {}, float[3, 5] w = {}, float[5] c = {}",
        "Gemm",
    ),
    "MatMul and Gemm, with Adds": (
        "a = MatMul(x, v) d = Add(b, a) e = MatMul(d, w) y = Add(e, c)",
        "float[8, 3] v = {}, float[3] b = {}, float[3, 5] w = {}, float[5] c = {}",
        "Gemm",
    ),
    "a sum of products and the input": (
        "a = MatMul(x, v) b = Gemm<transB=1>(x, w, c) d = Add(a, b) y = Add(d, x)",
        "float[8, 8] v = {}, float[8, 8] w = {}, float[8] c = {}",
        "Gemm",
    ),
    "products side by side": (
        "a = Gemm<transB=1>(x, v) b = Gemm(x, w, c) y = Concat<axis=1>(a, b)",
        "float[3, 8] v = {}, float[8, 5] w = {}, float[5] c = {}",
        "Gemm",
    ),
}


@pytest.mark.parametrize(("body", "weights", "after"), PRODUCTS.values(), ids=PRODUCTS)
def test_layers_become_one_product(body: str, weights: str, after: str) -> None:
    made = rows(body, weights)
    fuse(made)
    assert operators(made) == after


SEQUENCES = {  # of vectors: a bias needs an Add
    "the first's Add": ("a = MatMul(x, v) d = Add(a, b) y = MatMul(d, w)", "MatMul Add"),
    "the second's Add": ("a = MatMul(x, v) d = MatMul(a, w) y = Add(c, d)", "MatMul Add"),
    "both Adds": ("a = MatMul(x, v) d = Add(a, b) e = MatMul(d, w) y = Add(e, c)", "MatMul Add"),
    "neither": ("a = MatMul(x, v) y = MatMul(a, w)", "MatMul"),
    "a Mul": ("a = MatMul(x, v) y = Mul(a, b)", "MatMul"),
    "side by side": (
        "a = MatMul(x, v) d = MatMul(x, u) e = Add(d, b) y = Concat<axis=-1>(a, e)",
        "MatMul Add",
    ),
    "added up": ("a = MatMul(x, v) d = MatMul(x, u) e = Add(d, b) y = Add(a, e)", "MatMul Add"),
}


@pytest.mark.parametrize(("body", "after"), SEQUENCES.values(), ids=SEQUENCES)
def test_products_of_more_axes_keep_their_bias_in_an_add(body: str, after: str) -> None:
    weights = "float[8, 3] v = {}, float[8, 3] u = {}, float[3] b = {}, float[3, 5] w = {}, float[5] c = {}"
    made = rows(body, weights, "N, 6, 8")
    fuse(made)
    assert operators(made) == after


FOLDED = {
    "BatchNormalization before": (
        "a = BatchNormalization(x, scale, shift, mean, variance) y = Conv(a, w)",
        "float[6, 4, 3, 3] w = {}" + NORM,
    ),
    "Mul before a padded convolution": (
        "a = Mul(k, x) y = Conv<pads=[1,1,1,1], group=2>(a, w, b)",
        "float[6, 2, 3, 3] w = {}, float[6] b = {}, float[1, 4, 1, 1] k = {}",
    ),
    "Sub and Div before": (
        "a = Sub(x, k) c = Div(a, d) y = Conv<group=2>(c, w)",
        "float[6, 2, 3, 3] w = {}, float[4, 1, 1] k = {}, float d = {2.5}",
    ),
    "Mul before ConvTranspose": (
        "a = Mul(x, k) y = ConvTranspose<group=2, pads=[1,1,1,1]>(a, w)",
        "float[4, 3, 3, 3] w = {}, float[4, 1, 1] k = {}",
    ),
    "BatchNormalization behind ConvTranspose": (
        "a = ConvTranspose<group=2>(x, w) y = BatchNormalization(a, scale, shift, mean, variance)",
        "float[4, 2, 3, 3] w = {}" + NORM,
    ),
    "Pad before": (
        "p = Pad(x, q, z) y = Conv<pads=[0,1,0,0]>(p, w, b)",
        "float[6, 4, 3, 3] w = {}, float[6] b = {}, int64[8] q = {0,0,1,1,0,0,2,0}, float z = {0}",
    ),
    "Identity and Dropout": (
        "i = Identity(x) c = Conv(i, w) y = Dropout(c)",
        "float[6, 4, 3, 3] w = {}",
    ),
}


@pytest.mark.parametrize(("body", "weights"), FOLDED.values(), ids=FOLDED)
def test_what_stands_beside_a_layer_goes_into_it(body: str, weights: str) -> None:
    made = image(body, weights)
    records = fuse(made, "cheaper")
    assert len(list(made.graph)) == 1
    assert all(record.changed for record in records)


def test_arithmetic_before_products_goes_into_them() -> None:
    weights = "float[3, 8] v = {}, float[8, 5] w = {}, float[8] k = {}, float[8] l = {}"
    made = rows("a = Mul(x, k) b = Add(a, l) y = Gemm<transB=1, alpha=2.0>(b, v)", weights)
    fuse(made)
    assert operators(made) == "Gemm"
    made = rows("a = Mul(x, k) y = MatMul(a, w)", weights, "N, 2, 8")
    fuse(made)
    assert operators(made) == "MatMul"


def test_a_pad_for_several_convolutions_goes_into_each() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 18]>
        net (float[N, 4, 8, 8] x) => (float[N, 2, H, W] y, float[N, 3, I, J] z)
        <float[2, 4, 3, 3] v = {}, float[3, 4, 2, 2] w = {}, int64[2] q = {1, 2}, int64[1] axes = {-1}>
        { p = Pad(x, q, , axes) y = Conv(p, v) z = Conv<strides=[2,2]>(p, w) }"""
    )
    fuse(made)
    assert operators(made) == "Conv Conv"


def test_a_pad_of_an_old_operator_set_goes_in() -> None:
    made = models.model(
        """<ir_version: 4, opset_import: ["": 9]>
        net (float[N, 4, 8, 8] x) => (float[N, 2, H, W] y) <float[2, 4, 3, 3] v = {}>
        { p = Pad<pads=[0,0,1,1,0,0,1,1]>(x) y = Conv(p, v) }"""
    )
    fuse(made)
    assert operators(made) == "Conv"


def test_neighbours_among_what_is_joined_become_one() -> None:
    weights = "float[2, 4, 1, 1] u = {}, float[3, 4, 1, 1] v = {}, float[4, 4, 1, 1] w = {}"
    made = image("a = Relu(x) b = Conv(x, u) c = Conv(x, v) y = Concat<axis=1>(a, b, c, x)", weights)
    fuse(made)
    assert operators(made) == "Relu Conv Concat"
    made = image("a = Relu(x) b = Conv(x, u) c = Conv(x, v) y = Concat<axis=1>(x, a, x, b, c)", weights)
    fuse(made)
    assert operators(made) == "Relu Conv Concat"
    made = image("a = Relu(x) b = Conv(x, w) y = Sum(a, b, x)", weights)
    fuse(made)
    assert operators(made) == "Relu Conv Sum"


def test_an_empty_bias_is_none() -> None:
    made = image(
        "a = Conv(x, v, ) y = Conv<pads=[1,1,1,1]>(a, w)",
        "float[3, 4, 1, 1] v = {}, float[5, 3, 3, 3] w = {}",
    )
    fuse(made)
    assert operators(made) == "Conv"


def test_products_with_vectors_stay() -> None:
    made = models.model(
        """net (float[N,5,6] x) => (float[N,5] y) <float[6,8] a = {}, float[8] b = {}>
        { [a] p = MatMul(x, a) r = Relu(p) [b] y = MatMul(r, b) }"""
    )
    assert [record.what for record in fuse(made)] == ["nothing to fuse"]


def test_arithmetic_behind_a_quantized_layer_stays_and_says_so() -> None:
    made = models.model(
        """net (float[N,3,4,4] x) => (float[N,2,4,4] y) <int8[2,3,1,1] w = {1, 2, 3, 4, 5, 6},
        float s = {0.1}, float[2,1,1] t = {}>
        { w0 = DequantizeLinear(w, s) p = Conv(x, w0) [t] y = Add(p, t) }"""
    )
    assert [(record.layer, record.what) for record in fuse(made)] == [
        ("t", "the layer before it must stay: already quantized")
    ]
