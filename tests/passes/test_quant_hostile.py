"""Networks that make int8 collapse elsewhere: each ends in a good model, or in a record that says why not."""

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.model import clone, to_proto
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime
from onnxcompress.verify import compare

NETWORK = """net (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y)
<float[16, 3, 3, 3] w1 = {}, float[16] b1 = {}, float[16, 16, 3, 3] w2 = {}, float[16] b2 = {},
 float[5, 16, 1, 1] w3 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    ACTIVATION
    [second] e = Conv<pads = [1, 1, 1, 1]>(d, w2, b2)
    f = Relu(e)
    [last] y = Conv(f, w3)
}"""


def network(activation: str = "d = Relu(c)") -> str:
    return NETWORK.replace("ACTIVATION", activation)


def feeds(count: int = 8, dims: tuple[int, ...] = (1, 3, 8, 8)) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(4)
    return [{"x": draw.standard_normal(dims).astype(np.float32)} for _ in range(count)]


def change(made: ir.Model, name: str, factors: object, place: object = ...) -> None:
    """Multiply the constant `name` at `place` by `factors`."""
    value = made.graph.initializers[name]
    content = value.const_value.numpy().copy()  # type: ignore[union-attr]
    content[place] *= factors
    value.const_value = ir.tensor(content, name=name)


def quantized(
    made: ir.Model, data: list[dict[str, np.ndarray]] | None = None, **options: object
) -> tuple[ir.Model, dict[str, Record]]:
    """Return a copy of `made` in int8, which is a valid model, and the records, the last of each layer."""
    after = clone(made)
    context = Context(calibration=load_data(data or feeds(), made), runtime=OnnxRuntime())
    result = Quant(**{"gate": "off", "reduce_range": "off", **options}).call(after, context)  # type: ignore[arg-type]
    onnx.checker.check_model(to_proto(after), full_check=True)
    return after, {record.layer: record for record in result.records}


def decibels(made: ir.Model, after: ir.Model, data: list[dict[str, np.ndarray]] | None = None) -> float:
    """Return the signal-to-noise ratio of `after` on other samples than those calibrated on."""
    judge = load_data(data or feeds(12)[8:], made)
    return compare(*(OnnxRuntime().prepare(each) for each in (made, after)), judge).snr


def test_a_channel_a_thousand_times_larger_is_equalized() -> None:
    made = models.model(network())
    for name in ("w1", "b1"):
        change(made, name, 1000, 0)
    change(made, "w2", 1 / 1000, (slice(None), 0))
    after, _ = quantized(made)
    plain, _ = quantized(made, equalize=False)
    assert decibels(made, after) > 25
    assert decibels(made, plain) < 15


def test_a_channel_a_thousand_times_larger_behind_a_sigmoid_is_helped_by_excluding_what_is_around() -> None:
    made = models.model(network("s = Sigmoid(c) d = Mul(s, c)"))
    for name in ("w1", "b1"):
        change(made, name, 1000, 0)
    change(made, "w2", 1 / 1000, (slice(None), 0))
    whole, _ = quantized(made)
    after, records = quantized(made, exclude="first|second")
    assert records["first"].what == records["second"].what == "excluded"
    assert decibels(made, after) > decibels(made, whole) + 10
    assert decibels(made, after) > 30


@pytest.mark.parametrize(
    "activation",
    [
        "s = Sigmoid(c) d = Mul(s, c)",
        "d = HardSwish(c)",
        "h = HardSigmoid<alpha = 0.1666667, beta = 0.5>(c) d = Mul(h, c)",
        "t = Constant<value = float {3}>() u = Add(c, t) l = Constant<value = float {0}>()"
        " m = Constant<value = float {6}>() k = Clip(u, l, m) o = Mul(c, k) d = Div(o, m)",
        "d = LeakyRelu(c)",
        "d = Elu(c)",
        "d = Tanh(c)",
    ],
)
def test_activations_without_integer_kernels_stay_close(activation: str) -> None:
    made = models.model('<ir_version: 8, opset_import: ["": 17]>' + network(activation))
    after, records = quantized(made)
    assert {records[name].what for name in ("first", "second", "last")} == {"computes with int8"}
    assert decibels(made, after) > 28
    if activation in ("d = HardSwish(c)", "d = Elu(c)", "d = Tanh(c)"):
        operator = activation.removeprefix("d = ").removesuffix("(c)")
        assert any(record.what == f"no 8-bit {operator}" for record in records.values())


def test_dead_channels_and_constant_activations_do_no_harm() -> None:
    made = models.model(network())
    change(made, "w1", 0, slice(4))
    change(made, "b1", 0, slice(2))
    change(made, "w2", 0, slice(6, 8))
    after, _ = quantized(made)
    assert decibels(made, after) > 30
    change(made, "w1", 0)
    after, _ = quantized(made)
    assert decibels(made, after) > 30


def test_an_input_that_is_all_zero_ends_in_a_model_that_runs() -> None:
    made = models.model(network())
    after, _ = quantized(made, [{"x": np.zeros((1, 3, 8, 8), np.float32)}])
    found = OnnxRuntime().prepare(after).run(feeds(1)[0])["y"]
    assert np.isfinite(found).all()


def test_a_model_that_is_quantized_already_is_left_and_that_is_said() -> None:
    made, _ = quantized(models.model(network()))
    before = to_proto(made).SerializeToString()
    again, records = quantized(made)
    assert to_proto(again).SerializeToString() == before
    assert not any(record.changed for record in records.values())


@pytest.mark.parametrize("opset", [9, 11])
def test_older_opsets_are_raised(opset: int) -> None:
    made = models.model(f'<ir_version: 4, opset_import: ["": {opset}]>' + network())
    after, records = quantized(made)
    assert after.graph.opset_imports[""] == 13
    assert records["first"].what == "computes with int8"
    assert decibels(made, after) > 30


@pytest.mark.parametrize("dims", ["N, 3, 8, 8", "N, 3, H, W", "1, 3, 8, 8"])
def test_open_sizes_are_quantized_and_stay_open(dims: str) -> None:
    made = models.model(network().replace("N, 3, 8, 8", dims).replace("N, 5, 8, 8", dims.replace("3", "5")))
    after, _ = quantized(made)
    assert decibels(made, after) > 30
    if "H" in dims:
        other = feeds(2, (3, 3, 12, 20))
        assert decibels(made, after, other) > 25


def test_one_sample_is_enough_to_calibrate_on() -> None:
    made = models.model(network())
    after, _ = quantized(made, feeds(1))
    assert decibels(made, after) > 25


def test_layers_in_branches_are_stored_and_say_why() -> None:
    made = models.model("""net (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)
<float[3, 3, 3, 3] w1 = {}, float[16, 3, 3, 3] w2 = {}, float[3, 16, 1, 1] w3 = {}>
{
    [first] c = Conv<pads = [1, 1, 1, 1]>(x, w1)
    s = ReduceSum<keepdims = 0>(c)
    zero = Constant<value = float {0}>()
    q = Greater(s, zero)
    y = If (q) <
        then_branch = left () => (float[N, 3, 8, 8] a) {
            [inner] b = Conv<pads = [1, 1, 1, 1]>(c, w2)
            [outer] a = Conv(b, w3)
        },
        else_branch = right () => (float[N, 3, 8, 8] d) { d = Relu(c) }>
}""")
    after, records = quantized(made, min_size=1)
    assert records["first"].what == "computes with int8"
    assert "inside a subgraph" in records["inner"].what
    assert decibels(made, after) > 25
