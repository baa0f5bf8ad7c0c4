from pathlib import Path

import light
import masking
import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Result
from onnxcompress.channels.blocking import BORDER, LAST, PARTLY
from onnxcompress.model import clone, load, signature, to_proto, weight_bytes
from onnxcompress.passes import PruneChannels, RemoveMasked

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))


def removed(made: ir.Model) -> Result:
    """Remove what is blocked, and see that nothing else changed and that a second run is idle."""
    after = clone(made)
    result = RemoveMasked().call(after, Context())
    given = masking.feeds(made)
    before, now = (masking.outputs(to_proto(each), given) for each in (made, after))
    for one, other in zip(before, now, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-5 * np.abs(one).max()
    assert signature(after) == signature(made)
    assert not RemoveMasked().call(clone(after), Context()).modified
    return result


def shape(made: ir.Model, name: str) -> list[int]:
    tensor = made.graph.initializers[name].const_value
    assert tensor is not None
    return list(tensor.shape.numpy())


@pytest.mark.parametrize("name", [*light.NAMES, *MODELS])
def test_removes_what_masks_alone_block(name: str) -> None:
    if name in light.NAMES:
        made = load(light.build(name, 1 if name == "shufflenet" else 8))
    else:
        made = load(TESTDATA / f"{name}.onnx")
    pruned, masked = clone(made), clone(made)
    options = {"ratio": 0.25, "score": "random"}
    PruneChannels(**options).call(pruned, Context())
    PruneChannels(**options, apply=False).call(masked, Context())
    assert masked.graph.num_nodes() > pruned.graph.num_nodes() or name == "branch_digits"
    result = removed(masked)
    if name == "masked_digits":  # which masks more than that
        assert weight_bytes(result.model) < weight_bytes(pruned)
    else:
        assert weight_bytes(result.model) == weight_bytes(pruned)
        assert result.model.graph.num_nodes() == pruned.graph.num_nodes()


def test_removes_what_a_trained_model_masks() -> None:
    made = load(TESTDATA / "masked_digits.onnx")
    result = removed(made)
    counts = {each.layer: each.numbers for each in result.records if each.what == "blocked channels removed"}
    found = {
        name: (each["outputs_before"], each["outputs"]) for name, each in counts.items() if "outputs" in each
    }
    assert found == {
        "/conv1/Conv": (20, 14),
        "/conv2/Conv": (50, 30),
        "/fc1/Gemm": (300, 150),
        "/fc2/Gemm": (100, 60),
    }
    assert "Mul" not in {node.op_type for node in result.model.graph}


GEMMS = """net (float[N,6] x) => (float[N,4] y)
<float[6,5] a = {}, float[5] d = {}, float[5,4] b = {}, float[5] m>
{ [a] p = Gemm(x, a, d) %s [b] y = MatMul(q, b) }"""


@pytest.mark.parametrize("step", ["[m] q = Mul(p, m)", "[m] o = Mul(p, m) [s] q = Sigmoid(o)"])
def test_what_a_blocked_channel_carries_goes_into_the_bias_of_the_next_layer(step: str) -> None:
    made = models.model(GEMMS % step, {"m": np.float32([1, 0, 1, 0, 1])})
    result = removed(made)
    assert shape(result.model, "a") == [6, 3]
    assert shape(result.model, "b") == [3, 4]
    assert ("Add" in {node.op_type for node in result.model.graph}) == ("Sigmoid" in step)


CONVS = """net (float[N,3,6,6] x) => (float[N,4,%d,%d] y)
<float[6,3,3,3] a, float[6] d, float[6] s, float[6] t = {}, float[6] u = {}, float[6] v, float[4,6,3,3] b>
{ [a] p = Conv<pads=[1,1,1,1]>(x, a, d) [n] q = BatchNormalization(p, s, t, u, v) [r] r = Relu(q)
  [b] y = Conv<pads=[%d,%d,%d,%d]>(r, b) }"""


def convs(pad: int, **zeros: list[int]) -> ir.Model:
    draw = np.random.default_rng(3)
    arrays = {
        "a": draw.standard_normal((6, 3, 3, 3)),
        "b": draw.standard_normal((4, 6, 3, 3)),
        "d": draw.uniform(0.5, 1, 6),
        "s": draw.uniform(0.5, 1, 6),
        "v": draw.uniform(0.5, 1, 6),
    }
    for name, channels in zeros.items():
        if name == "b":
            arrays[name][:, channels] = 0
        else:
            arrays[name][channels] = 0
    size = 4 + 2 * pad
    return models.model(
        CONVS % (size, size, *[pad] * 4), {name: each.astype(np.float32) for name, each in arrays.items()}
    )


@pytest.mark.parametrize("where", ["a", "s"])
def test_filters_and_scales_of_zero_leave_a_constant_that_is_folded(where: str) -> None:
    result = removed(convs(0, **{where: [1, 4]}))
    assert shape(result.model, "a") == [4, 3, 3, 3]
    assert shape(result.model, "b") == [4, 4, 3, 3]


def test_channels_that_no_layer_reads_go() -> None:
    result = removed(convs(1, b=[0, 2]))
    assert shape(result.model, "a") == [4, 3, 3, 3]


def test_a_constant_beside_a_padded_border_stays_and_is_counted() -> None:
    made = convs(1, s=[1, 4])
    shift = made.graph.initializers["t"]
    shift.const_value = ir.tensor(np.float32([1, 1, 1, 1, -1, 1]), name="t")  # the ReLU makes a zero of one
    result = removed(made)
    assert shape(result.model, "a") == [5, 3, 3, 3]
    assert [(each.layer, each.what, each.numbers) for each in result.records if not each.changed] == [
        ("a", BORDER, {"channels": 1})
    ]


@pytest.mark.parametrize("other", [0.0, 0.7])
def test_what_a_constant_condition_never_takes_is_blocked(other: float) -> None:
    condition = np.array([True, False, True, False, True])
    made = models.model(
        GEMMS.replace("float[5] m", "bool[5] m, float z") % "[m] q = Where(m, p, z)",
        {"m": condition, "z": np.float32(other)},
    )
    result = removed(made)
    assert shape(result.model, "b") == [3, 4]
    assert "Where" not in {node.op_type for node in result.model.graph}


def test_weights_of_16_bits_are_followed_too() -> None:
    draw = np.random.default_rng(5)
    made = models.model(
        """net (float[N,6] x) => (float[N,4] y) <float16[6,5] a, float16[5,4] b, float16[5] m>
        { h = Cast<to=10>(x) [a] p = MatMul(h, a) [m] q = Mul(p, m) [b] r = MatMul(q, b)
          y = Cast<to=1>(r) }""",
        {
            "a": draw.standard_normal((6, 5)).astype(np.float16),
            "b": draw.standard_normal((5, 4)).astype(np.float16),
            "m": np.float16([1, 0, 1, 0, 1]),
        },
    )
    assert shape(removed(made).model, "b") == [3, 4]


@pytest.mark.parametrize("step", ["q = ThresholdedRelu<alpha=0.1>(p)", "i = Cast<to=6>(p) q = Cast<to=1>(i)"])
def test_what_compares_or_rounds_what_varies_makes_no_constant_of_it(step: str) -> None:
    bias = np.linspace(-2, 2, 5, dtype=np.float32)
    made = models.model(GEMMS.replace("d = {}", "d") % step, {"m": np.ones(5, np.float32), "d": bias})
    assert not removed(made).modified


def test_a_layer_whose_channels_are_all_blocked_keeps_one() -> None:
    made = models.model(GEMMS % "[m] q = Mul(p, m)", {"m": np.zeros(5, np.float32)})
    result = removed(made)
    assert shape(result.model, "a") == [6, 1]
    assert [each.what for each in result.records if not each.changed] == [LAST]


def test_a_channel_that_is_added_to_one_that_is_not_blocked_stays() -> None:
    made = models.model(
        """net (float[N,6] x) => (float[N,4] y)
        <float[6,5] a = {}, float[5,5] c = {}, float[5,4] b = {}, float[5] m, float[5,4] e = {}>
        { [a] p = MatMul(x, a) [m] q = Mul(p, m) [c] r = MatMul(q, c) [s] s = Add(q, r)
          [b] t = MatMul(s, b) [e] u = MatMul(q, e) [o] y = Add(t, u) }""",
        {"m": np.float32([1, 0, 1, 0, 1])},
    )
    result = removed(made)
    assert [(each.what, each.numbers) for each in result.records] == [(PARTLY, {"channels": 2})]


def test_leaves_a_model_without_masks_alone() -> None:
    result = removed(load(TESTDATA / "lenet5_digits.onnx"))
    assert [(each.layer, each.what) for each in result.records] == [("model", "nothing is blocked")]


def test_leaves_excluded_layers_alone() -> None:
    made = convs(0, a=[1, 4])
    assert not RemoveMasked(exclude="b").call(made, Context()).modified


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_hidden_units_that_nothing_blocks_stay(op: str, gates: int) -> None:
    made = models.model(
        f"""agraph (float[4, 1, 5] x) => (float[1, 1, 6] h) <float[1, {6 * gates}, 5] w = {{}},
        float[1, {6 * gates}, 6] r = {{}}> {{ q, h = {op}<hidden_size=6>(x, w, r) }}"""
    )
    result = removed(made)
    assert not result.modified
    assert [record.what for record in result.records] == ["nothing is blocked"]


def test_channels_joined_along_several_axes_stay() -> None:
    made = models.model(
        """agraph (float[1, 4, 3, 2] x, float[1, 6, 4] z) => (float[1, 12, 4] y)
        <float[8, 4, 1, 1] w = {}, int64[3] s = {1, 6, 4}> {
            a = Conv(x, w)
            b = MaxPool<kernel_shape = [1, 2]>(a)
            c = Transpose<perm = [0, 2, 3, 1]>(b)
            d = Reshape(c, s)
            e = Relu(z)
            y = Concat<axis = 1>(d, e)
        }"""
    )
    assert not removed(made).modified
