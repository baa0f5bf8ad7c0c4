from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Record
from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.kmeans import METHODS, codebook
from onnxcompress.loss import decibels
from onnxcompress.model import clone, load
from onnxcompress.passes import Cluster, Prune
from onnxcompress.passes.cluster import joined, parts
from onnxcompress.registry import runtimes
from onnxcompress.verify import compare

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
TEXT = """<ir_version: 10, opset_import: ["": 17]>
agraph (float[N, 64] x, int64[N] at, float[64, 64] given) => (float[N, 10] y, float[N, 64] z, float[N, 16] t)
{
    [first] a = MatMul(x, w1)
    [again] b = MatMul(a, w1)
    [second] c = Gemm<transB=1>(b, w2, bias)
    [small] y = MatMul(c, w3)
    [table] t = Gather(w4, at)
    [dynamic] z = MatMul(x, given)
}"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "w1": draw.standard_normal((64, 64)).astype(np.float32),
        "w2": (10 * draw.standard_normal((32, 64))).astype(np.float32),
        "bias": draw.standard_normal(32).astype(np.float32),
        "w3": draw.standard_normal((32, 10)).astype(np.float32),
        "w4": draw.standard_normal((100, 16)).astype(np.float32),
    }


def model(values: dict[str, np.ndarray] | None = None) -> ir.Model:
    made = ir.from_onnx_text(TEXT)
    for name, array in (values or weights()).items():
        value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        made.graph.initializers[name] = value
    return made


def held(made: ir.Model, name: str) -> np.ndarray:
    tensor = made.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Cluster(**options).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


@pytest.mark.parametrize("initialise", METHODS)
def test_few_values_stand_for_the_weights_of_each_layer(initialise: str) -> None:
    made = model()
    records = run(made, bits=4, initialise=initialise)
    for layer, name in (("first", "w1"), ("second", "w2"), ("table", "w4")):
        before, after = weights()[name], held(made, name)
        values, counts = np.unique(after, return_counts=True)
        assert len(values) == records[layer].numbers["values"] <= 16
        assert len(values) > 8
        shares = counts / after.size
        assert records[layer].numbers["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
        assert (records[layer].what, records[layer].numbers["size"]) == ("clustered", after.size)
        noise = ((before - after).astype(float) ** 2).sum() / (before.astype(float) ** 2).sum()
        assert records[layer].numbers["snr"] == pytest.approx(-10 * np.log10(noise))
        assert noise < 0.03


def test_leaves_biases_small_and_computed_weights_alone_and_says_so() -> None:
    made = model()
    records = run(made)
    for name in ("bias", "w3"):
        np.testing.assert_array_equal(held(made, name), weights()[name])
    assert (records["small"].changed, records["small"].what) == (False, "too small")
    assert "dynamic" not in records


def test_a_tied_weight_is_clustered_once_and_stays_tied() -> None:
    made = model()
    records = run(made)
    assert (records["again"].changed, records["again"].what) == (False, "tied to first, done there")
    assert made.graph.node("first").inputs[1] is made.graph.node("again").inputs[1]


def test_zeros_stay_zero_and_zero_is_one_of_the_values() -> None:
    made = model()
    Prune(sparsity=0.9).call(made, Context())
    zeros = held(made, "w1") == 0
    assert zeros.sum() == int(0.9 * zeros.size)
    records = run(made, bits=2)
    np.testing.assert_array_equal(held(made, "w1") == 0, zeros)
    assert len(np.unique(held(made, "w1"))) == records["first"].numbers["values"] == 4


def test_each_channel_or_group_of_channels_has_values_of_its_own() -> None:
    made = model()
    records = run(made, bits=3, scope="channel", initialise="optimal")
    assert (records["first"].numbers["codebooks"], records["first"].numbers["values"]) == (64, 8)
    for column in held(made, "w1").T:  # MatMul: output channels are columns
        assert len(np.unique(column)) == 8
    for row in held(made, "w2"):  # Gemm with transB: rows
        assert len(np.unique(row)) == 8
    assert len(np.unique(held(made, "w1"))) > 300

    made = model()
    assert run(made, bits=3, scope="group", group=24, min_size=0)["second"].numbers["codebooks"] == 2
    for part in np.split(held(made, "w2"), [24]):
        assert 4 <= len(np.unique(part)) <= 8
    assert len(np.unique(held(made, "w2"))) > 8


def test_finer_scopes_and_more_bits_lose_less() -> None:
    def snr(**options: object) -> float:
        made = model()
        records = run(made, initialise="optimal", **options)
        held(made, "w1")
        return float(records["first"].numbers["snr"])

    assert snr(scope="tensor") < snr(scope="group") < snr(scope="channel")
    assert snr(bits=3) < snr(bits=4) < snr(bits=8)


@pytest.mark.parametrize("initialise", METHODS)
@pytest.mark.parametrize("scope", ["tensor", "channel", "group"])
def test_a_second_run_is_idle(scope: str, initialise: str) -> None:
    made = model()
    Prune(sparsity=0.3).call(made, Context())
    options = {"scope": scope, "initialise": initialise, "bits": 3}
    run(made, **options)
    kept = {name: held(made, name) for name in ("w1", "w2", "w4")}
    again = run(made, **options)
    assert [record.layer for record in again.values() if record.changed] == []
    assert again["again"].what == "few values already"
    for name, values in kept.items():
        np.testing.assert_array_equal(held(made, name), values)


def test_weights_of_few_values_keep_them_bit_for_bit() -> None:
    values = weights()
    values["w1"] = np.random.default_rng(0).choice(np.float32([0, 0.1, -3, 7]), (64, 64))
    made = model(values)
    records = run(made, bits=2)
    assert (records["first"].changed, records["first"].what) == (False, "few values already")
    assert records["first"].numbers["values"] == 4
    np.testing.assert_array_equal(held(made, "w1"), values["w1"])
    assert run(made, bits=1)["first"].changed


def test_excluded_layers_stay_whether_the_pass_or_the_run_excludes_them() -> None:
    assert run(model(), exclude="second")["second"].what == "excluded"
    made = model()
    assert run(made, Context(exclude=("sec.*",)))["second"].what == "excluded"
    np.testing.assert_array_equal(held(made, "w2"), weights()["w2"])


def test_refuses_weights_that_are_not_finite_and_options_out_of_bounds() -> None:
    values = weights()
    values["w1"][3, 4] = np.inf
    with pytest.raises(CompressError, match="w1: the weight holds NaN or infinity"):
        run(model(values))
    with pytest.raises(UsageError, match="cluster: option bits is 9, expected 1 to 8"):
        Cluster(bits=9)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_keep_their_dtype(dtype: type) -> None:
    array = np.random.default_rng(0).standard_normal((20, 30)).astype(dtype)
    books = [codebook(array, 16)]
    result = joined(array, (), 1, books)
    assert (result.dtype, result.shape, len(np.unique(result))) == (array.dtype, array.shape, books[0].count)
    assert 10 < decibels(array, result) < 30


@pytest.mark.parametrize(
    ("shape", "axes", "group"),
    [
        ((), (), 1),
        ((0, 3), (0,), 1),
        ((4, 0), (1,), 2),
        ((3, 4, 2), (1,), 3),
        ((2, 5, 3), (0, 1), 4),
        ((5, 2, 3), (2,), 1),
    ],
)
def test_parts_of_any_shape_are_put_together_again(
    shape: tuple[int, ...], axes: tuple[int, ...], group: int
) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    books = [codebook(part, 256) for part in parts(array, axes, group)]
    np.testing.assert_array_equal(joined(array, axes, group, books), array)
    assert joined(array, axes, group, books).shape == shape
    assert sum(book.size for book in books) == array.size


@pytest.mark.parametrize("initialise", METHODS)
@pytest.mark.parametrize("name", ["lenet300_digits", "lenet5_digits"])
def test_a_lenet_keeps_its_accuracy_at_five_bits_pruned_or_not(name: str, initialise: str) -> None:
    given = load(TESTDATA / f"{name}.onnx")
    test = load_data(TESTDATA / "digits_test.npz", given, batch=64)
    engine = runtimes()["onnxruntime"].make()
    for sparsity in (0.0, 0.5):
        before, after = clone(given), clone(given)
        for made in (before, after):
            Prune(sparsity=sparsity).call(made, Context())
        Cluster(initialise=initialise).call(after, Context())
        found = compare(engine.prepare(before), engine.prepare(after), test, labels=test.labels)
        assert found.top1 is not None
        assert 100 * (found.top1[0] - found.top1[1]) <= 1.0
        assert found.snr >= 20.0


LAYERS = {
    "Conv": ("float[1, 6, 5, 5] x", "y = Conv(x, w)", (8, 6, 3, 3)),
    "Gemm": ("float[20, 30] x", "y = Gemm(x, w)", (30, 16)),
    "transposed": ("float[20, 30] x", "y = Gemm<transB=1>(x, w)", (16, 30)),
    "MatMul": ("float[20, 30] x", "y = MatMul(x, w)", (30, 16)),
}


@pytest.mark.parametrize("kind", list(LAYERS))
def test_errors_of_large_inputs_count_more(kind: str) -> None:
    given, node, shape = LAYERS[kind]
    draw = np.random.default_rng(1)
    weight = draw.standard_normal(shape).astype(np.float32)
    size = tuple(map(int, given[given.index("[") + 1 : given.index("]")].split(",")))
    scales = np.geomspace(0.01, 10, size[1]).astype(np.float32).reshape(-1, *[1] * (len(size) - 2))
    x = draw.standard_normal((64, *size)).astype(np.float32) * scales
    text = f'<ir_version: 10, opset_import: ["": 17]> g ({given}) => (float[?] y) {{ {node} }}'
    text = text.replace("float[?] y", "float y")
    outputs = {}
    for importance in ("none", "equal", "inputs"):
        made = ir.from_onnx_text(text)
        value = made.graph[0].inputs[1]
        assert value is not None
        value.const_value = ir.tensor(weight, name="w")
        value.shape, value.dtype = ir.Shape(shape), ir.DataType.FLOAT
        made.graph.initializers["w"] = value
        engine = runtimes()["onnxruntime"]()
        context = Context(calibration=load_data([{"x": each} for each in x], made), runtime=engine)
        if importance != "none":
            assert next(iter(run(made, context, bits=2, importance=importance, min_size=0).values())).changed
        runnable = engine.prepare(made)
        outputs[importance] = np.stack([runnable.run({"x": each})["y"] for each in x])
    errors = {name: float(np.square(each - outputs["none"]).sum()) for name, each in outputs.items()}
    assert errors["inputs"] < 0.95 * errors["equal"]


def test_importance_of_inputs_needs_calibration_data() -> None:
    with pytest.raises(UsageError, match="cluster: importance=inputs needs calibration data"):
        run(model(), importance="inputs")
