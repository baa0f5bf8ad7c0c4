import models
import onnx_ir as ir
import pytest
from factored import NETWORK, operators, run, smooth

from onnxcompress.base import Context
from onnxcompress.errors import UsageError
from onnxcompress.factors import METHODS
from onnxcompress.model import clone
from onnxcompress.runtimes.onnxruntime import OnnxRuntime


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
    assert records["large"].numbers["ratio_high"] < 0.99
    assert records["small"].what == "not faster here"
    assert records["small"].numbers["ratio_high"] >= 0.99
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
