from collections.abc import Mapping
from pathlib import Path

import light
import models
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxcompress import compress
from onnxcompress.base import Context, Record
from onnxcompress.data import Data, load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.factors import METHODS
from onnxcompress.model import clone, load, signature
from onnxcompress.passes import Factorise, Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

NETWORK = """net (float[N, 6, 10, 9] x) => (float[N, 20] y)
<float[12, 6, 3, 3] w1 = {}, float[12] b1 = {}, float[16, 12, 5, 5] w2 = {}, float[256, 40] w3 = {},
 float[20, 40] w4 = {}, float[20] b4 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w1, b1)
    a = Relu(c)
    [second] d = Conv<pads = [2, 1, 1, 2]>(a, w2)
    e = Relu(d)
    f = Flatten(e)
    [third] g = MatMul(f, w3)
    h = Relu(g)
    [last] y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(h, w4, b4)
}"""


def images(
    count: int = 4, dims: tuple[int, ...] = (2, 6, 10, 9), seed: int = 8
) -> list[dict[str, np.ndarray]]:
    """Images most of which lies in few of their channels."""
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(0, 1, (dims[1], dims[1])) * 0.5 ** np.arange(dims[1])
    return [
        {"x": np.einsum("dc,nc...->nd...", mix, draw.normal(0.2, 1, dims)).astype(np.float32)}
        for _ in range(count)
    ]


def calibrated(made: ir.Model, feeds: list[dict[str, np.ndarray]]) -> Context:
    return Context(calibration=load_data(feeds, made), runtime=OnnxRuntime())


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Factorise(**{"min_size": 0, **options}).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def apart(before: ir.Model, after: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    """Return how far the outputs are apart, relative to the largest."""
    pairs = list(zip(models.run(before, feeds), models.run(after, feeds), strict=True))
    return max(float(np.abs(found - expected).max() / np.abs(expected).max()) for expected, found in pairs)


def operators(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A weight whose matrices, however it is cut, have few large singular values."""
    draw = np.random.default_rng(seed)
    sides = [draw.normal(0, 1, (size, 3)) * [1, 0.3, 0.1] for size in shape]
    letters = "abcdef"[: len(shape)]
    formula = ",".join(f"{letter}z" for letter in letters) + "->" + letters
    return np.einsum(formula, *sides).astype(np.float32)


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


def test_full_rank_on_data_computes_the_same() -> None:
    for method in ("svd", "separable", "tucker", "depthwise"):
        given = models.model(NETWORK)
        made = clone(given)
        run(made, calibrated(given, images()), method=method, energy=1.0, when="always")
        assert apart(given, made, images(1, seed=9)[0]) < 1e-4


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


@pytest.mark.parametrize("by_method", ["auto", "svd", "separable"])
def test_only_what_gets_cheaper_is_done(by_method: str) -> None:
    made = models.model(NETWORK)
    given = operators(made)
    records = run(made, method=by_method, energy=0.999)
    assert {records[name].what for name in ("first", "second")} == {"not cheaper"}
    assert operators(made) == given
    run(made, method=by_method, energy=0.999, when="always")
    assert len(list(made.graph)) > len(given)


def test_a_chain_with_fewer_parameters_but_more_multiplications_is_not_cheaper() -> None:
    text = """net (float[1, 4, 32, 32] x) => (float[1, 16, 1, 1] y)
        <float[16, 4, 32, 32] w = {}> { [conv] y = Conv(x, w) }"""
    given = models.model(text, {})
    records = run(clone(given), method="tucker", rank=16)
    assert records["conv"].numbers["macs_after"] < records["conv"].numbers["macs"]
    strided = models.model(
        """net (float[1, 64, 32, 32] x) => (float[1, 16, 4, 4] y)
        <float[16, 64, 2, 2] w = {}> { [conv] y = Conv<strides = [8, 8]>(x, w) }"""
    )
    records = run(strided, method="tucker", energy=0.5)
    assert records["conv"].what == "not cheaper"  # 1 x 1 at 32 x 32 places for a result of 4 x 4


def test_budgets_and_ranks_take_the_most_they_may() -> None:
    given = models.model(NETWORK)
    for options, kind in (({"params": 0.3}, "parameters"), ({"macs": 0.3}, "macs")):
        records = run(clone(given), **options)
        for name in ("first", "second", "third"):
            numbers = records[name].numbers
            assert 0.15 < numbers[f"{kind}_after"] / numbers[kind] <= 0.3
    assert run(clone(given), rank=3, method="svd")["third"].numbers["rank"] == "3"
    assert run(clone(given), rank=3, method="tucker")["second"].numbers["rank"] == "3x3"
    most = max(
        run(clone(given), params=0.3, method=each.name)["second"].numbers["energy"] for each in METHODS
    )
    assert run(clone(given), params=0.3)["second"].numbers["energy"] == most
    assert run(clone(given), params=0.0)["second"].what == "no chain within the budget"


def test_by_time_only_what_is_measured_to_be_faster_is_done() -> None:
    text = """net (float[N, 1024] x, float[N, 8, 4, 4] z) => (float[N, 1024] y, float[N, 8, 2, 2] u)
    <float[1024, 1024] w = {}, float[8, 8, 3, 3] k = {}>
    { [large] y = MatMul(x, w) [small] u = Conv(z, k) }"""
    engine = Context(runtime=OnnxRuntime(), threads=1)
    made = models.model(text)
    large = made.graph.initializers["w"]
    large.const_value = ir.tensor(smooth((1024, 1024)), name="w")
    records = run(made, engine, energy=0.9, when="faster")
    assert records["large"].what == "factorised by svd"
    assert records["large"].numbers["ratio_high"] < 1
    assert records["small"].what == "not faster here"
    assert records["small"].numbers["ratio_high"] >= 1
    assert operators(made) == ["MatMul", "MatMul", "Conv"]


def test_a_latency_budget_is_kept_by_the_upper_end_of_what_is_measured() -> None:
    made = models.model(
        """net (float[N, 1024] x) => (float[N, 1024] y) <float[1024, 1024] w = {}>
        { [fc] y = MatMul(x, w) }"""
    )
    numbers = run(made, Context(runtime=OnnxRuntime(), threads=1), latency=0.6)["fc"].numbers
    assert numbers["ratio_low"] <= numbers["ratio"] <= numbers["ratio_high"] <= 0.6
    assert numbers["parameters_after"] > 0.1 * numbers["parameters"]


def test_to_measure_an_engine_is_needed_and_time() -> None:
    made = models.model(NETWORK)
    for options in ({"when": "faster"}, {"latency": 0.5}):
        with pytest.raises(UsageError, match="factorise: measured latency needs a runtime to measure with"):
            run(made, **options)
    records = run(made, Context(runtime=OnnxRuntime()), when="faster", energy=0.5, seconds=0.0)
    assert not records["second"].changed
    assert records["second"].what == "not measured: the 0 s for measuring are over"


@pytest.mark.parametrize("method", ["svd", "separable", "tucker", "depthwise", "two-3x3"])
def test_calibration_data_lower_the_error_of_the_outputs(method: str) -> None:
    given = models.model(
        """net (float[N, 6, 10, 9] x) => (float[N, A, B, C] y) <float[24, 6, 5, 5] w = {}>
        { [conv] y = Conv<pads = [2, 2, 2, 2]>(x, w) }"""
    )
    plain, aware = clone(given), clone(given)
    options = {"method": method, "params": 0.3}
    blind, seen = run(plain, **options), run(aware, calibrated(given, images(16)), **options)
    assert seen["conv"].numbers["energy"] > blind["conv"].numbers["energy"]
    for feeds in images(2, seed=77):
        (expected,), (first,), (second,) = (models.run(each, feeds) for each in (given, plain, aware))
        assert models.snr(expected, second) > models.snr(expected, first) + 1


LAYERS = {  # the dims of x, a layer, and whether there is a place for a bias
    "Gemm": ("N, 40", "y = Gemm<alpha = 0.5, beta = 3.0>(x, w, b)", True),
    "MatMul": ("N, 40", "y = MatMul(x, w)", True),
    "MatMul of vectors, and Add": ("N, 6, 40", "m = MatMul(x, w) y = Add(b, m)", True),
    "MatMul of vectors": ("N, 6, 40", "y = MatMul(x, w)", False),
    "Conv": ("N, 40, 5, 5", "y = Conv(x, k, b)", True),
}


@pytest.mark.parametrize(("dims", "body", "takes_bias"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("widest", [0, 4608])
def test_the_bias_takes_up_what_inputs_with_a_large_mean_lose(
    dims: str, body: str, takes_bias: bool, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcompress.moments.WIDEST", widest)
    given = models.model(
        f"""net (float[{dims}] x) => (float[{", ".join("NABC"[: dims.count(",") + 1])}] y)
        <float[40, 30] w = {{}}, float[30, 40, 2, 2] k = {{}}, float[30] b = {{}}> {{ {body} }}"""
    )
    draw = np.random.default_rng(4)
    shape, axis = (8, *(int(dim) for dim in dims.split(",")[1:])), 1 if "Conv" in body else -1
    mean, direction = draw.normal(50, 20, 40), draw.standard_normal(40)

    def sample() -> np.ndarray:
        main = draw.standard_normal((*shape[:-1], 1) if axis == -1 else (8, 1, 1, 1))
        values = np.moveaxis(0.1 * draw.standard_normal(shape), axis, -1)
        return np.moveaxis(values + np.moveaxis(main, axis, -1) * direction + mean, -1, axis)

    feeds = [{"x": sample().astype(np.float32)} for _ in range(9)]
    plain, aware = clone(given), clone(given)
    run(plain, rank=1, method="svd", when="always")
    run(aware, calibrated(given, feeds[:8]), rank=1, method="svd", when="always")
    expected, blind, found = (models.run(each, feeds[8])[0] for each in (given, plain, aware))
    varying = np.linalg.norm(expected - expected.mean(axis=0))
    error = np.linalg.norm(found - expected)
    assert error < 0.1 * np.linalg.norm(blind - expected)
    assert (error < 0.4 * varying) == takes_bias


def test_the_data_lower_the_error_of_products_too_wide_for_their_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = models.model(
        """net (float[N, 60] x) => (float[N, 30] y) <float[60, 30] w = {}, float[30] b = {}>
        { [fc] y = Gemm(x, w, b) }"""
    )
    draw = np.random.default_rng(4)
    mix = draw.standard_normal((60, 60)) * 0.8 ** np.arange(60)[:, None]
    feeds = [{"x": (draw.standard_normal((50, 60)) @ mix).astype(np.float32)} for _ in range(9)]
    errors = {}
    for widest in (0, 100):
        monkeypatch.setattr("onnxcompress.moments.WIDEST", widest)
        made = clone(given)
        run(made, calibrated(given, feeds[:8]), rank=6)
        errors[widest] = models.snr(models.run(given, feeds[8])[0], models.run(made, feeds[8])[0])
    plain = clone(given)
    run(plain, rank=6)
    blind = models.snr(models.run(given, feeds[8])[0], models.run(plain, feeds[8])[0])
    assert errors[0] == pytest.approx(errors[100], abs=1e-3)
    assert errors[0] > blind + 3


def test_layers_are_calibrated_in_as_many_runs_as_memory_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    given = models.model(NETWORK)
    told: list[tuple[int, int | None]] = []
    context = Context(
        calibration=load_data(images(), given),
        runtime=OnnxRuntime(),
        progress=lambda done, total, _: told.append((done, total)),
    )
    once, thrice = clone(given), clone(given)
    run(once, context, params=0.4)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    monkeypatch.setattr("onnxcompress.moments.BUDGET", 1)
    run(thrice, context, params=0.4)
    assert len(told) == 5 * 4
    assert apart(once, thrice, images(1)[0]) < 1e-3


def test_bodies_of_if_are_factorised_without_data() -> None:
    given = models.model(
        """net (float[N, 32] x, bool b) => (float[N, 32] y)
        {
            y = If(b) <
                then_branch = yes () => (float[N, 32] t) <float[32, 32] w = {}> { [inner] t = MatMul(x, w) },
                else_branch = no () => (float[N, 32] e) { e = Relu(x) }
            >
        }"""
    )
    made = clone(given)
    feeds = {"x": np.random.default_rng(0).random((4, 32), np.float32)}
    context = calibrated(given, [{**feeds, "b": np.array(True)}])
    assert run(made, context, energy=1.0, when="always")["inner"].changed
    assert apart(given, made, {**feeds, "b": np.array(True)}) < 1e-4


@pytest.mark.parametrize("data", [False, True])
def test_a_second_run_is_idle(data: bool) -> None:
    given = models.model(NETWORK)
    context = calibrated(given, images()) if data else None
    assert any(each.changed for each in run(given, context, params=0.5).values())
    again = run(given, context, params=0.5)
    assert not any(each.changed for each in again.values())
    assert again["second"].what == again["second_1"].what == "a factor already"


def test_what_is_not_factorised_says_why() -> None:
    made = models.model(
        """net (float[N, 32] x, float[32, N] t, int64[N] i, float[N, 8, 9, 9] z, float[N, 3, 32] s)
        => (float[N, 32] a, float[N, 32] b, float[N, 32] c, float[N, 32] d, float[A, B] e, float[N, 3, 32] f,
            float[N, 8, A, B] g, float[N, 32] h, float[N, 8, C, D] k, float[N, 32] l)
        <float[32, 32] tied = {}, float[32, 32] table = {}, float[32, 32] turned = {},
         float[32, 32] left = {},
         float[3, 32, 32] stack = {}, float[8, 2, 3, 3] grouped = {}, float[8, 8, 3, 3] up = {},
         float[32, 32] out = {}, float[32, 32] w = {}>
        {
            [one] a = MatMul(x, tied)
            [two] b = MatMul(x, tied)
            [embed] c = Gather(table, i)
            [transposed] d = Gemm<transA = 1>(t, turned)
            [leading] e = MatMul(left, t)
            [stacked] f = MatMul(s, stack)
            [groups] g = Conv<group = 4>(z, grouped)
            [excluded] h = MatMul(x, out)
            [upward] k = ConvTranspose(z, up)
            [zero] l = MatMul(x, w)
        }"""
    )
    zero = made.graph.initializers["w"]
    zero.const_value = ir.tensor(np.zeros((32, 32), np.float32), name="w")
    before = operators(made)
    records = run(made, exclude="excl.*", energy=0.1)
    assert {name: each.what for name, each in records.items()} == {
        "one": "its weight is read more than once",
        "two": "its weight is read more than once",
        "embed": "Gather is not factorised",
        "transposed": "its input is transposed",
        "leading": "MatMul with its weight in place 0 is no plain convolution or product",
        "stacked": "its weight has 3 axes, a matrix has 2",
        "groups": "a grouped convolution",
        "excluded": "excluded",
        "upward": "ConvTranspose is not factorised",
        "zero": "all its weights are zero",
    }
    assert operators(made) == before


def test_small_and_quantized_layers_stay() -> None:
    made = models.model(NETWORK)
    assert run(made, min_size=1000, energy=0.5)["last"].what == "too small"
    made = models.model(NETWORK)
    Quant(activations="none", min_size=0).call(made, Context())
    assert {each.what for each in run(made, energy=0.5).values()} == {"already quantized"}


def test_layers_with_a_bias_or_a_second_reader_between_are_no_factors() -> None:
    made = models.model(
        """net (float[N, 40] x) => (float[N, 40] y, float[N, 40] b, float[N, 40] z)
        <float[40, 40] w1 = {}, float[40] b1 = {}, float[40, 40] w2 = {},
         float[40, 40] w3 = {}, float[40, 40] w4 = {}>
        {
            [biased] a = Gemm(x, w1, b1)
            [after] b = MatMul(a, w2)
            [before] c = MatMul(b, w3)
            [end] y = MatMul(c, w4)
            z = Relu(a)
        }"""
    )
    records = run(made, energy=0.1)
    assert [records[name].changed for name in ("biased", "after", "before", "end")] == [
        True,
        True,
        False,
        False,
    ]
    assert records["before"].what == records["end"].what == "a factor already"


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


def test_calibration_without_data_or_without_end_is_refused() -> None:
    made = models.model(NETWORK)
    empty = Data("nothing", lambda: iter(()), 0)
    with pytest.raises(UsageError, match="calibration: there are no data"):
        run(made, Context(calibration=empty, runtime=OnnxRuntime()))
    endless = [{"x": np.full((1, 6, 10, 9), np.inf, np.float32)}]
    with pytest.raises(CompressError, match="calibration: x holds NaN or infinity"):
        run(made, calibrated(made, endless))


def test_inputs_that_are_always_zero_count_as_white() -> None:
    given = models.model(NETWORK)
    made = clone(given)
    dark = [{"x": np.zeros((1, 6, 10, 9), np.float32)}]
    records = run(made, calibrated(given, dark), energy=0.9, when="always")
    assert 0.9 <= records["first"].numbers["energy"] < 1


def test_the_loss_of_a_run_is_small_on_a_trained_model_with_data() -> None:
    folder = Path(__file__).parent.parent.parent / "testdata"
    report = compress(
        folder / "lenet5_digits.onnx",
        "factorise(energy=0.97)",
        data=folder / "digits_calib.npz",
        evaluation=folder / "digits_test.npz",
        measure_latency=False,
    ).report
    assert report.evaluation is not None
    assert report.evaluation.top1 is not None
    assert report.after is not None
    before, after = report.evaluation.top1
    assert before - after < 0.02
    assert report.after.parameters < 0.5 * report.before.parameters


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
    assert run(made)["conv"].what == "its attributes are those of a function's call"
