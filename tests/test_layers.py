import ml_dtypes
import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.base import Context
from onnxcompress.errors import CompressError
from onnxcompress.layers import by_weight, finite, layers
from onnxcompress.model import load

TIED = """net (float[N, 32] x) => (float[N, 32] y) <float[32, 32] w = {}>
{ [one] a = MatMul(x, w) [two] y = MatMul(a, w) }"""


def refusals(made: ir.Model, *exclude: str) -> dict[str, str | None]:
    found = list(layers(made, Context(exclude=exclude)))
    assert len({layer.name for layer in found}) == len(found)
    return {layer.name: layer.refusal for layer in found}


def groups(made: ir.Model, context: Context, exclude: str = "") -> list[tuple[list[str], str | None]]:
    return [([layer.name for layer in each], why) for each, why in by_weight(made, context, exclude)]


# Weights that are shared


def test_of_the_layers_that_share_a_weight_the_first_has_it_and_the_others_say_so() -> None:
    made = models.model(TIED)
    assert refusals(made) == {"one": None, "two": "tied to one, done there"}
    assert groups(made, Context()) == [(["one", "two"], None)]


@pytest.mark.parametrize("excluded", ["one", "two"])
def test_a_weight_stays_for_all_its_readers_where_one_of_them_is_excluded(excluded: str) -> None:
    made = models.model(TIED)
    reason = "its weight is shared with an excluded layer"
    assert refusals(made, excluded) == {"one": reason, "two": reason}
    assert groups(made, Context(), excluded) == [(["one", "two"], reason)]
    assert groups(made, Context(exclude=(excluded,))) == [(["one", "two"], reason)]


@pytest.mark.parametrize("pattern", ["w", "one|two"])
def test_layers_are_excluded_by_the_name_of_their_weight_or_by_all_their_names(pattern: str) -> None:
    assert refusals(models.model(TIED), pattern) == {"one": "excluded", "two": "excluded"}


# Weights that are computed


@pytest.mark.parametrize(
    ("maker", "weights", "reason"),
    [
        ("w = Transpose(v)", "float[32, 32] v = {}", "computed by Transpose"),
        ("w = ConstantOfShape(d)", "int64[2] d = {32, 32}", "computed by ConstantOfShape"),
        ("w = Identity(v)", "float[32, 32] v = {}", "computed by Identity"),
        ("w = Reshape(v, d)", "float[16, 64] v = {}, int64[2] d = {32, 32}", "computed by Reshape"),
        ("u = Identity(v) w = Transpose(u)", "float[32, 32] v = {}", "computed by Transpose"),
        ("u = Identity(v) w = Mul(u, s)", "float[32, 32] v = {}, float s = {2}", "computed by Mul"),
    ],
)
@pytest.mark.parametrize("product", ["MatMul(x, w)", "MatMul(w, x)", "Gemm(x, w)"])
def test_a_weight_computed_from_constants_is_refused_and_says_by_what(
    product: str, maker: str, weights: str, reason: str
) -> None:
    made = models.model(
        f"net (float[32, 32] x) => (float[32, 32] y) <{weights}> {{ {maker} [fc] y = {product} }}"
    )
    assert refusals(made) == {"fc": f"its weight is {reason}"}


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "double"])
def test_a_weight_stored_as_other_floats_is_not_called_quantized(kind: str) -> None:
    made = models.model(
        f"net (float[N, 2] x) => (float[N, 2] y) <{kind}[2, 2] v = {{1, 2, 3, 4}}>"
        "{ w = Cast<to = 1>(v) [fc] y = MatMul(x, w) }"
    )
    assert refusals(made) == {"fc": "its weight is computed by Cast"}


@pytest.mark.parametrize(
    "maker",
    [
        "f = Cast<to = 1>(v) w = Mul(f, s)",
        "f = Cast<to = 1>(v) w = Mul(s, f)",
        "f = Cast<to = 1>(v) g = Mul(f, s) w = Transpose(g)",
        "f = Cast<to = 1>(v) g = Mul(f, s) h = Cast<to = 10>(g) w = Cast<to = 1>(h)",
        "w = DequantizeLinear(v, s)",
        "f = DequantizeLinear(v, s) w = Transpose(f)",
    ],
)
@pytest.mark.parametrize("op", ["MatMul(x, w)", "Gather(w, i)"])
def test_a_weight_stored_as_integers_is_quantized_already(maker: str, op: str) -> None:
    made = models.model(
        "net (float[N, 2] x, int64[N] i) => (float[N, 2] y) <int8[2, 2] v = {1, 2, 3, 4}, float s = {0.5}>"
        f"{{ {maker} [layer] y = {op} }}"
    )
    assert refusals(made) == {"layer": "already quantized"}


@pytest.mark.parametrize(
    "body",
    [
        "k = Transpose(x) y = MatMul(x, k)",
        "k = Mul(x, w) y = MatMul(x, k)",
        "r = RandomNormalLike(w) y = MatMul(x, r)",
        "b = If(c) <then_branch = t () => (float[2, 2] p) { p = Identity(w) },"
        " else_branch = e () => (float[2, 2] q) { q = Neg(w) }> y = MatMul(x, b)",
        "s = Shape(w) g = Gather(s, i) f = Cast<to = 1>(g) y = Mul(x, f)",
    ],
)
def test_products_of_activations_and_sizes_are_no_layers(body: str) -> None:
    made = models.model(
        "net (float[2, 2] x, bool c) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}, int64 i = {0}>"
        f"{{ {body} }}"
    )
    assert refusals(made) == {}


def test_what_a_branch_computes_from_constants_outside_it_is_seen() -> None:
    made = models.model(
        """net (float[2, 2] x, bool c) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}>
        {
            o = Transpose(w)
            y = If(c) <then_branch = t () => (float[2, 2] p) { [in] p = MatMul(x, o) },
                       else_branch = e () => (float[2, 2] q) { q = MatMul(x, x) }>
        }"""
    )
    assert refusals(made) == {"in": "its weight is computed by Transpose"}


def test_a_chain_of_any_length_is_followed() -> None:
    chain = " ".join(f"v{place + 1} = Identity(v{place})" for place in range(3000))
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 13]> net (float[N, 2] x) => (float[N, 2] y)'
        f"<float[2, 2] v0 = {{1, 2, 3, 4}}> {{ {chain} [fc] y = MatMul(x, v3000) }}"
    )
    assert refusals(load(proto)) == {"fc": "its weight is computed by Identity"}


# Products of constants


@pytest.mark.parametrize("product", ["MatMul(c, w)", "Gemm(c, w)", "MatMul(t, w)", "MatMul(c, t)"])
def test_a_product_of_constants_is_one_layer_and_refused(product: str) -> None:
    made = models.model(
        "net (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {}, float[2, 2] c = {}>"
        f"{{ t = Transpose(w) [fc] z = {product} y = Add(z, x) }}"
    )
    assert refusals(made) == {"fc": "constant: simplify folds it"}


def test_a_weight_also_multiplied_by_a_constant_is_still_one_of_its_other_reader() -> None:
    made = models.model(
        """net (float[N, 32] x) => (float[N, 32] y) <float[1, 32] c = {}, float[32, 32] w = {}>
        { [fixed] z = MatMul(c, w) [fc] a = MatMul(x, w) y = Add(a, z) }"""
    )
    assert groups(made, Context()) == [(["fixed"], "constant: simplify folds it"), (["fc"], None)]
    assert refusals(made) == {"fixed": "constant: simplify folds it", "fc": None}


def test_a_weight_multiplied_by_an_initializer_callers_may_override_is_one_layer() -> None:
    made = models.model(
        """<ir_version: 8, opset_import: ["": 13]>
        net (float[2, 2] x, float[2, 2] given = {}) => (float[2, 2] y) <float[2, 2] w = {}>
        { [fc] z = MatMul(w, given) y = Add(z, x) }"""
    )
    (layer,) = layers(made, Context())
    assert (layer.weight.name, layer.refusal) == ("w", None)
    np.testing.assert_array_equal(layer.channel_axes, (0,))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_finds_what_is_not_finite_wherever_it_is(dtype: type, bad: float) -> None:
    largest = ml_dtypes.finfo(dtype).max
    weight = np.array([[0.0, -0.0, 1.0, -1.0], [largest, -largest, 1e-7, -1e-7]], dtype)
    for view in (weight, weight.T, weight[:, ::2], weight[:, :0], weight[0, 0]):
        assert finite(view, "w") is view
    for place in np.ndindex(weight.shape):
        broken = weight.copy()
        broken[place] = bad
        for view in (broken, broken.T):
            with pytest.raises(CompressError, match="w: the weight holds NaN or infinity"):
                finite(view, "w")
