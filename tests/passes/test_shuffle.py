from functools import cache
from pathlib import Path

import light
import models
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.base import Context, Record
from onnxcompress.channels import find
from onnxcompress.data import load_data
from onnxcompress.errors import UsageError
from onnxcompress.grouping import contiguous, dealt, search
from onnxcompress.model import clone, load, signature
from onnxcompress.passes import PruneChannels, RemoveMasked, Shuffle
from onnxcompress.runtimes.onnxruntime import OnnxRuntime
from onnxcompress.verify import compare

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))
WIDTH = {"shufflenet": 1}  # groups of 34 channels can't be narrowed by four

CHAIN = """net (float[N, 4, 9, 8] x) => (float[N, 5] y)
<float[16, 4, 3, 3] w0 = {}, float[16] b0 = {}, float[32, 16, 1, 1] w1 = {}, float[32] b1 = {},
 float[32, 1, 3, 3] w2 = {}, float[48, 32, 3, 3] w3 = {}, float[48] b3 = {}, float[1, 48, 1, 1] c = {},
 float[48, 5] w4 = {}, float[5] b4 = {}>
{
    [stem] a = Conv(x, w0, b0)
    [r0] a1 = Relu(a)
    [first] d = Conv(a1, w1, b1)
    [r1] d1 = Relu(d)
    [each] e = Conv<group = 32>(d1, w2)
    [second] f = Conv<pads = [1, 0, 0, 1], strides = [2, 1]>(e, w3, b3)
    [scale] f1 = Mul(f, c)
    [r2] f2 = Relu(f1)
    [pool] g = GlobalAveragePool(f2)
    [flat] h = Flatten(g)
    [last] y = Gemm(h, w4, b4)
}"""


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    options = {"min_size": 0, **options}
    result = Shuffle(**options).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def named(made: ir.Model, name: str) -> ir.Node:
    (node,) = [each for each in made.graph if name in (each.name, each.outputs[0].name)]
    return node


def weight_of(node: ir.Node) -> ir.Value:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return weight


def put(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array, name=value.name)


def masked(made: ir.Model, records: dict[str, Record], groups: int, how: str) -> ir.Model:
    """Return `made` with zeros where weights lie between groups, and everything else as it is."""
    made = clone(made)
    for name, record in records.items():
        if not record.changed:
            continue
        node = named(made, name)
        weight = weight_of(node)
        assert weight.const_value is not None
        old = weight.const_value.numpy()
        outputs, inputs = (contiguous(size, groups) for size in old.shape[:2])
        if how == "search":
            energy = (old.astype(np.float64) ** 2).reshape(*old.shape[:2], -1).sum(axis=2)
            outputs, inputs = search(energy, groups)
        elif record.numbers["before"] == "shuffle":
            inputs[dealt(len(inputs), groups)] = inputs.copy()
        same = (outputs[:, None] == inputs).reshape(*old.shape[:2], *[1] * (old.ndim - 2))
        put(weight, (old * same).astype(old.dtype))
        weight.name, old_name = f"{weight.name}_masked", weight.name
        if old_name in made.graph.initializers:
            made.graph.initializers[weight.name] = made.graph.initializers.pop(old_name)
    return made


OPTIONS: dict[str, dict[str, object]] = {
    "search": {},
    "blocks": {"search": False},
    "explicit": {"explicit": True},
}


def apart(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    """Return how far the outputs are apart, relative to the largest."""
    pairs = list(zip(models.run(before, feeds), models.run(after, feeds), strict=True))
    return max(float(np.abs(found - expected).max() / np.abs(expected).max()) for expected, found in pairs)


@pytest.mark.parametrize("how", list(OPTIONS))
@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_computes_what_zeros_between_groups_would(name: str, how: str) -> None:
    given = load(TESTDATA / f"{name}.onnx")
    made = clone(given)
    records = run(made, when="always", **OPTIONS[how])
    assert signature(made) == signature(given)
    image = np.load(TESTDATA / "digits_test.npz")["image"][:32]
    assert apart(masked(given, records, 4, how), made, {"image": image}) < 1e-4
    assert all(record.what for record in records.values())


@pytest.mark.parametrize("how", ["search", "explicit"])
@pytest.mark.parametrize("name", light.NAMES)
def test_an_architecture_computes_what_zeros_between_groups_would(name: str, how: str) -> None:
    given = load(light.build(name, WIDTH.get(name, 4)))
    made = clone(given)
    records = run(made, groups=2, when="always", **OPTIONS[how])
    if name == "shufflenet":
        assert "grouped already" in {record.what for record in records.values()}
    else:
        assert any(record.changed for record in records.values())
    image = np.random.default_rng(3).standard_normal((1, 3, 224, 224)).astype(np.float32)
    feeds = {str(given.graph.inputs[0].name): image}
    assert apart(masked(given, records, 2, how), made, feeds) < 1e-4


def chain(seed: int = 0) -> ir.Model:
    return models.model(CHAIN, {}, seed)


def test_what_lies_between_two_layers_is_one_permutation_and_all_else_is_absorbed() -> None:
    made = chain()
    records = run(made, when="always")
    assert [records[name].what for name in ("first", "second")] == ["grouped"] * 2
    assert records["first"].numbers["before"] == records["first"].numbers["behind"] == "nothing"
    assert records["second"].numbers["before"] in ("gather", "shuffle")
    assert records["second"].numbers["behind"] == "nothing"
    assert len([node for node in made.graph if node.op_type == "Gather"]) <= 1
    for name, shape in (("first", (32, 4, 1, 1)), ("second", (48, 8, 3, 3))):
        node = named(made, name)
        assert node.attributes.get_int("group", 1) == 4
        assert tuple(weight_of(node).const_value.shape.numpy()) == shape  # type: ignore[union-attr]
        parameters = int(np.prod(shape))
        assert records[name].numbers["parameters_after"] == parameters
        assert records[name].numbers["parameters"] == 4 * parameters
        assert records[name].numbers["macs"] == 4 * int(records[name].numbers["macs_after"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_blocks_that_a_permutation_hides_are_found_and_nothing_changes(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([2, 3, 4]))
    widths = [groups * data.draw(st.integers(2, 6)) for _ in range(3)]
    kernel = data.draw(st.sampled_from([1, 3]))
    seed = data.draw(st.integers(0, 2**16))
    between = data.draw(
        st.sampled_from(["Relu(b)", "Conv<group = C>(b, wd)", "BatchNormalization(b, s, o, o, v)"])
    )
    residual = data.draw(st.booleans())
    pads = [kernel // 2] * 4
    text = f"""net (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y)
    <float[{widths[0]}, 3, 1, 1] w0 = {{}}, float[{widths[1]}, {widths[0]}, {kernel}, {kernel}] w1 = {{}},
     float[{widths[1]}, 1, 1, 1] wd = {{}}, float[{widths[2]}, {widths[1]}, 1, 1] w2 = {{}},
     float[{widths[2]}, {widths[2]}, 1, 1] w3 = {{}}, float[2, {widths[2]}, 1, 1] w4 = {{}}>
    {{
        a = Conv(x, w0)
        [one] b = Conv<pads = {pads}>(a, w1)
        c = {between.replace("C>", f"{widths[1]}>")}
        [two] d = Conv(c, w2)
        e = Relu(d)
        [three] f = Conv(e, w3)
        g = Add(f, {"d" if residual else "f"})
        [head] y = Conv(g, w4)
    }}"""
    draw = np.random.default_rng(seed)
    vectors = {name: draw.uniform(0.5, 2, widths[1]).astype(np.float32) for name in "sov"}
    given_model = models.model(text, vectors if "Batch" in text else {}, seed)
    for name in ("one", "two", "three"):
        weight = weight_of(named(given_model, name))
        assert weight.const_value is not None
        old = weight.const_value.numpy()
        ends = [draw.permutation(contiguous(size, groups)) for size in old.shape[:2]]
        same = (ends[0][:, None] == ends[1])[:, :, None, None]
        put(weight, (old * same).astype(np.float32))
    made = clone(given_model)
    records = run(made, groups=groups, when="always", exclude="head")
    for name in ("one", "two", "three"):
        assert records[name].what == "grouped"
        assert records[name].numbers["energy"] == pytest.approx(1)
    image = draw.standard_normal((2, 3, 6, 6)).astype(np.float32)
    assert apart(given_model, made, {"x": image}) < 1e-5


def test_explicit_makes_the_units_of_shufflenet() -> None:
    made = load(TESTDATA / "bottleneck_digits.onnx")
    result = Shuffle(groups=4, explicit=True).call(made, Context())
    changed = [record for record in result.records if record.changed]
    assert len(changed) == 8
    for record in changed:
        assert 4 * int(record.numbers["parameters_after"]) == record.numbers["parameters"]
        assert 4 * int(record.numbers["macs_after"]) == record.numbers["macs"]
    plain = load(TESTDATA / "shufflenet_digits.onnx")  # the same network, trained with groups and shuffles
    units, expected = operators(made), operators(plain)
    assert units == expected
    first = next(place for place, each in enumerate(units) if each == ("Conv", 4))
    assert [op for op, _ in units[first : first + 10]] == [
        *("Conv", "BatchNormalization", "Relu", "Reshape", "Transpose", "Reshape"),
        *("Conv", "BatchNormalization", "Conv", "BatchNormalization"),
    ]
    assert [groups for op, groups in units[first : first + 10] if op == "Conv"] == [4, 32, 4]


def operators(made: ir.Model) -> list[tuple[str, int]]:
    """Return operators in order with their groups, but for constants; 1 where there are no groups."""
    return [
        (node.op_type, node.attributes.get_int("group", 1))
        for node in made.graph
        if node.op_type not in ("Constant", "Identity")
    ]


@pytest.mark.parametrize(("name", "how"), [("bottleneck", "explicit"), ("depthwise", "search")])
def test_channels_are_pruned_through_what_it_makes(name: str, how: str) -> None:
    made = load(TESTDATA / f"{name}_digits.onnx")
    records = run(made, **OPTIONS[how])
    permuted = {"explicit": "shuffle", "search": "gather"}[how]
    assert permuted in {record.numbers["before"] for record in records.values() if record.changed}
    whole = find(made).units
    image = np.load(TESTDATA / "digits_test.npz")["image"][:8]
    after = clone(made)
    result = PruneChannels(ratio=0.5).call(after, Context())
    changed = {record.layer for record in result.records if record.changed}
    grouped = {str(node.name) for node in made.graph if node.attributes.get_int("group", 1) == 4}
    assert grouped <= changed
    assert find(after).units.count < whole.count
    masks = clone(made)
    PruneChannels(ratio=0.5, apply=False).call(masks, Context())
    assert apart(masks, after, {"image": image}) < 1e-4


@pytest.mark.parametrize(("name", "how"), [("bottleneck", "explicit"), ("depthwise", "search")])
def test_masked_channels_are_removed_through_what_it_makes(name: str, how: str) -> None:
    made = load(TESTDATA / f"{name}_digits.onnx")
    run(made, **OPTIONS[how])
    PruneChannels(ratio=0.25, apply=False).call(made, Context())
    after = clone(made)
    RemoveMasked().call(after, Context())
    image = np.load(TESTDATA / "digits_test.npz")["image"][:8]
    assert apart(made, after, {"image": image}) < 1e-4
    sizes = [
        sum(int(np.prod(value.shape.numpy())) for value in each.graph.initializers.values() if value.shape)
        for each in (made, after)
    ]
    assert sizes[1] < 0.8 * sizes[0]


def calibrated(made: ir.Model) -> Context:
    return Context(calibration=load_data(TESTDATA / "digits_calib.npz", made), runtime=OnnxRuntime())


@cache
def accuracy(how: str, repair: str) -> tuple[float, float, list[Record]]:
    """Return the accuracy on the held-out digits before and after, and the records."""
    made = load(TESTDATA / "bottleneck_digits.onnx")
    after = clone(made)
    result = Shuffle(**{"repair": repair, **OPTIONS[how]}).call(after, calibrated(made))  # type: ignore[arg-type]
    test = load_data(TESTDATA / "digits_test.npz", made, batch=64)
    found = compare(OnnxRuntime().prepare(made), OnnxRuntime().prepare(after), test, labels=test.labels)
    assert found.top1 is not None
    return *found.top1, result.records


def test_the_search_keeps_more_accuracy_than_plain_shuffles() -> None:
    before, searched, _ = accuracy("search", "least-squares")
    _, plain, _ = accuracy("explicit", "least-squares")
    assert searched > plain + 0.01
    assert before > searched > 0.9


def test_repair_mends_what_the_groups_broke() -> None:
    assert accuracy("search", "none")[1] < accuracy("search", "bias")[1] - 0.05
    assert accuracy("search", "bias")[1] < accuracy("search", "least-squares")[1] - 0.2
    records = accuracy("search", "least-squares")[2]
    assert {record.numbers["repair"] for record in records if record.changed} == {"weights fitted"}
    assert {r.numbers.get("repair") for r in records if not r.changed} <= {"weights fitted", None}
    with pytest.raises(UsageError, match="shuffle: repair=bias needs calibration data, none was given"):
        Shuffle(repair="bias").call(chain(), Context())


def test_data_weigh_what_the_search_keeps() -> None:
    made = chain()
    stem = weight_of(named(made, "stem"))
    assert stem.const_value is not None
    scale = np.repeat([4, 0.1], 8)[:, None, None, None].astype(np.float32)
    put(stem, stem.const_value.numpy() * scale)
    image = np.random.default_rng(4).standard_normal((64, 4, 9, 8)).astype(np.float32)
    context = Context(calibration=load_data([{"x": image}], made), runtime=OnnxRuntime())
    ratios = []
    for each in (Context(), context):
        after = clone(made)
        run(after, each, when="always", exclude="second")
        ratios.append(models.snr(models.run(made, {"x": image})[0], models.run(after, {"x": image})[0]))
    assert ratios[1] > ratios[0] + 0.5


def test_what_stays_is_recorded_with_its_reason() -> None:
    made = models.model(
        """net (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y, float[N, 8, 8, 8] z, float[N, 10] u)
        <float[16, 3, 3, 3] w0 = {}, float[16, 16, 1, 1] w1 = {}, float[16, 4, 1, 1] w2 = {},
         float[18, 16, 1, 1] w3 = {}, float[16, 18, 1, 1] w4 = {}, float[8, 16, 1, 1] w5 = {},
         float[4, 16, 1, 1] w6 = {}, float[16, 4, 1, 1] w7 = {}, float[16, 8, 1, 1] w8 = {},
         float[16, 10] w9 = {}>
        {
            [stem] a = Conv<pads = [1, 1, 1, 1]>(x, w0)
            [shared] b = Conv(a, w1) [twin] b1 = Conv(b, w1)
            [grouped] c = Conv<group = 4>(b1, w2)
            [odd] d = Conv(c, w3) [odder] e = Conv(d, w4)
            [narrow] f = Conv(e, w6) [single] g = Conv(f, w7)
            [out] y = Conv(g, w5)
            [again] h = Conv(g, w5) z = Relu(h)
            p = GlobalAveragePool(g) q = Flatten(p) [product] u = MatMul(q, w9)
        }"""
    )
    records = run(clone(made), when="always")
    assert {name: record.what for name, record in records.items() if not record.changed} == {
        "stem": "its channels can't be divided into so many groups",
        "shared": "its weight is read more than once",
        "twin": "its weight is read more than once",
        "grouped": "grouped already",
        "odd": "its channels can't be divided into so many groups",
        "odder": "its channels can't be divided into so many groups",
        "single": "a group would have one channel",
        "out": "its weight is read more than once",
        "again": "its weight is read more than once",
        "product": "not a convolution",
    }
    assert records["odd"].numbers == {"inputs": 16, "outputs": 18}
    assert records["narrow"].changed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_size": 10_000}, "too small"),
        ({"exclude": "first"}, "excluded"),
        ({"energy": 0.9}, "it would lose too much of its energy"),
    ],
)
def test_options_choose_layers(options: dict[str, object], reason: str) -> None:
    assert run(chain(), when="always", **options)["first"].what == reason


def test_excluded_layers_keep_the_order_of_what_they_read_and_make() -> None:
    made = chain()
    after = clone(made)
    records = run(after, when="always", exclude="each")
    assert records["first"].changed
    assert records["second"].changed
    kept = [weight_of(named(each, "each")).const_value.numpy() for each in (made, after)]  # type: ignore[union-attr]
    assert np.array_equal(*kept)
    image = np.random.default_rng(4).standard_normal((2, 4, 9, 8)).astype(np.float32)
    assert apart(masked(made, records, 4, "search"), after, {"x": image}) < 1e-4


def test_layers_that_make_an_output_or_read_an_input_of_the_graph_stay() -> None:
    made = models.model(
        """net (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y)
        <float[16, 16, 1, 1] w0 = {}, float[16, 16, 1, 1] w1 = {}>
        { [into] a = Conv(x, w0) [out] y = Conv(a, w1) }"""
    )
    records = run(made, when="always")
    assert records["into"].what == "what it reads or makes are no channels of their own"
    assert records["out"].what == "it makes an output of the graph"


def test_moving_channels_counts_where_it_may_cost_more() -> None:
    text = """net (float[N, 3, 8, 8] x) => (float[N, 8, A, B] y)
        <float[32, 3, 3, 3] w0 = {}, float[16, 32, 1, 1] w1 = {}, float[64, 16, 1, 1] w2 = {},
         float[8, 64, 1, 1] w3 = {}>
        { a = Conv(x, w0) [few] b = Conv(a, w1) [many] c = Conv(b, w2) [last] y = Conv(c, w3) }"""
    records = run(models.model(text))
    assert records["few"].what == "moving its inputs might cost more than it saves"  # 12 a channel, of 16
    assert records["many"].changed  # 48 a channel


def test_a_second_run_changes_nothing() -> None:
    for how in OPTIONS.values():
        made = load(TESTDATA / "bottleneck_digits.onnx")
        run(made, **how)
        assert not any(record.changed for record in run(made, **how).values())


def test_channels_that_an_operator_mixes_are_not_reordered_and_a_gather_restores_them() -> None:
    made = models.model(
        """net (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y)
        <float[16, 3, 3, 3] w0 = {}, float[16, 16, 1, 1] w1 = {}, float[8, 16, 1, 1] w2 = {}>
        {
            [stem] a = Conv<pads = [1, 1, 1, 1]>(x, w0) n = LRN<size = 3, alpha = 1.0>(a)
            [one] b = Conv(n, w1) m = LRN<size = 5, alpha = 1.0>(b)
            [two] y = Conv(m, w2)
        }"""
    )
    after = clone(made)
    records = run(after, when="always")
    assert (records["one"].numbers["before"], records["one"].numbers["behind"]) == ("gather", "gather")
    image = np.random.default_rng(4).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert apart(masked(made, records, 4, "search"), after, {"x": image}) < 1e-5


def test_readers_of_one_value_that_need_the_same_order_share_its_gather() -> None:
    made = models.model(
        """net (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y)
        <float[16, 3, 3, 3] w0 = {}, float[16, 16, 1, 1] w1 = {}, float[16, 16, 1, 1] w2 = {},
         float[6, 16, 1, 1] w3 = {}>
        {
            a = Conv<pads = [1, 1, 1, 1]>(x, w0) n = LRN<size = 3>(a)
            [one] b = Conv(n, w1) [two] c = Conv(n, w2) d = Add(b, c) [last] y = Conv(d, w3)
        }"""
    )
    first, second = (weight_of(named(made, name)) for name in ("one", "two"))
    assert first.const_value is not None
    put(second, first.const_value.numpy())
    run(made, when="always")
    assert len([node for node in made.graph if node.op_type == "Gather"]) == 1


def test_normalisations_stay_right_behind_their_convolutions() -> None:
    made = load(TESTDATA / "bottleneck_digits.onnx")
    records = run(made)
    assert "gather" in {record.numbers["behind"] for record in records.values() if record.changed}
    for name in (name for name, record in records.items() if record.changed):
        assert [use.node.op_type for use in named(made, name).outputs[0].uses()] == ["BatchNormalization"]
