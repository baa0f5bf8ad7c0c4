import light
import models
import numpy as np
import onnx_ir as ir
import pytest
from factored import NETWORK, apart, images, run, smooth
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcompress.factors import METHODS
from onnxcompress.model import clone, load, signature
from onnxcompress.runtimes.onnxruntime import OnnxRuntime


def test_each_layer_becomes_the_cheapest_chain_that_keeps_the_energy() -> None:
    given = models.model(NETWORK)
    for name in ("w1", "w2", "w3"):
        value = given.graph.initializers[name]
        assert value.shape is not None
        value.const_value = ir.tensor(smooth(tuple(value.shape.numpy())), name=name)
    made = clone(given)
    records = run(made, energy=0.99)
    assert signature(made) == signature(given)
    assert made.graph.node("first").outputs[0].name == "c"
    for name in ("first", "second", "third"):
        numbers = records[name].numbers
        assert numbers["energy"] >= 0.99
        assert numbers["parameters_after"] < 0.5 * numbers["parameters"]
        assert numbers["macs_after"] < 0.5 * numbers["macs"]
        assert numbers["macs_share"] == numbers["macs_after"] / numbers["macs"]
        assert numbers["snr"] == pytest.approx(-10 * np.log10(1 - numbers["energy"]), abs=0.01)
    assert "w1" not in made.graph.initializers
    assert apart(given, made, images(1)[0]) < 0.5


def test_what_is_recorded_is_what_the_model_then_has() -> None:
    given = models.model(NETWORK)
    for method in ("svd", "separable", "tucker", "depthwise", "two-3x3"):
        made = clone(given)
        records = run(made, method=method, rank=3, when="always", exclude="first|third|last")
        numbers = records["second"].numbers
        held = [value for name, value in made.graph.initializers.items() if name.startswith("w2_")]
        assert (
            sum(value.const_value.size for value in held if value.const_value) == numbers["parameters_after"]
        )
        assert records["second"].what == f"factorised by {method}"
        # multiplications: the sizes that onnxruntime computes for what lies between
        names = [node.outputs[0].name or "" for node in made.graph if node.op_type == "Conv"][1:]
        seen = OnnxRuntime().prepare(made, outputs=names).run(images(1, (1, 6, 10, 9))[0])
        weights = [node.inputs[1] for node in made.graph if node.op_type == "Conv"][1:]
        macs = sum(
            int(np.prod(seen[name].shape[2:])) * int(np.prod(weight.shape.numpy()))
            for name, weight in zip(names, weights, strict=True)
            if weight is not None and weight.shape is not None
        )
        assert numbers["macs_after"] == macs


def test_records_the_multiplications_of_the_layer_as_it_was() -> None:
    made = models.model(NETWORK)
    numbers = run(made, method="svd", rank=2, when="always")["first"].numbers
    assert (numbers["parameters"], numbers["macs"]) == (12 * 6 * 9, 12 * 6 * 9 * 5 * 5)


@pytest.mark.parametrize("method", [each.name for each in METHODS])
def test_full_rank_computes_the_same(method: str) -> None:
    given = models.model(NETWORK)
    made = clone(given)
    records = run(made, method=method, energy=1.0, when="always")
    assert records["second"].changed
    assert apart(given, made, images(1)[0]) < 1e-4


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_chains_of_full_rank_are_exact_for_every_geometry(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(["svd", "separable", "tucker", "depthwise", "two-3x3"]))
    kernel = [5, 5] if method == "two-3x3" else data.draw(st.lists(st.integers(2, 5), min_size=2, max_size=2))
    strides, dilations = (data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)) for _ in range(2))
    padding = data.draw(st.sampled_from(["pads", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding.startswith("SAME"):
        dilations = [1, 1]  # onnxruntime refuses others
    reach = [(k - 1) * gap + 1 for k, gap in zip(kernel, dilations, strict=True)]
    sizes = data.draw(st.lists(st.integers(6, 13), min_size=2, max_size=2))
    pads = [0] * 4
    if padding == "pads":
        pads = data.draw(st.lists(st.integers(0, 4), min_size=4, max_size=4))
    if not padding.startswith("SAME"):
        assume(all(n + pads[i] + pads[i + 2] >= reach[i] for i, n in enumerate(sizes)))
    attribute = f"pads = {pads}" if padding == "pads" else f'auto_pad = "{padding}"'
    inputs = data.draw(st.sampled_from(["x, w", "x, w, b"]))
    made = models.model(
        f"""net (float[1, 2, {sizes[0]}, {sizes[1]}] x) => (float[A, B, C, D] y)
        <float[3, 2, {kernel[0]}, {kernel[1]}] w = {{}}, float[3] b = {{1.0, -2.0, 3.0}}>
        {{ [conv] y = Conv<strides = {strides}, dilations = {dilations}, {attribute}>({inputs}) }}"""
    )
    given = clone(made)
    records = run(made, method=method, energy=1.0, when="always")
    assert records["conv"].what == f"factorised by {method}"
    x = np.random.default_rng(1).standard_normal((1, 2, *sizes)).astype(np.float32)
    assert apart(given, made, {"x": x}) < 1e-4


def test_one_and_three_spatial_axes_work() -> None:
    given = models.model(
        """net (float[1, 8, 30] x, float[1, 4, 7, 7, 7] z) => (float[1, A, B] y, float[1, C, D, E, F] u)
        <float[8, 8, 5] w1 = {}, float[6, 4, 3, 3, 3] w2 = {}>
        { [one] y = Conv(x, w1) [three] u = Conv<pads = [1, 1, 1, 1, 1, 1]>(z, w2) }"""
    )
    draw = np.random.default_rng(2)
    feeds = {"x": draw.random((1, 8, 30), np.float32), "z": draw.random((1, 4, 7, 7, 7), np.float32)}
    for method in ("svd", "tucker", "depthwise"):
        made = clone(given)
        records = run(made, method=method, energy=1.0, when="always")
        assert records["one"].changed
        assert records["three"].changed
        assert apart(given, made, feeds) < 1e-4
    assert run(clone(given), method="separable")["one"].what == "no separable form of this kernel"


def test_an_unknown_size_of_the_input_is_no_obstacle_but_for_pads_that_depend_on_it() -> None:
    given = models.model(
        """net (float[1, 16, H, W] x) => (float[1, A, B, C] y, float[1, D, E, F] z)
        <float[16, 16, 3, 3] w1 = {}, float[16, 16, 3, 3] w2 = {}>
        {
            [even] y = Conv<auto_pad = "SAME_UPPER">(x, w1)
            [odd] z = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w2)
        }"""
    )
    made = clone(given)
    records = run(made, method="separable", rank=16)
    assert records["even"].changed
    assert "macs" not in records["even"].numbers
    assert records["even"].numbers["macs_share"] == pytest.approx(2 / 3, abs=0.01)
    assert records["odd"].what == "its padding depends on the size of its input, which isn't known"


@pytest.mark.parametrize("dtype", ["float16", "double"])
def test_other_float_types_keep_their_type(dtype: str) -> None:
    kind = {"float16": np.float16, "double": np.float64}[dtype]
    array = np.random.default_rng(0).standard_normal((40, 30)).astype(kind)
    given = models.model(
        f"net ({dtype}[N, 40] x) => ({dtype}[N, 30] y) {{ [fc] y = MatMul(x, w) }}", {"w": array}
    )
    made = clone(given)
    run(made, energy=1.0, when="always")
    assert made.graph.initializers["w_1"].dtype == given.graph.initializers["w"].dtype
    feeds = {"x": np.random.default_rng(1).random((3, 40)).astype(kind)}
    assert apart(given, made, feeds) < (1e-2 if dtype == "float16" else 1e-9)


@pytest.mark.parametrize("name", light.NAMES)
def test_an_architecture_is_cut_within_its_budget(name: str) -> None:
    given = load(light.build(name, {"shufflenet": 1}.get(name, 8)))
    made = clone(given)
    records = run(made, params=0.5, macs=0.7, min_size=1024)
    changed = [each.numbers for each in records.values() if each.changed]
    assert changed
    assert all(each["parameters_after"] <= 0.5 * each["parameters"] for each in changed)
    assert signature(made) == signature(given)
    (value,) = models.run(made, {given.graph.inputs[0].name: np.ones((1, 3, 224, 224), np.float32)})
    assert np.isfinite(value).all()
