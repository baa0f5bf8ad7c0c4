from pathlib import Path

import light
import models
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress import Context
from onnxcompress.base import Record
from onnxcompress.cost import Cost, total
from onnxcompress.model import clone, load
from onnxcompress.passes import Fuse
from onnxcompress.passes.simplify import census

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
NORM = ", float[4] scale = {}, float[4] shift = {}, float[4] mean = {}, float[4] variance = {1, 2, 1, 3}"


def image(body: str, weights: str = "", channels: int = 4, size: int = 8) -> ir.Model:
    """A network from x [N, channels, size, size] to y."""
    text = f"net (float[N, {channels}, {size}, {size}] x) => (float[N, C, H, W] y) <{weights}> {{ {body} }}"
    return models.model(text)


def rows(body: str, weights: str = "", dims: str = "N, 8") -> ir.Model:
    """A network from x [N, 8], or of other dims, to y."""
    rank = len(dims.split(","))
    outputs = ", ".join("NMK"[:rank])
    return models.model(f"net (float[{dims}] x) => (float[{outputs}] y) <{weights}> {{ {body} }}")


def draw(made: ir.Model, seed: int = 1) -> dict[str, np.ndarray]:
    """Return random inputs of `made`, three samples where that is open."""
    found = {}
    for value in made.graph.inputs:
        assert value.shape is not None
        dims = tuple(dim if isinstance(dim, int) else 3 for dim in value.shape)
        array = np.random.default_rng(seed).normal(0, 1, dims)
        assert value.dtype is not None
        found[value.name or ""] = array.astype(value.dtype.numpy())
    return found


def fuse(
    made: ir.Model, when: str = "always", tolerance: float = 1e-4, context: Context | None = None
) -> list[Record]:
    """Fuse `made`, check that its outputs stay and that a second run is idle, and return the records."""
    feeds = draw(made)
    expected = models.run(clone(made), feeds)
    records = Fuse(when=when).call(made, context or Context()).records
    for before, after in zip(expected, models.run(made, feeds), strict=True):
        assert before.dtype == after.dtype
        assert before.shape == after.shape
        assert np.abs(after - before).max(initial=0) <= tolerance * np.abs(before).max(initial=1e-9)
    again = Fuse(when=when).call(made, context or Context())
    assert not again.modified
    left = [record.what for record in records if not record.changed]
    assert [record.what for record in again.records] == (left or ["nothing to fuse"])
    return records


def operators(made: ir.Model) -> str:
    """Return the operators of `made` in their order."""
    return " ".join(node.op_type for node in made.graph)


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


def test_what_gives_the_input_more_channels_stays() -> None:
    made = image(
        "a = Mul(x, s) y = Conv(a, k)", "float[4, 1, 1] s = {}, float[4, 4, 3, 3] k = {}", channels=1
    )
    (record,) = fuse(made)
    assert record.what == "what it reads may be of another shape before it is scaled"


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


REFUSED = [  # a network, and the reason of one record
    (
        "a = Conv(x, u, b) y = Conv<pads=[0,1,0,1]>(a, w)",
        "border: the layer behind it pads with zeros, which",
    ),
    ("a = Conv(x, k) y = Conv<pads=[1,1,1,1]>(a, l)", "border: the layer behind it pads with zeros, where"),
    ("a = Conv(x, u) c = Conv(a, w) d = Relu(a) e = GlobalMaxPool(d) y = Add(c, e)", "also read elsewhere"),
    ("a = Conv(x, u) y = Conv(a, u)", "its weight is shared"),
    ("a = Conv(x, u) y = ConvTranspose(a, k)", "the layer behind it must stay: ConvTranspose"),
    ("a = Conv(x, u) d = Relu(x) c = Conv(d, five) y = Concat<axis=1>(a, c)", "read different inputs"),
    (
        "a = Conv(x, u) d = Conv<pads=[1,1,1,1]>(x, k) y = Concat<axis=2>(a, d)",
        "doesn't concatenate channels",
    ),
    ("a = Conv<strides=[8,8]>(x, u) d = Conv(x, l) y = Add(a, d)", "don't stride alike"),
    ("a = Conv(x, one_to_one) d = Conv(x, u) y = Add(a, d)", "have different channels"),
    ("a = Conv(x, u) d = Conv(x, u) y = Add(a, d)", "must stay: its weight is shared"),
    ("a = Conv(x, u) d = Conv(x, s4) e = Sigmoid(a) f = Add(a, d) y = Add(e, f)", "also read elsewhere"),
    ("a = Add(x, s) y = Conv<pads=[1,1,1,1]>(a, k)", "its padding with zeros would see what is added"),
    ("a = Add(x, s) y = ConvTranspose(a, k)", "its padding with zeros would see what is added"),
    ("a = Mul(x, wide) y = Conv(a, k)", "not one number for each channel"),
    ("a = Mul(x, s) c = Conv(a, k) d = Sigmoid(a) e = Conv(d, l) y = Add(c, e)", "also read elsewhere"),
    ("a = Conv(x, u) y = Mul(a, wide)", "not one number for each channel"),
    ("a = Conv(x, u) y = Div(one, a)", "Div has its constant first"),
    ("a = Conv(x, u) y = Div(a, zero)", "divides by zero"),
    ("a = Relu(x) y = BatchNormalization(a, b, b, b, b)", "follows Relu, not a layer"),
    ("a = Conv(x, u) c = Mul(a, one) y = Add(c, a)", "also read elsewhere"),
    ("p = Pad(x, q, one) y = Conv(p, k)", "doesn't pad with zeros"),
    ('p = Pad<mode="reflect">(x, q) y = Conv(p, k)', "doesn't pad with zeros"),
    ("p = Pad(x, cut) y = Conv(p, k)", "or cuts"),
    ("p = Pad(x, deep) y = Conv(p, k5)", "other axes than the spatial ones"),
    ("p = Pad(x, q) a = Conv(p, k) c = Relu(p) d = Conv(c, l) y = Add(a, d)", "read by others"),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED)
def test_what_would_not_be_the_same_stays_and_the_reason_is_told(body: str, reason: str) -> None:
    weights = """float[4, 4, 1, 1] u = {}, float[4] b = {1, 2, 1, 2}, float[4, 4, 1, 3] w = {},
    float[4, 4, 3, 3] k = {}, float[4, 4, 3, 3] l = {}, float[4, 1, 1] s = {}, float[4, 8, 8] wide = {},
    int64[8] q = {0,0,1,1,0,0,1,1}, int64[8] cut = {0,0,-1,0,0,0,0,0}, float one = {2}, float zero = {0},
    float[5, 4, 1, 1] five = {}, float[1, 4, 1, 1] one_to_one = {}, float[4, 4, 1, 1] s4 = {},
    int64[8] deep = {0,1,0,0,0,0,0,0}, float[4, 5, 3, 3] k5 = {}"""
    made = image(body, weights)
    before = operators(made)
    records = [record for record in Fuse(when="always").call(made, Context()).records if not record.changed]
    assert operators(made) == before
    assert any(reason in record.what for record in records), [record.what for record in records]


def random_conv(draw: st.DrawFn, name: str, given: str, channels: int, dims: int) -> tuple[str, str, int]:
    """Draw a Conv of `given`, which has `channels`; return its text, its weights' text and its channels."""
    groups = draw(st.sampled_from([each for each in (1, 2, 4) if channels % each == 0]))
    outputs = groups * draw(st.integers(1, 4 // groups))

    def ints(low: int, high: int, count: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    sizes, pads = ints(1, 3, dims), draw(st.sampled_from([[0] * 2 * dims, ints(0, 2, 2 * dims)]))
    attributes = f"group={groups}, strides={ints(1, 2, dims)}, dilations={ints(1, 2, dims)}, pads={pads}"
    shape = ", ".join(map(str, [outputs, channels // groups, *sizes]))
    weights, biased = f"float[{shape}] w_{name} = {{}}", draw(st.booleans())
    if biased:
        weights += f", float[{outputs}] b_{name} = {{}}"
    bias = f", b_{name}" if biased else ""
    return f"{name} = Conv<{attributes}>({given}, w_{name}{bias})", weights, outputs


@st.composite
def chains(draw: st.DrawFn) -> ir.Model:
    """Draw a network of two or three convolutions in a row, in one or two dimensions."""
    dims, channels, given = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4])), "x"
    spatial = [draw(st.integers(29, 32)) for _ in range(dims)]
    inputs, texts, weights = ", ".join(map(str, ["N", channels, *spatial])), [], []
    for name in ("a", "c", "y")[draw(st.integers(0, 1)) :]:
        text, more, channels = random_conv(draw, name, given, channels, dims)
        texts.append(text)
        weights.append(more)
        given = name
    dims_out = ", ".join("NCHW"[: dims + 2])
    body = "\n".join(texts)
    return models.model(
        f"net (float[{inputs}] x) => (float[{dims_out}] y) <{', '.join(weights)}> {{ {body} }}"
    )


@settings(max_examples=150)
@given(chains(), st.sampled_from(["always", "cheaper"]))
def test_any_chain_of_convolutions_computes_the_same(made: ir.Model, when: str) -> None:
    count = len(list(made.graph))
    records = fuse(made, when)
    merged = sum(record.changed for record in records)
    assert len(list(made.graph)) == count - merged
    assert len(records) == count - 1  # each pair was merged, or is said not to be


@st.composite
def branches(draw: st.DrawFn) -> ir.Model:
    """Draw a network of two or three convolutions of one input, added up or concatenated."""
    stride, spare, joint = draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.booleans())
    texts, weights, values = [], [], ["a", "c", "d"][: draw(st.integers(2, 3))]
    for name in values:
        groups, biased = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
        outputs = 4 if joint else groups * draw(st.integers(1, 2))
        front, back, sizes, dilations = [], [], [], []
        for _ in range(2):
            size, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            reach = dilation * (size - 1)
            front.append(draw(st.integers(0, reach + spare)))
            back.append(reach + spare - front[-1])
            sizes.append(size)
            dilations.append(dilation)
        weights.append(f"float[{outputs}, {4 // groups}, {sizes[0]}, {sizes[1]}] w_{name} = {{}}")
        if biased:
            weights.append(f"float[{outputs}] b_{name} = {{}}")
        texts.append(
            f"{name} = Conv<group={groups}, strides=[{stride}, {stride}], dilations={dilations}, "
            f"pads={front + back}>(x, w_{name}{f', b_{name}' if biased else ''})"
        )
    if joint and stride == 1 and spare == 0 and draw(st.booleans()):
        values.insert(draw(st.integers(0, len(values))), "x")
    join = "Sum" if joint else "Concat<axis=1>"
    return image("\n".join(texts) + f" y = {join}({', '.join(values)})", ", ".join(weights))


@settings(max_examples=100)
@given(branches())
def test_any_branches_of_one_input_become_one_convolution(made: ir.Model) -> None:
    fuse(made)
    assert operators(made) == "Conv"


def test_merging_is_left_where_one_layer_costs_more_and_both_costs_are_told() -> None:
    body = "a = Conv<pads=[1,0,1,0]>(x, v) y = Conv<pads=[0,1,0,1]>(a, w)"
    for channels, after in ((4, "Conv"), (64, "Conv Conv")):
        weights = (
            f"float[{channels}, {channels}, 3, 1] v = {{}}, float[{channels}, {channels}, 1, 3] w = {{}}"
        )
        made = image(body, weights, channels)
        (record,) = fuse(made, "cheaper")
        assert operators(made) == after
        assert record.what == (
            "merged with the layer behind it" if after == "Conv" else "costs more as one layer"
        )
        assert record.numbers == {
            "second": "y",
            "parameters_before": 6 * channels**2,
            "parameters_after": 9 * channels**2,
            "macs_before": 6 * channels**2 * 64,
            "macs_after": 9 * channels**2 * 64,
            "moved_before": 4 * channels * 64,
            "moved_after": 2 * channels * 64,
        }


def test_branches_cost_what_they_read_and_write_and_so_does_what_joins_them() -> None:
    made = image(
        "a = Conv<pads=[1,1,1,1]>(x, v) b = Conv(x, w) y = Sum(a, b, x)",
        "float[4, 4, 3, 3] v = {}, float[4, 4, 1, 1] w = {}",
    )
    (record,) = fuse(made, "cheaper")
    assert record.what == "branches of Sum merged"
    assert record.numbers == {
        "branches": 3,
        "parameters_before": 16 * 10,
        "parameters_after": 16 * 9,
        "macs_before": 16 * 10 * 64,
        "macs_after": 16 * 9 * 64,
        "moved_before": (2 + 2 + 4) * 256,
        "moved_after": 2 * 256,
    }
    made = image(
        "r = Relu(x) a = Conv(x, v) b = Conv(x, w) y = Concat<axis=1>(r, a, b)",
        "float[4, 4, 1, 1] v = {}, float[8, 4, 1, 1] w = {}",
    )
    (record,) = fuse(made, "cheaper")
    moved = {name: number for name, number in record.numbers.items() if "moved" in name}
    assert moved == {"moved_before": (2 + 3 + 8) * 256, "moved_after": (4 + 8) * 256}


def test_without_sizes_costs_are_unknown_and_layers_are_merged_only_if_told_to() -> None:
    weights = "<float[3, 4, 1, 1] v = {}, float[5, 3, 3, 3] w = {}>"
    text = f"net (float[N, 4, H, W] x) => (float[N, 5, I, J] y) {weights} {{ a = Conv(x, v) y = Conv(a, w) }}"
    made = models.model(text)
    records = Fuse().call(made, Context()).records
    assert [record.what for record in records] == [
        "the sizes of its activations aren't known, so its cost isn't either"
    ]
    assert Fuse(when="always").call(made, Context()).modified
    assert operators(made) == "Conv"


def test_the_factorised_digits_cost_what_a_hand_counts() -> None:
    made = load(TESTDATA / "factorised_digits.onnx")
    ShapeInferencePass()(made)
    before = total(made.graph)
    Fuse(when="always").call(made, Context())
    after = total(made.graph)
    assert before is not None
    assert after is not None
    # Of the 3x1 and 1x3 convolutions of 32, 32 and 48 channels, on 8x8, a 3x3 one is made.
    assert before.parameters == 51562
    assert after.parameters - before.parameters == 32 * 48 * 9 - (32 * 32 * 3 + 32 * 48 * 3)
    stem, pair, one = 32 * 9 * 64, (32 * 32 * 3 + 32 * 48 * 3) * 64, 32 * 48 * 9 * 64
    rest = (48 * 48 * 3 + 48 * 64 * 3) * 16 + 2 * (64 * 64 * 3) * 4 + 256 * 10
    assert (before.macs, after.macs) == (stem + pair + rest, stem + one + rest)
    assert (before.read - after.read, before.written - after.written) == (32 * 64, 32 * 64)
    relus, pools = 32 * 64 + 48 * 64 + 64 * 16 + 2 * 64 * 4, (48 * 16, 64 * 4)
    layers = (32 + 32 + 48) * 64 + (48 + 64) * 16 + 2 * 64 * 4 + 10
    assert before == Cost(
        51562,
        stem + pair + rest,
        64 + 2 * 32 * 64 + 2 * 48 * 16 + 2 * 64 * 4 + 256 + relus + 48 * 64 + 64 * 16,
        layers + relus + sum(pools),
    )


def test_a_block_of_squeezenext_costs_what_a_hand_counts() -> None:
    """Source: Gholami et al., SqueezeNext, CVPR workshops 2018: 1x1, 1x1, 3x1, 1x3, 1x1 and a shortcut."""
    made = image(
        """a = Conv(x, w1, b1) r = Relu(a) c = Conv(r, w2, b2) s = Relu(c)
        d = Conv<pads=[1,0,1,0]>(s, w3) e = Conv<pads=[0,1,0,1]>(d, w4, b4) t = Relu(e)
        f = Conv(t, w5, b5) g = Add(f, x) y = Relu(g)""",
        """float[8, 16, 1, 1] w1 = {}, float[8] b1 = {}, float[4, 8, 1, 1] w2 = {}, float[4] b2 = {},
        float[4, 4, 3, 1] w3 = {}, float[4, 4, 1, 3] w4 = {}, float[4] b4 = {}, float[16, 4, 1, 1] w5 = {},
        float[16] b5 = {}""",
        channels=16,
    )
    ShapeInferencePass()(made)
    layers = 128 + 32 + 48 + 48 + 64
    read, written = 16 + 8 + 8 + 4 + 4 + 4 + 4 + 4 + 32 + 16, 8 + 8 + 4 + 4 + 4 + 4 + 4 + 16 + 16 + 16
    assert total(made.graph) == Cost(layers + 32, layers * 64, read * 64, written * 64)
    (record,) = fuse(made, "cheaper")
    assert record.layer == "d"
    layers += 144 - 96
    assert total(made.graph) == Cost(layers + 32, layers * 64, (read - 4) * 64, (written - 4) * 64)


def test_the_bias_that_a_batch_norm_brings_keeps_a_padded_pair_apart() -> None:
    body = """a = Conv<pads=[1,0,1,0]>(x, v) c = BatchNormalization(a, scale, shift, mean, variance)
    y = Conv<pads=[0,1,0,1]>(c, w)"""
    weights = "float[4, 4, 3, 1] v = {}, float[4, 4, 1, 3] w = {}"
    made = image(body, weights + NORM)
    assert [record.what.split(":")[0] for record in fuse(made)] == ["what follows folded in", "border"]
    none = NORM.replace("shift = {}", "shift = {0, 0, 0, 0}").replace("mean = {}", "mean = {0, 0, 0, 0}")
    made = image(body, weights + none)
    fuse(made)
    assert operators(made) == "Conv"


def test_of_the_factorised_digits_the_pair_without_bias_and_bend_is_merged() -> None:
    made = load(TESTDATA / "factorised_digits.onnx")
    records = {record.layer: record for record in fuse(made)}
    assert census(made)["Conv"] == 6
    assert records["/linear_3x1/Conv"].changed
    assert not records["/biased_3x1/Conv"].changed
    assert records["/biased_3x1/Conv"].what.startswith("border")
    assert "/bent_3x1/Conv" not in records


@pytest.mark.parametrize("when", ["cheaper", "always"])
@pytest.mark.parametrize("name", sorted(path.stem for path in TESTDATA.glob("*.onnx")))
def test_every_test_model_computes_the_same_and_has_no_batch_norm_left(name: str, when: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    fuse(made, when)
    assert census(made)["BatchNormalization"] == 0


WIDTH = {"shufflenet": 1}  # groups of 34 channels can't be narrowed by four


@pytest.mark.parametrize("name", light.NAMES)
def test_of_every_architecture_all_batch_norms_behind_convolutions_are_folded(name: str) -> None:
    made = load(light.raised(light.build(name, WIDTH.get(name, 4)), 13))
    behind = sum(
        node.op_type == "BatchNormalization" and node.inputs[0].producer().op_type == "Conv"
        for node in made.graph
    )
    before = census(made)
    result = Fuse().call(clone(made), Context())
    after = census(result.model)
    assert before["BatchNormalization"] - after["BatchNormalization"] == behind
    told = [record for record in result.records if record.numbers.get("operator") == "BatchNormalization"]
    assert len(told) == after["BatchNormalization"]
    fuse(made)


@pytest.mark.parametrize(
    ("kind", "tolerance", "body", "after"),
    [
        ("float16", 1e-2, "a = MatMul(x, v) b = Mul(a, s) y = MatMul(b, w)", "MatMul"),
        ("double", 1e-9, "a = MatMul(x, v) b = Add(a, s) y = Gemm(b, w, c)", "Gemm"),
    ],
)
def test_other_float_types_are_computed_in_float64_and_stored_as_they_were(
    kind: str, tolerance: float, body: str, after: str
) -> None:
    dtype = np.dtype(kind)
    shapes = {"v": (8, 3), "w": (3, 5), "s": (3,), "c": (5,)}
    arrays = {
        name: np.random.default_rng(7).normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }
    used = {name: array for name, array in arrays.items() if name in "vws" or "c)" in body}
    made = models.model(f"net ({kind}[N, 8] x) => ({kind}[N, 5] y) {{ {body} }}", used)
    fuse(made, tolerance=tolerance)
    assert operators(made) == after
    assert {value.dtype for value in made.graph.initializers.values()} == {ir.DataType.from_numpy(dtype)}


def test_what_would_overflow_half_precision_stays() -> None:
    arrays = {"v": np.full((8, 3), 1e3, np.float16), "w": np.full((3, 5), 1e3, np.float16)}
    arrays["s"] = np.full(3, 1e3, np.float16)
    made = models.model(
        "net (float16[N, 8] x) => (float16[N, 5] y) { a = MatMul(x, v) y = MatMul(a, w) }",
        {name: arrays[name] for name in "vw"},
    )
    (record,) = Fuse(when="always").call(made, Context()).records
    assert record.what == "the weight would overflow FLOAT16"
    made = models.model(
        "net (float16[N, 8] x) => (float16[N, 3] y) { a = MatMul(x, v) y = Mul(a, s) }",
        {name: arrays[name] for name in "vs"},
    )
    (record,) = Fuse().call(made, Context()).records
    assert record.what == "the weight would overflow FLOAT16"


def test_an_output_between_two_layers_stays() -> None:
    made = models.model(
        """net (float[N, 4, 8, 8] x) => (float[N, 3, 8, 8] a, float[N, 5, 6, 6] y)
        <float[3, 4, 1, 1] v = {}, float[5, 3, 3, 3] w = {}> { a = Conv(x, v) y = Conv(a, w) }"""
    )
    (record,) = fuse(made)
    assert record.what == "what lies in between is also read elsewhere or an output"
    assert operators(made) == "Conv Conv"


def test_excluded_layers_stay_and_keep_their_neighbours() -> None:
    body, weights = "a = Conv(x, v) y = Conv(a, w)", "float[3, 4, 1, 1] v = {}, float[5, 3, 3, 3] w = {}"
    for layer, reason in (("a", "excluded"), ("y", "the layer behind it must stay: excluded")):
        made = image(body, weights)
        records = fuse(made, context=Context(exclude=(layer,)))
        assert [record.what for record in records] == [reason]
        assert not Fuse(when="always", exclude=layer).call(image(body, weights), Context()).modified


def test_bodies_of_branches_are_fused_but_nothing_across_their_border() -> None:
    made = models.model(
        """net (bool q, float[1, 4, 8, 8] x) => (float[1, 5, 6, 6] y)
        <float[3, 4, 1, 1] u = {}, float[4, 4, 1, 1] v = {}, float[5, 3, 3, 3] w = {}>
        {
            o = Conv(x, v)
            y = If(q) <then_branch = t () => (float[1, 5, 6, 6] a)
                           { s = Conv(o, u) a = Conv(s, w) },
                       else_branch = e () => (float[1, 5, 6, 6] b) <float[5, 4, 3, 3] k = {}>
                           { b = Conv(o, k) }>
        }"""
    )
    for taken in (True, False):
        feeds = {"q": np.array(taken), "x": draw(made)["x"]}
        fused = clone(made)
        records = Fuse(when="always").call(fused, Context()).records
        np.testing.assert_allclose(
            models.run(fused, feeds)[0], models.run(clone(made), feeds)[0], rtol=1e-4, atol=1e-5
        )
    assert [(record.layer, record.changed) for record in records] == [("s", True), ("o", False)]


def test_functions_are_fused_too() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { y = own.twice(x) }
        <opset_import: ["": 17], domain: "own">
        twice (x) => (z) {
            v = Constant<value = float[4, 4, 1, 1] {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2}>()
            w = Constant<value = float[4, 1, 1, 1] {1, 2, 3, 4}>()
            s = Constant<value = float {2}>()
            a = Conv(x, v) b = Mul(a, s) z = Conv<group=4>(b, w)
        }"""
    )
    fuse(made)
    (function,) = made.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Conv"]


def test_attributes_that_calls_of_a_function_give_are_not_guessed() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        net (float[N, 4, 8, 8] x) => (float[N, 4, 6, 6] y) { y = own.once <pads = [0, 0, 0, 0]> (x) }
        <opset_import: ["": 17], domain: "own">
        once <pads> (x) => (z) {
            v = Constant<value = float[4, 1, 3, 3] {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9,
                                                    1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9}>()
            s = Constant<value = float {2}>()
            a = Conv<group = 4, pads: ints = @pads>(x, v) z = Mul(a, s)
        }"""
    )
    (record,) = fuse(made)
    assert record.what == "the layer before it must stay: its attributes are those of a function's call"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("d = Relu(x) e = Dropout(d, r, t) y = Relu(e)", "Relu Dropout Relu"),
        ("d, m = Dropout(x) n = Cast<to=1>(m) y = Add(d, n)", "Dropout Cast Add"),
        (
            "c = Conv(x, w) y, o, p = BatchNormalization<training_mode=1>(c, k, k, k, k)",
            "Conv BatchNormalization",
        ),
    ],
)
def test_what_is_in_training_stays(body: str, kept: str) -> None:
    weights = "float[4, 4, 1, 1] w = {}, float[4] k = {1, 2, 3, 4}, float r = {0.5}, bool t = {1}"
    made = models.model(
        f'<ir_version: 8, opset_import: ["": 17]> net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) '
        f"<{weights}> {{ {body} }}"
    )
    Fuse().call(made, Context())
    assert operators(made) == kept


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
