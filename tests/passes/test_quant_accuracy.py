import models
import numpy as np
import onnx_ir as ir
import pytest
from quantized import NETWORK, calibrated, run, samples

from onnxcompress.model import clone
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

DEPTHWISE = """net (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y)
<float[16, 3, 1, 1] w1 = {}, float[16] b1 = {}, float[16, 1, 3, 3] w2 = {}, float[16] b2 = {},
 float[6, 16, 1, 1] w3 = {}, float low = {0}, float high = {6}>
{
    [first] c = Conv(x, w1, b1)
    a = Clip(c, low, high)
    [depthwise] d = Conv<group = 16, pads = [1, 1, 1, 1]>(a, w2, b2)
    e = Clip(d, low, high)
    [last] y = Conv(e, w3)
}"""


def uneven() -> ir.Model:
    """A depthwise network whose first layer makes channels of very different sizes."""
    made = models.model(DEPTHWISE)
    sizes = np.geomspace(0.02, 4, 16).astype(np.float32)
    for name, shape in (("w1", (16, 1, 1, 1)), ("b1", (16,))):
        value = made.graph.initializers[name]
        content = np.abs(value.const_value.numpy()) * sizes.reshape(shape)  # type: ignore[union-attr]
        value.const_value = ir.tensor(content, name=name)
    for name, factor in (("w2", 1 / sizes), ("w3", np.ones(16, np.float32))):
        value = made.graph.initializers[name]
        along = factor.reshape((16, 1, 1, 1) if name == "w2" else (1, 16, 1, 1))
        value.const_value = ir.tensor(value.const_value.numpy() * along, name=name)  # type: ignore[union-attr]
    return made


def noise(made: ir.Model, feeds: list[dict[str, np.ndarray]], **options: object) -> np.ndarray:
    """What static quantization with `options` adds to the outputs of `made`, for all of `feeds`."""
    after = clone(made)
    run(after, calibrated(made, feeds), **options)
    before, changed = (OnnxRuntime().prepare(each) for each in (made, after))
    return np.concatenate([changed.run(feed)["y"] - before.run(feed)["y"] for feed in feeds])


def test_channels_that_depthwise_convolutions_read_have_steps_of_their_own() -> None:
    draw = np.random.default_rng(1)
    feeds = [{"x": draw.random((1, 3, 8, 8), np.float32)} for _ in range(8)]
    own, common = (noise(uneven(), feeds, per_channel=each, correct=False) for each in (True, False))
    assert np.sum(own**2) < 0.1 * np.sum(common**2)
    for layer in ("first", "depthwise"):  # those that compute with floats take the steps up too
        floats = noise(uneven(), feeds, correct=False, weights_only=layer)
        assert np.sum(floats**2) < 2 * np.sum(own**2)


@pytest.mark.parametrize("options", [{}, {"weights_only": ".*", "min_size": 0}])
@pytest.mark.parametrize("text", [NETWORK, DEPTHWISE])
def test_biases_give_outputs_their_means_back(text: str, options: dict[str, object]) -> None:
    made = models.model(text)
    dims = (2, 4, 8, 8) if text is NETWORK else (2, 3, 8, 8)
    draw = np.random.default_rng(2)
    feeds = [{"x": draw.random(dims, np.float32)} for _ in range(8)]
    means = []
    for correct in (False, True):
        added = noise(made, feeds, correct=correct, equalize=False, **options)
        means.append(np.abs(np.moveaxis(added, 1, 0).reshape(added.shape[1], -1).mean(axis=1)).mean())
    assert means[1] < 0.7 * means[0]


def test_the_engine_leaves_weights_of_float_layers_between_integers_as_they_are() -> None:
    made, draw = uneven(), np.random.default_rng(4)
    feeds = [{"x": draw.random((1, 3, 8, 8), np.float32)} for _ in range(4)]
    run(made, calibrated(made, feeds), weights_only="depthwise")
    plain = OnnxRuntime(optimise=False).prepare(made).run(feeds[0])["y"]
    assert models.snr(plain, OnnxRuntime().prepare(made).run(feeds[0])["y"]) > 40


BETWEEN = {  # what the engine merges with a float layer, or moves conversions across
    "normalised": """[middle] c = Conv<pads = [1, 1, 1, 1]>(a, w2, b2) i = Identity(b2)
        e = BatchNormalization(c, ones, i, b2, ones)""",
    "pooled": """[middle] c = Conv<pads = [1, 1, 1, 1]>(a, w2, b2) r = Relu(c)
        e = MaxPool<kernel_shape = [2, 2]>(r)""",
    "turned": """t = Transpose<perm = [0, 1, 3, 2]>(a) [middle] c = Conv<pads = [1, 1, 1, 1]>(t, w2, b2)
        e = Transpose<perm = [0, 1, 3, 2]>(c)""",
    "product": """t = Transpose<perm = [0, 2, 3, 1]>(a) [middle] c = MatMul(t, w4) d = Add(c, b2)
        e = Transpose<perm = [0, 3, 1, 2]>(d)""",
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_the_engine_leaves_such_weights_alone_whatever_lies_about_the_layer(between: str) -> None:
    made = models.model(
        """net (float[1, 3, 8, 8] x) => (float[1, 5, P, Q] y)
        <float[16, 3, 3, 3] w1 = {}, float[16] b1 = {}, float[16, 16, 3, 3] w2 = {}, float[16, 16] w4 = {},
         float[16] b2 = {}, float[5, 16, 1, 1] w3 = {}>
        { [first] f = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) a = Relu(f)
          BETWEEN [last] y = Conv(e, w3) }""".replace("BETWEEN", between),
        {"ones": np.ones(16, np.float32)},
    )
    for name, place, number in (("b1", 0, -99), ("w2", (0, 0), 99), ("w4", (0, 0), 99)):
        value = made.graph.initializers[name]  # the first channel of a is dead: what multiplies it is idle
        content = value.const_value.numpy().copy()  # type: ignore[union-attr]
        content[place] = number
        value.const_value = ir.tensor(content, name=name)
    feeds = samples(4, (1, 3, 8, 8))
    records = run(made, calibrated(made, feeds), weights_only="middle", equalize=False, min_size=0)
    assert (records["middle"].what, records["last"].what) == (
        "stored as int8, its weight only",
        "computes with int8",
    )
    plain = OnnxRuntime(optimise=False).prepare(made).run(feeds[0])["y"]
    assert models.snr(plain, OnnxRuntime().prepare(made).run(feeds[0])["y"]) > 40


def test_ranges_of_channels_are_equalized_first_and_that_is_recorded() -> None:
    made = models.model(NETWORK)
    value = made.graph.initializers["w1"]
    sizes = np.geomspace(0.05, 20, 16).reshape(-1, 1, 1, 1).astype(np.float32)
    value.const_value = ir.tensor(value.const_value.numpy() * sizes, name="w1")  # type: ignore[union-attr]
    result = Quant(gate="off").call(clone(made), calibrated(made))
    assert [record.layer for record in result.records if record.what == "ranges equalized"] == [
        "first",
        "second",
    ]
    even, plain = (noise(made, samples(), equalize=each) for each in (True, False))
    assert np.sum(even**2) < np.sum(plain**2)


def test_weights_may_be_clipped_for_less_error() -> None:
    made = models.model(
        "net (float[N, 4000] x) => (float[N, 3] y) <float[4000, 3] w = {}> { [one] y = MatMul(x, w) }"
    )
    draw = np.random.default_rng(3)
    value = made.graph.initializers["w"]
    value.const_value = ir.tensor(draw.standard_t(3, (4000, 3)).astype(np.float32), name="w")
    feeds = [{"x": draw.standard_normal((20, 4000)).astype(np.float32)}]
    clipped, whole = (noise(made, feeds, weights=each, activations="none") for each in ("mse", "min-max"))
    assert np.sum(clipped**2) < 0.95 * np.sum(whole**2)
