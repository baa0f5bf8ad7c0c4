from pathlib import Path

import light
import masking
import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Result
from onnxcompress.channels import find
from onnxcompress.channels.counts import counts
from onnxcompress.data import load_data
from onnxcompress.errors import UsageError
from onnxcompress.model import clone, load, to_proto, weight_bytes
from onnxcompress.passes import PruneChannels
from onnxcompress.registry import runtimes
from onnxcompress.verify import compare

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))
WIDTH = {"shufflenet": 1}  # groups of 34 channels can't be narrowed by four


def share(before: ir.Model, after: ir.Model) -> float:
    return weight_bytes(after) / weight_bytes(before)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", light.NAMES)
def test_a_pruned_architecture_computes_what_masks_would(name: str, score: str) -> None:
    made = load(light.build(name, WIDTH.get(name, 4)))
    after, records = masking.pruned_and_masked(made, {"score": score})
    assert share(made, after) <= 0.65
    reasons = {record.what for record in records if not record.changed}
    assert all(reasons)
    if name in ("bvlc_alexnet", "inception_v1", "zfnet512"):
        assert any("(LRN)" in reason for reason in reasons)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_classifier_computes_what_masks_would(name: str, score: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    after, records = masking.pruned_and_masked(made, {"score": score})
    if name == "branch_digits":
        assert "is read inside a body" in " ".join(record.what for record in records)
    else:
        assert share(made, after) < 0.7


CHAIN = """net (float[N,3,6,6] x) => (float[N,4,6,6] y)
<float[16,3,3,3] a = {}, float[16] d = {}, float[8,16,3,3] b = {}, float[4,8,1,1] c = {}>
{ [a] p = Conv<pads=[1,1,1,1]>(x, a, d) [r] q = Relu(p) [b] s = Conv<pads=[1,1,1,1]>(q, b)
  [c] y = Conv(s, c) }"""


def shapes(result: Result) -> dict[str, list[int]]:
    return {
        name: list(value.shape.numpy())
        for name, value in result.model.graph.initializers.items()
        if value.shape is not None
    }


def test_removes_the_channels_with_the_smallest_weights() -> None:
    made = models.model(CHAIN)
    weight = made.graph.initializers["a"].const_value
    assert weight is not None
    result = PruneChannels(ratio=0.25).call(made, Context())
    assert shapes(result) == {"a": [12, 3, 3, 3], "d": [12], "b": [6, 12, 3, 3], "c": [4, 6, 1, 1]}
    norms = np.sqrt((weight.numpy() ** 2).sum(axis=(1, 2, 3)))
    (record,) = [each for each in result.records if each.layer == "a"]
    assert masking.numbers(str(record.numbers["outputs_removed"])) == sorted(np.argsort(norms)[:4].tolist())


def test_never_removes_all_channels_of_a_layer() -> None:
    result = PruneChannels(ratio=1.0, multiple_of=1).call(models.model(CHAIN), Context())
    assert shapes(result) == {"a": [1, 3, 3, 3], "d": [1], "b": [1, 1, 3, 3], "c": [4, 1, 1, 1]}


def test_no_layer_loses_all_where_another_is_wider_behind_a_pad() -> None:
    draw = np.random.default_rng(5)
    made = models.model(
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y)
        <float[32,3,1,1] b = {}, float[4,32,1,1] c = {}, int64[8] pads = {0, 8, 0, 0, 0, 8, 0, 0}>
        { [a] p = Conv(x, a) q = Pad(p, pads) [b] r = Conv(x, b) s = Add(q, r) [c] y = Conv(s, c) }""",
        {"a": 0.01 * draw.standard_normal((16, 3, 1, 1)).astype(np.float32)},
    )
    for ratio, kept in ((0.25, [12, 24]), (0.5, [8, 16]), (0.75, [4, 8]), (1.0, [4, 4])):
        after, _ = masking.pruned_and_masked(clone(made), {"ratio": ratio})
        assert [after.graph.initializers[name].shape[0] for name in "ab"] == kept  # type: ignore[index]
    after, _ = masking.pruned_and_masked(made, {"ratio": 1.0, "multiple_of": 1})
    assert [after.graph.initializers[name].shape[0] for name in "ab"] == [1, 1]  # type: ignore[index]


def test_leaves_excluded_layers_and_what_they_read_alone_and_says_so() -> None:
    result = PruneChannels(exclude="b").call(models.model(CHAIN), Context())
    assert shapes(result) == {"a": [16, 3, 3, 3], "d": [16], "b": [8, 16, 3, 3], "c": [4, 8, 1, 1]}
    assert [(each.layer, each.what) for each in result.records] == [
        ("b", "excluded"),
        ("a", "excluded: b (Conv)"),
        ("c", "graph output y"),
    ]


def test_masks_alone_compute_the_same_as_the_removal() -> None:
    made = load(TESTDATA / "residual_digits.onnx")
    given = masking.feeds(made)
    removed, masked = clone(made), clone(made)
    PruneChannels().call(removed, Context())
    result = PruneChannels(apply=False).call(masked, Context())
    assert weight_bytes(masked) >= weight_bytes(made)
    assert result.modified
    (one,), (other,) = (masking.outputs(to_proto(each), given) for each in (removed, masked))
    assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


@pytest.mark.parametrize("score", ["activation", "energy", "residual"])
def test_scores_of_activations_need_calibration_data(score: str) -> None:
    with pytest.raises(UsageError, match=f"score={score} needs calibration data"):
        PruneChannels(score=score).call(models.model(CHAIN), Context())


def test_what_can_be_removed_ends_at_a_ratio_of_zero() -> None:
    result = PruneChannels(ratio=0.0).call(models.model(CHAIN), Context())
    assert not result.modified
    assert {each.what for each in result.records} == {"no channel to spare", "graph output y"}


def macs(made: ir.Model) -> int:
    return counts(find(made)).macs


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_budget_sets_the_smallest_ratio_that_keeps_it(scope: str) -> None:
    made = load(TESTDATA / "residual_digits.onnx")
    whole, size = macs(made), counts(find(made)).parameters
    for options in ({"macs": 0.5}, {"parameters": 0.3}):
        after = PruneChannels(**options, scope=scope).call(clone(made), Context()).model
        share = macs(after) / whole if "macs" in options else counts(find(after)).parameters / size
        assert 0.8 * next(iter(options.values())) < share <= next(iter(options.values()))


def test_multiply_accumulates_are_those_counted_by_hand() -> None:
    made = models.model(CHAIN)
    assert macs(made) == 36 * (3 * 9 * 16 + 16 * 9 * 8 + 8 * 4)
    assert counts(find(made)).parameters == 3 * 9 * 16 + 16 + 16 * 9 * 8 + 8 * 4


def test_what_stays_of_a_layer_is_a_multiple() -> None:
    result = PruneChannels(ratio=0.6, multiple_of=4).call(models.model(CHAIN), Context())
    assert shapes(result) == {"a": [8, 3, 3, 3], "d": [8], "b": [4, 8, 3, 3], "c": [4, 4, 1, 1]}


FOUR = """net (float[N,3,6,6] x) => (float[N,4,6,6] y)
<float[16,3,1,1] a = {}, float[16,16,1,1] b = {}, float[16,16,1,1] c = {}, float[16,16,1,1] d = {},
 float[4,16,1,1] e = {}>
{ [a] p = Conv(x, a) [b] q = Conv(p, b) [c] r = Conv(q, c) [d] s = Conv(r, d) [e] y = Conv(s, e) }"""


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [
        (0.0, [16, 16, 16, 16]),
        (0.1, [16, 16, 12, 16]),
        (0.25, [12, 12, 12, 12]),
        (0.375, [12, 8, 12, 8]),
        (0.5, [8, 8, 8, 8]),
        (0.7, [8, 4, 4, 4]),
        (1.0, [4, 4, 4, 4]),
    ],
)
def test_what_steps_keep_too_many_is_taken_from_the_layers_after(ratio: float, kept: list[int]) -> None:
    result = PruneChannels(ratio=ratio).call(models.model(FOUR), Context(target="avx512"))
    assert [shapes(result)[name][0] for name in "abcd"] == kept


def test_a_layer_no_wider_than_the_multiple_asked_for_stays_whole_and_owes_nothing() -> None:
    result = PruneChannels(ratio=0.5, multiple_of=16).call(models.model(FOUR), Context())
    assert not result.modified
    wide = FOUR.replace("float[16,16,1,1] d", "float[32,16,1,1] d").replace("[4,16,1,1] e", "[4,32,1,1] e")
    result = PruneChannels(ratio=0.3, multiple_of=16).call(models.model(wide), Context())
    assert not result.modified
    assert {each.what for each in result.records} == {"no channel to spare", "graph output y"}


@pytest.mark.parametrize(("target", "kept"), [("mcu", 52), ("avx2", 56), ("avx512", 64), ("arm64", 64)])
def test_the_target_says_what_number_stays_a_multiple(target: str, kept: int) -> None:
    made = models.model(
        """net (float[N,8] x) => (float[N,8] y) <float[8,64] a = {}, float[64,8] b = {}>
        { [a] p = MatMul(x, a) [b] y = MatMul(p, b) }"""
    )
    result = PruneChannels(ratio=0.2).call(made, Context(target=target))
    assert shapes(result)["a"][1] == kept
    assert result.numbers == {"target": target}


def test_an_unknown_target_is_refused_before_anything_changes() -> None:
    made = models.model(CHAIN)
    with pytest.raises(UsageError, match="avx: no such target"):
        PruneChannels().call(made, Context(target="avx"))
    assert list(made.graph.initializers["a"].shape or ()) == [16, 3, 3, 3]


def test_one_ranking_takes_more_of_a_layer_with_many_small_weights() -> None:
    made = models.model(CHAIN)
    value = made.graph.initializers["a"]
    assert value.const_value is not None
    weight = value.const_value.numpy().copy()
    weight[:12] *= 0.01
    value.const_value = ir.tensor(weight, name="a")
    result = PruneChannels(ratio=0.5, scope="global").call(made, Context())
    assert shapes(result)["a"][0] == 4
    assert shapes(result)["b"][0] == 8


@pytest.mark.parametrize("name", ["lenet5_digits", "depthwise_digits", "residual_digits"])
def test_a_repair_brings_the_outputs_back_towards_those_of_the_whole_model(name: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    runtime = runtimes()["onnxruntime"].make()
    context = Context(calibration=load_data(TESTDATA / "digits_calib.npz", made), runtime=runtime)
    test = load_data(TESTDATA / "digits_test.npz", made, batch=64)
    found = []
    for kind in ("none", "bias", "least-squares"):
        after = PruneChannels(ratio=0.25, repair=kind).call(clone(made), context).model
        found.append(compare(runtime.prepare(made), runtime.prepare(after), test).snr)
    assert found[0] < found[1] < found[2]
    assert found[2] > found[0] + 3


TWINS = """net (float[N,3,7,7] x) => (float[N,4,%d,%d] y)
<float[4,3,1,1] a, float[5,4,3,2] b = {}, float[4,5,1,1] c = {}>
{ [a] p = Conv(x, a) [b] q = Conv<pads=[%d,%d,%d,%d],strides=[2,1],dilations=[1,2]>(p, b)
  [c] y = Conv(q, c) }"""


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 0, 1]])
def test_a_fit_lets_a_twin_do_the_work_of_a_removed_channel(pads: list[int]) -> None:
    sizes = ((7 + pads[0] + pads[2] - 3) // 2 + 1, 5 + pads[1] + pads[3])
    filters = np.float32([[0.1, 0.2, 0.3], [0, 3, -1], [0.1, 0.2, 0.3], [4, 1, 2]])
    made = models.model(TWINS % (*sizes, *pads), {"a": filters.reshape(4, 3, 1, 1)})
    images = np.random.default_rng(2).standard_normal((40, 3, 7, 7)).astype(np.float32)
    data, runtime = load_data({"x": images}, made), runtimes()["onnxruntime"].make()
    context = Context(calibration=data, runtime=runtime)
    found = {}
    for kind in ("none", "least-squares"):
        after = PruneChannels(ratio=0.25, exclude="c", repair=kind).call(clone(made), context)
        assert shapes(after)["a"][0] == 3
        found[kind] = compare(runtime.prepare(made), runtime.prepare(after.model), data).snr
    assert found["none"] < 30
    assert found["least-squares"] > 40


def test_of_attention_whole_heads_go() -> None:
    made = load(TESTDATA / "transformer_digits.onnx")
    _, records = masking.pruned_and_masked(made)
    assert records == masking.pruned_and_masked(made, {"multiple_of": 16})[1]  # a head is as wide
    gone = {
        each.layer.split("/")[-2]: each.numbers.get("outputs_removed") for each in records if each.changed
    }
    heads = masking.numbers(str(gone["query"]))
    assert gone["query"] == gone["key"] == gone["value"]
    assert len(heads) == 32
    assert {head // 16 for head in heads} == {heads[0] // 16, heads[-1] // 16}
    left = [each for each in records if "LayerNormalization" in each.what + str(each.numbers)]
    assert left


@pytest.mark.parametrize(
    ("score", "gone"), [("activation", [2]), ("energy", [3]), ("residual", [0]), ("batchnorm", [2])]
)
def test_scores_see_what_they_say(score: str, gone: list[int]) -> None:
    made = models.model(
        """net (float[N,4] x) => (float[N,3] y) <float[4,4] a, float[4,3] b>
        { [a] p = MatMul(x, a) [b] y = MatMul(p, b) }""",
        {
            "a": np.diag(np.float32([1, 2, 0.5, 1.5]))
            + np.float32([[0, 2, 0, 0], [0] * 4, [0] * 4, [0] * 4]),
            "b": np.float32([[0.5, 0.5, 0.5], [1, 1, 1], [2, 2, 2], [0.3, 0.3, 0.3]]),
        },
    )
    draw = np.random.default_rng(4)
    images = draw.standard_normal((50, 4)).astype(np.float32)
    images[:, 1] *= 0.05  # so that the second channel is nearly twice the first
    runtime = runtimes()["onnxruntime"].make()
    context = Context(calibration=load_data({"x": images}, made), runtime=runtime)
    result = PruneChannels(ratio=0.25, score=score).call(made, context)
    (record,) = [each for each in result.records if each.layer == "a"]
    assert masking.numbers(str(record.numbers["outputs_removed"])) == gone


def test_calibration_data_decide_what_is_left_to_the_pass() -> None:
    made = load(TESTDATA / "lenet5_digits.onnx")
    data, runtime = load_data(TESTDATA / "digits_calib.npz", made), runtimes()["onnxruntime"].make()
    context = Context(calibration=data, runtime=runtime)
    plain = {"score": "l2", "scope": "layer", "reduce": "mean", "repair": "none"}
    best = {"score": "residual", "scope": "global", "reduce": "sum", "repair": "least-squares"}
    assert PruneChannels().decided(Context()) == PruneChannels(**plain)
    assert PruneChannels().decided(context) == PruneChannels(**best)
    assert PruneChannels(score="l1").decided(context) == PruneChannels(
        **plain | {"score": "l1", "repair": "least-squares"}
    )
    assert PruneChannels(apply=False).decided(context).repair == "none"


def test_a_layer_that_is_excluded_is_not_repaired() -> None:
    made = models.model(CHAIN)
    weight = made.graph.initializers["c"].const_value
    images = np.random.default_rng(2).standard_normal((40, 3, 6, 6)).astype(np.float32)
    runtime = runtimes()["onnxruntime"].make()
    context = Context(calibration=load_data({"x": images}, made), runtime=runtime)
    result = PruneChannels(exclude="c").call(made, context)
    assert {each.layer for each in result.records if "repair" in each.numbers} == {"b"}
    assert result.model.graph.initializers["c"].const_value is weight


def test_a_repair_without_calibration_data_is_refused_before_anything_changes() -> None:
    made = models.model(CHAIN)
    with pytest.raises(UsageError, match="repair=bias needs calibration data"):
        PruneChannels(repair="bias").call(made, Context())
    assert list(made.graph.initializers["a"].shape or ()) == [16, 3, 3, 3]


def test_no_layer_loses_all_whatever_is_joined_to_it() -> None:
    made = models.model(
        """net (float[N,3,6,6] x) => (float[N,4,6,6] y) <float[4,3,1,1] a = {}, float[6,3,1,1] b = {},
        float[10,10,1,1] c = {}, float[4,10,1,1] d = {}>
        { [a] p = Conv(x, a) [b] q = Conv(x, b) k = Concat<axis=1>(p, q) [c] r = Conv(k, c) s = Add(k, r)
          [d] y = Conv(s, d) }"""
    )
    after, _ = masking.pruned_and_masked(made, {"ratio": 1.0})
    found = shapes(Result(after))
    assert (found["a"][0], found["b"][0], found["c"]) == (1, 1, [2, 2, 1, 1])
