from pathlib import Path

import light
import models
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcompress.base import Context, Record
from onnxcompress.errors import CompressError
from onnxcompress.model import clone, load, signature
from onnxcompress.passes import Quant, ShrinkKernels
from onnxcompress.passes.shrink_kernels import middle, ring_shares

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
TEXT = """net (float[N, 4, 12, 11] x) => (float[N, A, B, C] y)
<float[6, 4, 5, 5] w = {}, float[6] b = {}>
{ [conv] y = Conv<pads = [2, 3, 4, 2], strides = [1, 2]>(x, w, b) }"""


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = ShrinkKernels(**options).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def empty_rings(made: ir.Model, name: str = "w", rings: int = 1, left: float = 0.0) -> None:
    """Scale the outer `rings` of the weight `name` by `left`."""
    value = made.graph.initializers[name]
    assert value.const_value is not None
    weight = value.const_value.numpy().copy()
    inside = [slice(rings, size - rings) if size > 2 * rings else slice(None) for size in weight.shape[2:]]
    inner = np.zeros_like(weight, dtype=bool)
    inner[(slice(None), slice(None), *inside)] = True
    value.const_value = ir.tensor(np.where(inner, weight, weight * np.float32(left)), name=name)


def shape(made: ir.Model, name: str = "w") -> tuple[int, ...]:
    tensor = made.graph.initializers[name].const_value
    assert tensor is not None
    return tuple(tensor.shape.numpy())


def ints(made: ir.Model, attribute: str, node: str = "conv") -> list[int]:
    return list(made.graph.node(node).attributes.get_ints(attribute))


def feeds(dims: tuple[int, ...] = (2, 4, 12, 11)) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal(dims).astype(np.float32)}


def test_an_empty_ring_goes_and_the_outputs_stay() -> None:
    given = models.model(TEXT)
    empty_rings(given)
    made = clone(given)
    record = run(made)["conv"]
    assert (record.what, record.numbers) == ("shrunk", {"before": "5x5", "kernel": "3x3", "energy": 1.0})
    assert shape(made) == (6, 4, 3, 3)
    assert (ints(made, "pads"), ints(made, "kernel_shape")) == ([1, 2, 3, 1], [3, 3])
    assert signature(made) == signature(given)
    (expected,), (found,) = models.run(given, feeds()), models.run(made, feeds())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_ring_goes_by_its_share_of_the_squares_alone() -> None:
    given = models.model(TEXT)
    empty_rings(given, left=0.1)
    tensor = given.graph.initializers["w"].const_value
    assert tensor is not None
    squares = tensor.numpy().astype(np.float64) ** 2
    share = 1 - squares[..., 1:-1, 1:-1].sum() / squares.sum()
    assert run(clone(given), threshold=share * 0.999)["conv"].what == "its outer ring matters"
    made = clone(given)
    record = run(made, threshold=share * 1.001)["conv"]
    assert record.numbers["energy"] == pytest.approx(1 - share)
    (expected,), (found,) = models.run(given, feeds()), models.run(made, feeds())
    assert models.snr(expected, found) > 10 * np.log10(1 / share) - 3


def test_rings_go_until_one_matters() -> None:
    made = models.model(TEXT.replace("pads = [2, 3, 4, 2]", "pads = [2, 2, 2, 2]"))
    empty_rings(made, rings=2)
    assert run(made)["conv"].numbers["kernel"] == "1x1"
    assert ints(made, "pads") == [0, 0, 0, 0]


def test_pads_smaller_than_the_dilation_stop_it() -> None:
    for pads, kernel in (([2, 2, 2, 1], (3, 3)), ([0, 2, 2, 2], (5, 5))):
        made = models.model(TEXT.replace("[2, 3, 4, 2]", str(pads)))
        empty_rings(made, rings=2)
        record = run(made)["conv"]
        assert shape(made)[2:] == kernel
        assert record.changed == (kernel == (3, 3))
        assert run(made)["conv"].what == "its pads are smaller than its dilation, or unknown"
    dilated = models.model(TEXT.replace("pads = [2, 3, 4, 2]", "dilations = [2, 2], pads = [1, 4, 4, 4]"))
    empty_rings(dilated)
    assert not run(dilated)["conv"].changed


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_geometry_computes_the_same(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from(["Conv", "ConvTranspose"]))
    rank = data.draw(st.integers(1, 3))
    lists = {name: st.lists(limit, min_size=rank, max_size=rank) for name, limit in {
        "kernel": st.integers(1, 6), "strides": st.integers(1, 3), "dilations": st.integers(1, 2),
        "sizes": st.integers(5, 9),
    }.items()}  # fmt: skip
    kernel, strides, dilations, sizes = (data.draw(each) for each in lists.values())
    groups = data.draw(st.sampled_from([1, 2, 4]))
    auto = data.draw(st.sampled_from(["", "SAME_UPPER", "SAME_LOWER"])) if op == "Conv" else ""
    dilations = [1] * rank if auto else dilations  # onnxruntime refuses others
    pads = data.draw(st.lists(st.integers(1, 4), min_size=2 * rank, max_size=2 * rank))
    reach = [(k - 1) * gap + 1 for k, gap in zip(kernel, dilations, strict=True)]
    both = [pads[axis] + pads[axis + rank] for axis in range(rank)]
    if not auto and op == "Conv":
        assume(all(n + pad >= r and max(pads) < r for n, pad, r in zip(sizes, both, reach, strict=True)))
    if op == "ConvTranspose":
        lines = zip(sizes, strides, reach, both, strict=True)
        assume(all((n - 1) * step + r - pad > 0 for n, step, r, pad in lines))
    dilated = f"dilations = {dilations}"
    attribute = f'auto_pad = "{auto}"' if auto else f"pads = {pads}"
    given = models.model(
        f"""net (float[1, 4, {str(sizes)[1:-1]}] x) => (float[A, B, {", ".join("CDE"[:rank])}] y)
        <float[4, {4 // groups}, {str(kernel)[1:-1]}] w = {{}}>
        {{ [conv] y = {op}<group = {groups}, strides = {strides}, {dilated}, {attribute}>(x, w) }}"""
    )
    empty_rings(given)
    made = clone(given)
    record = run(made)["conv"]
    x = feeds((1, 4, *sizes))
    (expected,), (found,) = models.run(given, x), models.run(made, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if record.changed:
        assert shape(made)[2:] != tuple(kernel)
    else:
        assert max(kernel) < 3 or "pads" in record.what


def test_a_second_run_is_idle() -> None:
    made = models.model(TEXT)
    empty_rings(made, left=0.05)
    assert run(made)["conv"].changed
    again = run(made)["conv"]
    assert (again.changed, again.what) == (False, "its outer ring matters")


def test_tied_kernels_shrink_together_or_not_at_all() -> None:
    text = """net (float[N, 4, 8, 8] x) => (float[N, A, B, C] y, float[N, D, E, F] z)
        <float[4, 4, 3, 3] w = {{}}>
        {{ [one] y = Conv<pads = [1, 1, 1, 1]>(x, w) [two] z = Conv<pads = {pads}>(x, w) }}"""
    both, neither = (
        models.model(text.format(pads="[1, 2, 1, 2]")),
        models.model(text.format(pads="[0, 1, 1, 1]")),
    )
    for made in (both, neither):
        empty_rings(made)
    records = run(both)
    assert (records["one"].what, records["two"].what) == ("shrunk", "tied to one, done there")
    assert (ints(both, "pads", "one"), ints(both, "pads", "two")) == ([0, 0, 0, 0], [0, 1, 0, 1])
    assert {each.what for each in run(neither).values()} == {
        "its pads are smaller than its dilation, or unknown"
    }
    models.run(both, feeds((1, 4, 8, 8)))
    models.run(neither, feeds((1, 4, 8, 8)))


def test_a_weight_held_by_a_constant_node_shrinks_too() -> None:
    values = ", ".join(["0"] * 12 + ["3"] + ["0"] * 12)
    made = models.model(
        f"""net (float[1, 1, 8, 8] x) => (float[1, 1, 8, 8] y)
        {{
            w = Constant<value = float[1, 1, 5, 5] {{{values}}}>()
            [conv] y = Conv<pads = [2, 2, 2, 2]>(x, w)
        }}"""
    )
    assert run(made)["conv"].numbers["kernel"] == "1x1"
    x = feeds((1, 1, 8, 8))
    np.testing.assert_allclose(models.run(made, x)[0], 3 * x["x"], rtol=1e-6)


def test_what_does_not_shrink_says_why() -> None:
    made = models.model(
        """net (float[N, 4, H, W] x, float[N, 4] m) => (float[N, 4, A, B] y, float[N, 3] f,
            float[N, 4, C, D] z, float[N, 4, E, F] u, float[N, 4, G, I] v, float[4, 4, 3, 3] kept)
        <float[4, 4, 1, 1] point = {}, float[4, 3] fc = {}, float[4, 4, 3, 3] w = {},
         float[4, 4, 3, 3] out = {}, float[4, 4, 3, 3] seen = {}>
        {
            [pointwise] y = Conv(x, point)
            [dense] f = MatMul(m, fc)
            [unknown] z = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)
            [excluded] u = Conv<pads = [1, 1, 1, 1]>(x, out)
            [elsewhere] v = Conv<pads = [1, 1, 1, 1]>(x, seen)
            kept = Identity(seen)
        }"""
    )
    for name in ("w", "out", "seen"):
        empty_rings(made, name)
    assert {name: each.what for name, each in run(made, exclude="excluded").items()} == {
        "pointwise": "no ring in its kernel",
        "dense": "not a convolution",
        "unknown": "its pads are smaller than its dilation, or unknown",
        "excluded": "excluded",
        "elsewhere": "its weight is read elsewhere too",
    }


def test_quantized_kernels_stay() -> None:
    made = models.model(TEXT)
    Quant(activations="none", min_size=0).call(made, Context())
    assert run(made)["conv"].what == "already quantized"


def test_refuses_weights_that_are_not_finite() -> None:
    made = models.model(TEXT)
    made.graph.initializers["w"].const_value = ir.tensor(np.full((6, 4, 5, 5), np.nan, np.float32), name="w")
    with pytest.raises(CompressError, match="w: the weight holds NaN or infinity"):
        run(made)


def test_the_shares_of_rings_are_of_what_is_left() -> None:
    weight = np.zeros((1, 1, 5, 5))
    weight[0, 0, 2, 2], weight[0, 0, 1, 1], weight[0, 0, 0, 0] = 6, 2, 1
    assert ring_shares(weight) == pytest.approx([1 / 41, 4 / 40])
    assert ring_shares(np.zeros((2, 2, 3, 5))) == [0, 0]
    assert ring_shares(np.ones((2, 2, 2, 1))) == []
    assert middle(np.ones((2, 3, 4, 7, 1)), 2).shape == (2, 3, 2, 3, 1)


@pytest.mark.parametrize("name", ["inception_v1", "squeezenet", "resnet50"])
def test_an_architecture_shrinks_where_rings_are_empty(name: str) -> None:
    given = load(light.build(name, 8))
    wide = [
        node.inputs[1].name or ""
        for node in given.graph
        if node.op_type == "Conv" and node.inputs[1] and max(node.inputs[1].shape.numpy()[2:]) > 1
    ]
    for each in wide:
        empty_rings(given, each, left=0.001)
    made = clone(given)
    records = run(made)
    assert sum(each.changed for each in records.values()) > 0.5 * len(wide)
    image = {given.graph.inputs[0].name or "": np.random.default_rng(0).random((1, 3, 224, 224), np.float32)}
    (expected,), (found,) = models.run(given, image), models.run(made, image)
    assert models.snr(expected, found) > 30


def test_a_layer_with_attributes_of_its_function_stays() -> None:
    values = ", ".join(["0, 0, 0, 0, 1, 0, 0, 0, 0"] * 16)
    made = models.model(
        f"""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        net (float[1, 4, 9, 9] x) => (float[A, B, C, D] y) {{ [call] y = own.block<s = [2, 2]>(x) }}
        <opset_import: ["": 17], domain: "own">
        block <s>(x) => (y) {{
            w = Constant<value = float[4, 4, 3, 3] {{{values}}}>()
            [conv] y = Conv<strides: ints = @s, pads = [1, 1, 1, 1]>(x, w)
        }}"""
    )
    assert run(made)["conv"].what == "its pads are smaller than its dilation, or unknown"
