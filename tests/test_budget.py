from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Runnable
from onnxcompress.budget import PAIRS, PrunedLatency, smallest
from onnxcompress.channels import find
from onnxcompress.data import load_data
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.model import clone
from onnxcompress.passes import PruneChannels
from onnxcompress.recipe import Recipe
from onnxcompress.runtimes import OnnxRuntime

HEAVY = """net (float[N,16,40,40] x) => (float[N,16,40,40] y)
<float[64,16,3,3] a = {}, float[16,64,3,3] b = {}>
{ [a] p = Conv<pads=[1,1,1,1]>(x, a) [r] q = Relu(p) [b] y = Conv<pads=[1,1,1,1]>(q, b) }"""


class Watched(OnnxRuntime):
    """onnxruntime, and a record of what it was asked for."""

    threads_asked: ClassVar[list[int]] = []
    models: ClassVar[list[ir.Model]] = []

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> Self:
        assert not frugal
        cls.threads_asked.append(threads)
        return cls(threads=threads)

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> Runnable:
        assert isinstance(model, ir.Model)
        self.models.append(model)
        return super().prepare(model, outputs)


@pytest.fixture
def watched() -> Watched:
    Watched.threads_asked.clear()
    Watched.models.clear()
    return Watched(threads=1)


def widths(model: ir.Model) -> list[int]:
    return [int(value.shape[0]) for value in model.graph.initializers.values() if value.shape is not None]


def test_halving_finds_the_smallest_ratio_to_a_thousandth() -> None:
    asked: list[float] = []

    def fits(ratio: float) -> bool:
        asked.append(ratio)
        return ratio >= 0.3

    found = smallest(fits)
    assert found is not None
    assert 0.3 <= found < 0.3 + 1 / 1024
    assert len(asked) == 11


def test_halving_ends_with_a_ratio_that_fits_where_some_larger_ones_do_not() -> None:
    def fits(ratio: float) -> bool:
        return ratio > 0.9 or 0.2 < ratio < 0.4

    found = smallest(fits)
    assert found is not None
    assert fits(found)


def test_halving_finds_nothing_where_the_largest_ratio_does_not_fit() -> None:
    assert smallest(lambda ratio: ratio < 0.5) is None


def test_a_stopwatch_runs_each_plan_once_with_the_threads_of_the_context(watched: Watched) -> None:
    model = models.model(HEAVY)
    stopwatch = PrunedLatency(model, Context(threads=1), watched)
    stay = np.ones(find(model).units.count, bool)
    first = stopwatch.time(stay)
    assert stopwatch.time(stay.copy()) is first
    assert first.pairs >= PAIRS
    assert 0 < first.low <= first.ratio <= first.high
    assert Watched.threads_asked == [1]
    assert len(Watched.models) == 2


def test_a_stopwatch_runs_one_sample_of_the_calibration_data(watched: Watched) -> None:
    model = models.model(HEAVY)
    images = np.random.default_rng(0).random((3, 16, 40, 40), np.float32)
    stopwatch = PrunedLatency(model, Context(calibration=load_data({"x": images}, model)), watched)
    assert np.array_equal(stopwatch.feeds["x"], images[:1])
    given: Mapping[str, np.ndarray] = PrunedLatency(model, Context(), watched).feeds
    assert given["x"].shape == (1, 16, 40, 40)


def test_random_values_are_refused_where_the_model_leaves_their_shape_open(watched: Watched) -> None:
    model = models.model(HEAVY.replace("N,16,40,40", "N,16,H,W"))
    with pytest.raises(UsageError, match="latency needs calibration data where inputs leave"):
        PrunedLatency(model, Context(), watched)


def test_a_latency_budget_is_kept_and_can_be_repeated_without_measuring(watched: Watched) -> None:
    made = models.model(HEAVY)
    context = Context(runtime=watched, threads=1, target="avx512")
    pruned = clone(made)
    result = PruneChannels(latency=0.85).call(pruned, context)
    numbers = result.numbers
    assert numbers["target"] == "avx512"
    assert numbers["threads"] == 1
    assert 0 < float(numbers["latency_low"]) <= float(numbers["latency"]) <= float(numbers["latency_high"])
    assert float(numbers["latency_high"]) <= 0.85
    assert widths(pruned)[0] in (16, 32, 48)
    assert len(Watched.models) <= 5  # the whole one and one for each width
    whole, *timed = result.widths
    assert (whole.channels, whole.ratio, whole.chosen) == (80, 1.0, False)
    assert len(timed) == len(Watched.models) - 1
    assert [each.channels for each in timed] == sorted((each.channels for each in timed), reverse=True)
    (chosen,) = (each for each in timed if each.chosen)
    assert (chosen.channels, chosen.ratio) == (widths(pruned)[0] + 16, numbers["latency"])
    again = clone(made)
    (pass_,) = Recipe.parse(str(numbers["repeat"])).passes
    repeated = pass_.call(again, Context(target="avx512"))
    assert repeated.records == result.records
    for name, value in pruned.graph.initializers.items():
        assert value.const_value is not None
        other = again.graph.initializers[name].const_value
        assert other is not None
        assert np.array_equal(value.const_value.numpy(), other.numpy())


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"latency": 0.001}, r"latency is 0\.\d+ \(.*\) of the original's .* expected 0.001"),
        ({"macs": 0.001}, r"macs are 0\.\d+ of the original's at least, expected 0.001"),
        ({"parameters": 0.001}, r"parameters are 0\.\d+ of the original's at least, expected 0.001"),
    ],
)
def test_a_budget_no_ratio_keeps_fails_and_changes_nothing(
    budget: dict[str, float], said: str, watched: Watched
) -> None:
    made = models.model(HEAVY)
    with pytest.raises(BoundError, match=f"^prune-channels: {said}"):
        PruneChannels(**budget).call(made, Context(runtime=watched, threads=1))
    assert widths(made) == [64, 16]


def test_a_latency_budget_without_a_runtime_is_refused() -> None:
    with pytest.raises(UsageError, match="latency needs a runtime"):
        PruneChannels(latency=0.5).call(models.model(HEAVY), Context())


def test_several_budgets_are_kept_at_once(watched: Watched) -> None:
    made = models.model(HEAVY)
    result = PruneChannels(latency=0.9, parameters=0.4).call(made, Context(runtime=watched, threads=1))
    assert widths(made)[0] <= 24
    assert float(result.numbers["latency_high"]) <= 0.9
