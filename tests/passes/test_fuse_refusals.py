import models
import numpy as np
import pytest
from fused import NORM, draw, fuse, image, operators

from onnxcompress import Context
from onnxcompress.model import clone
from onnxcompress.passes import Fuse


def test_what_gives_the_input_more_channels_stays() -> None:
    made = image(
        "a = Mul(x, s) y = Conv(a, k)", "float[4, 1, 1] s = {}, float[4, 4, 3, 3] k = {}", channels=1
    )
    (record,) = fuse(made)
    assert record.what == "what it reads may be of another shape before it is scaled"


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
