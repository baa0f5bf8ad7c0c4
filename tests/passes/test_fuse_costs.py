import models
import numpy as np
import pytest
from fused import TESTDATA, draw, fuse, image, operators
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress import Context
from onnxcompress.cost import Cost, total
from onnxcompress.errors import UsageError
from onnxcompress.model import clone, load
from onnxcompress.passes import Fuse
from onnxcompress.runtimes import OnnxRuntime


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


def test_by_time_layers_are_merged_where_that_is_measured_to_be_faster() -> None:
    body = "a = Conv<pads=[1,0,1,0]>(x, v) y = Conv<pads=[0,1,0,1]>(a, w)"
    engine = Context(runtime=OnnxRuntime(), threads=1)
    for channels, after in ((1, "Conv"), (64, "Conv Conv")):
        weights = (
            f"float[{channels}, {channels}, 3, 1] v = {{}}, float[{channels}, {channels}, 1, 3] w = {{}}"
        )
        made = image(body, weights, channels, size=8 if channels == 1 else 32)
        (record,) = Fuse(when="faster").call(made, engine).records
        assert operators(made) == after
        low, ratio, high = (float(record.numbers[name]) for name in ("ratio_low", "ratio", "ratio_high"))
        assert low <= ratio <= high
        assert record.changed == (high < 0.99) == (after == "Conv")
        assert record.what == (
            "merged with the layer behind it" if record.changed else "not faster as one layer here"
        )


def test_branches_are_timed_together_with_what_joins_them() -> None:
    made = image(
        "a = Conv<pads=[1,1,1,1]>(x, v) b = Conv(x, w) y = Sum(a, b, x)",
        "float[4, 4, 3, 3] v = {}, float[4, 4, 1, 1] w = {}",
    )
    feeds = draw(made)
    (expected,) = models.run(clone(made), feeds)
    (record,) = Fuse(when="faster").call(made, Context(runtime=OnnxRuntime(), threads=1)).records
    assert float(record.numbers["ratio_high"]) < 0.99
    assert operators(made) == "Conv"
    np.testing.assert_allclose(models.run(made, feeds)[0], expected, rtol=1e-4, atol=1e-5)


def test_what_can_not_be_timed_stays_and_without_an_engine_nothing_is() -> None:
    weights = "<float[3, 4, 1, 1] v = {}, float[5, 3, 3, 3] w = {}>"
    text = f"net (float[N, 4, H, W] x) => (float[N, 5, I, J] y) {weights} {{ a = Conv(x, v) y = Conv(a, w) }}"
    made = models.model(text)
    (record,) = Fuse(when="faster").call(made, Context(runtime=OnnxRuntime())).records
    assert record.what == "the sizes of x aren't known, so what reads it can't be timed"
    with pytest.raises(UsageError, match="fuse: when=faster needs a runtime to measure with, none was given"):
        Fuse(when="faster").call(made, Context())


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
