"""The speed gate of quant, with an engine whose runs take as long as a test says, on a clock of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import models
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxcompress import compress
from onnxcompress.base import Context, Result
from onnxcompress.data import load_data
from onnxcompress.errors import UsageError
from onnxcompress.gate import batched, between, bounded, either, sized
from onnxcompress.model import clone, to_proto
from onnxcompress.passes import Quant
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

TESTDATA = Path(__file__).parent.parent / "testdata"
NETWORK = """net (float[N, 8, 8, 8] x) => (float[N, 10] y)
<float[8, 8, 3, 3] w1 = {}, float[8, 2, 3, 3] w2 = {}, float[8, 8, 1, 1] w3 = {}, float[8, 10] w4 = {},
 float[10] b4 = {}>
{
    [first] c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
    r1 = Relu(c1)
    [grouped] c2 = Conv<pads = [1, 1, 1, 1], group = 4>(r1, w2)
    r2 = Relu(c2)
    [point] c3 = Conv(r2, w3)
    p = GlobalAveragePool(c3)
    f = Flatten(p)
    [last] y = Gemm(f, w4, b4)
}"""


class Clock:
    """Stands for the module ``time`` where latencies are measured."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.measure.time", CLOCK)
    monkeypatch.setattr("onnxcompress.parts.time", CLOCK)


@dataclass
class Engine:
    """An engine whose runs take the sum of what their nodes cost; with `outputs` it computes them."""

    name: ClassVar[str] = "priced"
    cost: ClassVar[Callable[[ir.Node], float]]
    prepared: ClassVar[list[list[str]]]
    threads: int = 0

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> "Engine":
        return cls(threads)

    def abreast(self) -> tuple["Engine", int]:
        return self, 1

    def patient(self) -> "Engine":
        return self

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> object:
        if outputs is not None:
            return OnnxRuntime().prepare(model, outputs)
        assert isinstance(model, ir.Model)
        self.prepared.append([node.op_type for node in model.graph])
        return Run(sum(map(type(self).cost, model.graph)))


@dataclass
class Run:
    milliseconds: float

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        CLOCK.now += self.milliseconds / 1000
        return {}


def engine(integer: Callable[[ir.Node], float], conversion: float = 0.01) -> Engine:
    """Return an engine in which a layer takes a millisecond, or ``integer(node)`` with an integer weight."""

    def cost(node: ir.Node) -> float:
        if node.op_type == "QuantizeLinear":
            return conversion
        if node.op_type not in ("Conv", "Gemm", "MatMul", "MatMulInteger"):
            return 0.0
        maker = node.inputs[1].producer() if node.inputs[1] is not None else None
        quantized = maker is not None and maker.op_type == "DequantizeLinear"
        return integer(node) if quantized or node.op_type == "MatMulInteger" else 1.0

    made = type("Priced", (Engine,), {"cost": staticmethod(cost), "prepared": []})
    return made()  # type: ignore[no-any-return]


def samples(dims: tuple[int, ...] = (2, 8, 8, 8)) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(8)
    return [{"x": draw.normal(0, 1, dims).astype(np.float32)} for _ in range(4)]


def gated(made: ir.Model, runtime: Engine, static: bool = True, **options: object) -> Result:
    data = load_data(samples(), made) if static else None
    chosen = Quant(**{"reduce_range": "off", **options})  # type: ignore[arg-type]
    return chosen.call(made, Context(calibration=data, runtime=runtime))


def said(result: Result) -> dict[str, str]:
    return {record.layer: record.what for record in result.records}


def grouped_is_slow(node: ir.Node) -> float:
    return 2.0 if node.attributes.get_int("group", 1) > 1 else 0.3


def test_a_class_of_layers_that_is_slower_computes_with_floats_and_says_by_how_much() -> None:
    made = models.model(NETWORK)
    result = gated(made, engine(grouped_is_slow), min_size=0)
    assert said(result) == {
        "first": "computes with int8",
        "grouped": "stored as int8, group Conv: int8 2x slower here",
        "point": "computes with int8",
        "last": "computes with int8",
    }
    assert result.numbers["time of int8 to float, 3x3 Conv"] == pytest.approx(0.31)
    assert result.numbers["time of int8 to float, group Conv"] == pytest.approx(2.01)
    *_, record = [record for record in result.records if record.layer == "grouped"]
    assert record.numbers["ratio"] == pytest.approx(2.01)


def test_the_choice_is_a_recipe_that_makes_the_same_model_without_timing() -> None:
    made = models.model(NETWORK)
    first, second = clone(made), clone(made)
    result = gated(first, engine(grouped_is_slow), min_size=0)
    assert str(result.replay) == "quant(min_size=0, gate=off, weights_only=grouped, reduce_range=off)"
    other = engine(lambda node: 0.1)
    again = Quant(min_size=0, gate="off", weights_only="grouped", reduce_range="off")
    assert result.replay == again
    again.call(second, Context(calibration=load_data(samples(), made), runtime=other))
    assert to_proto(second).SerializeToString() == to_proto(first).SerializeToString()
    assert not type(other).prepared


def test_a_class_that_is_hardly_slower_is_not_called_1x_slower() -> None:
    made = models.model(NETWORK)
    result = gated(made, engine(lambda node: 0.3 if node.name != "grouped" else 1.02, 0.0), min_size=0)
    assert said(result)["grouped"] == "stored as int8, group Conv: int8 slower here"


def test_layers_without_a_name_are_told_by_the_name_they_had_before_folding() -> None:
    text = """net (float[N, 8, 8, 8] x) => (float[N, 8, 4, 4] y)
    <float[8, 2, 3, 3] w1 = {}, float[8, 8, 3, 3] w2 = {}, float[8] s = {}, float[8] t = {}, float[8] m = {}>
    {
        a = Conv<group = 4>(x, w1)
        b = BatchNormalization(a, s, t, m, v)
        y = Conv(b, w2)
    }"""
    made = models.model(text, {"v": np.ones(8, np.float32)})
    first, second = clone(made), clone(made)
    result = gated(first, engine(grouped_is_slow), min_size=0)
    assert result.replay is not None
    assert str(result.replay) == "quant(min_size=0, gate=off, weights_only=a, reduce_range=off)"
    result.replay.call(second, Context(calibration=load_data(samples(), made), runtime=OnnxRuntime()))
    assert to_proto(second).SerializeToString() == to_proto(first).SerializeToString()


def test_where_the_whole_is_slower_all_layers_compute_with_floats() -> None:
    made = models.model(NETWORK)
    result = gated(made, engine(lambda node: 0.9, conversion=0.3), min_size=0)
    assert "QuantizeLinear" not in {node.op_type for node in made.graph}
    assert said(result) == {
        "first": "stored as int8, 3x3 Conv: int8 1.2x slower here",
        "grouped": "stored as int8, group Conv: int8 1.2x slower here",
        "point": "stored as int8, 1x1 Conv: int8 1.2x slower here",
        "last": "stored as int8, the model is not faster with int8 here",
    }


def test_the_whole_decides_where_parts_promise_too_much() -> None:
    made = models.model(NETWORK)
    shared = engine(lambda node: 0.9)
    inner = type(shared).cost

    def cost(node: ir.Node) -> float:  # what only the whole shows
        first = node.op_type == "QuantizeLinear" and node.inputs[0] is made.graph.inputs[0]
        named = node.inputs[0] is not None and node.inputs[0].name == "x"
        return 5.0 if first or (node.op_type == "QuantizeLinear" and named) else inner(node)

    type(shared).cost = staticmethod(cost)
    result = gated(made, shared, min_size=0)
    assert set(said(result).values()) == {"stored as int8, the model is not faster with int8 here"}
    assert result.numbers["time of int8 to float, whole model"] > 1


def test_a_block_that_does_not_pay_for_its_conversions_computes_with_floats() -> None:
    made = models.model(
        """net (float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] y)
        <float[8, 8, 1, 1] w1 = {}, float[8, 8, 3, 3] w3 = {}, float[8, 8, 3, 3] w4 = {}>
        {
            [lone] a = Conv(x, w1)
            b = Softplus(a)
            [one] c = Conv<pads = [1, 1, 1, 1]>(b, w3)
            [two] y = Conv<pads = [1, 1, 1, 1]>(c, w4)
        }"""
    )

    def costs(node: ir.Node) -> float:
        return 0.8 if node.name == "lone" else 0.3

    result = gated(made, engine(costs, conversion=0.15), min_size=0)
    assert {name: what for name, what in said(result).items() if name in ("lone", "one", "two")} == {
        "lone": "stored as int8, int8 not faster here with what is around it",
        "one": "computes with int8",
        "two": "computes with int8",
    }


PRODUCTS = """net (float[N, 32] x) => (float[N, 32] y)
<float[32, 64] u = {}, float[64, 32] v = {}, float[32] b = {}>
{ [wide] a = MatMul(x, u) r = Relu(a) [slim] y = Gemm(r, v, b) }"""


def test_dynamic_products_that_are_not_faster_keep_floats_and_int8_storage() -> None:
    made = models.model(PRODUCTS)
    first = clone(made)
    result = gated(first, engine(lambda node: 1.5 if node.inputs[1].shape[0] == 32 else 0.5), static=False)  # type: ignore[union-attr,index]
    assert said(result) == {"wide": "stored as int8, int8 not faster here", "slim": "multiplied as int8"}
    assert str(result.replay) == "quant(gate=off, weights_only=wide, reduce_range=off)"
    assert result.replay is not None
    result.replay.call(made, Context())
    assert to_proto(made).SerializeToString() == to_proto(first).SerializeToString()


def test_nothing_is_timed_without_an_engine_or_with_the_gate_off_or_for_weights_alone() -> None:
    runtime = engine(lambda node: 2.0)
    gated(models.model(PRODUCTS), runtime, static=False, activations="none")
    for options in ({"gate": "off"}, {"exclude": ".*"}):
        result = gated(models.model(PRODUCTS), runtime, static=False, **options)
        assert result.replay == Quant(**{"reduce_range": "off", "gate": "off", **options})  # type: ignore[arg-type]
        assert not result.numbers
    assert not type(runtime).prepared
    result = Quant().call(models.model(PRODUCTS), Context())
    assert set(said(result).values()) == {"multiplied as int8"}


def test_another_target_than_this_machine_is_not_timed_and_that_is_said() -> None:
    runtime, made = engine(lambda node: 2.0), models.model(PRODUCTS)
    result = Quant().call(made, Context(runtime=runtime, target="mcu"))
    assert not type(runtime).prepared
    assert result.numbers == {"gate": "nothing timed, the target mcu isn't this machine"}
    assert set(said(result).values()) == {"multiplied as int8"}
    assert str(result.replay) == "quant(gate=off, reduce_range=off)"


def test_a_slow_model_is_run_six_times_once_the_time_is_over() -> None:
    began, made = CLOCK.now, models.model(NETWORK)
    result = gated(made, engine(lambda node: 20_000.0), min_size=0, seconds=1.0)
    assert result.numbers["layers not timed"] == 3
    slow = 1 + 4 + 3  # layers: the first, the whole, the whole without the first
    assert CLOCK.now - began == pytest.approx((2 + 6) * slow * 20, rel=0.01)


def test_layers_that_are_alike_are_timed_once() -> None:
    body = " ".join(f"[l{n}] v{n + 1} = Conv<pads=[1, 1, 1, 1]>(v{n}, w{n})" for n in range(6))
    weights = ", ".join(f"float[8, 8, 3, 3] w{n} = {{}}" for n in range(6))
    made = models.model(f"net (float[N, 8, 8, 8] v0) => (float[N, 8, 8, 8] v6) <{weights}> {{ {body} }}")
    runtime = engine(lambda node: 0.5)
    data = load_data([{"v0": each["x"]} for each in samples()], made)
    result = Quant().call(made, Context(calibration=data, runtime=runtime))
    assert set(said(result).values()) == {"computes with int8"}
    assert len(type(runtime).prepared) == 4  # a layer and the whole, both ways


def test_when_the_time_for_parts_is_over_the_whole_decides() -> None:
    for cost, expected in ((0.5, "computes with int8"), (1.5, "the model is not faster with int8 here")):
        made = models.model(NETWORK)
        result = gated(made, engine(lambda node, cost=cost: cost), min_size=0, seconds=0.0)  # type: ignore[misc]
        assert result.numbers["layers not timed"] == 3
        assert all(expected in what for layer, what in said(result).items() if layer != "first")
        repeated = "" if cost < 1 else ", weights_only='.*'"
        assert (
            result.numbers["repeat"]
            == f"quant(min_size=0, gate=off, seconds=0.0{repeated}, reduce_range=off)"
        )


def test_a_model_of_open_sizes_is_timed_at_those_of_the_data() -> None:
    text = NETWORK.replace("float[N, 8, 8, 8] x", "float[N, 8, H, W] x")
    made = models.model(text)
    copy = sized(made, {"x": np.zeros((3, 8, 6, 5), np.float32)})
    shapes = {value.name: tuple(value.shape or ()) for node in copy.graph for value in node.outputs}
    assert (shapes["c2"], shapes["p"]) == ((3, 8, 6, 5), (3, 8, 1, 1))
    result = gated(made, engine(grouped_is_slow), min_size=0)
    assert "layers not timed" not in result.numbers


def test_the_whole_is_timed_with_the_batch_that_is_asked_for() -> None:
    made = models.model(NETWORK)
    given = samples()[0]
    found = batched(made, given, 5)["x"]
    assert found.shape == (5, 8, 8, 8)
    np.testing.assert_array_equal(found[2:4], given["x"])
    sizes: set[int] = set()

    def cost(node: ir.Node) -> float:
        shape = node.outputs[0].shape
        sizes.add(shape[0] if shape is not None else 0)  # type: ignore[arg-type]
        return 0.3

    gated(made, engine(cost), min_size=0, batch=5)
    assert sizes == {5}
    fixed = models.model(NETWORK.replace("[N, 8", "[2, 8").replace("[N, 10]", "[2, 10]"))
    with pytest.raises(UsageError, match=r"^quant: batch is 5, but x takes 2 samples$"):
        gated(fixed, engine(cost), min_size=0, batch=5)


def test_a_layer_is_timed_with_what_its_integer_form_does() -> None:
    made = models.model(NETWORK)
    nodes = {node.name: node for node in made.graph if node.name}
    assert [node.op_type for node in bounded(nodes["first"])] == ["Conv", "Relu"]
    assert [node.op_type for node in bounded(nodes["point"])] == ["Conv"]
    whole = Context(calibration=load_data(samples(), made), runtime=OnnxRuntime())
    Quant(gate="off", correct=False).call(made, whole)
    (first,) = [node for node in made.graph if node.name == "first"]
    kinds = [node.op_type for node in between(first)]
    assert kinds == ["DequantizeLinear", "DequantizeLinear", "Conv", "QuantizeLinear"]


def test_a_pattern_for_names_takes_them_literally() -> None:
    assert either("fc.*", ["b+", "a"]) == r"fc.*|a|b\+"
    assert either("", []) == ""


def test_a_file_made_with_the_gate_is_repeated_by_the_recipe_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # real time: whatever is decided must be repeated
    paths, recipe = [tmp_path / "first.onnx", tmp_path / "second.onnx"], "quant"
    for path in paths:
        compress(
            TESTDATA / "lenet5_digits.onnx",
            recipe,
            data=str(TESTDATA / "digits_calib.npz") + "[:8]",
            output=path,
            measure_latency=False,
        )
        recipe = {each.key: each.value for each in onnx.load(path).metadata_props}["onnxcompress.recipe"]
        assert recipe.startswith("quant(gate=off")
    assert paths[0].read_bytes() == paths[1].read_bytes()
