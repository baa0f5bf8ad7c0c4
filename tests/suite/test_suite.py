"""Every built-in pass x every runtime x every model of testdata: valid, same signature, within the bound."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxcompress import Context, Effect
from onnxcompress.data import Data, load_data
from onnxcompress.model import clone, load, signature, to_proto
from onnxcompress.registry import passes, runtimes
from onnxcompress.verify import Tolerance, compare

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))

# Without retraining, compact networks lose more than bounds can tell from a fault at the default sparsity.
OPTIONS: dict[str, dict[str, object]] = {
    "prune": {"sparsity": 0.2},
    "prune-channels": {"ratio": 0.05, "multiple_of": 1, "score": "energy", "repair": "least-squares"},
    "factorise": {"energy": 0.99},
    "shuffle": {"groups": 2, "repair": "least-squares"},
    "quant": {"gate": "off", "reduce_range": "off"},
}
# What a lossy pass may do: signal-to-noise ratio of the logits in dB, at least, and how much of
# the accuracy on the held-out digits, in points, may go.
BOUNDS = {
    "prune": (10.0, 4.0),
    "prune-channels": (6.0, 4.0),
    "factorise": (12.0, 3.2),  # two of 64 digits
    "shrink-kernels": (20.0, 1.0),
    "shuffle": (6.0, 4.0),
    "cluster": (15.0, 2.0),
    "quant": (20.0, 1.6),  # one of 64 digits
    "correct-bias": (18.0, 1.0),
}


@cache
def case(name: str) -> tuple[ir.Model, Data, Data]:
    model = load(TESTDATA / f"{name}.onnx")
    return (
        model,
        load_data(TESTDATA / "digits_calib.npz", model),
        load_data(TESTDATA / "digits_test.npz", model, batch=64),
    )


@cache
def rewritten(name: str, pass_name: str) -> ir.Model:
    model, calibration, _ = case(name)
    model = clone(model)
    runtime = runtimes()["onnxruntime"].make()
    context = Context(calibration=calibration, runtime=runtime)
    options = OPTIONS.get(pass_name, {})
    if pass_name == "correct-bias":
        options = {"reference": str(TESTDATA / f"{name}.onnx")}
    return passes()[pass_name](**options).call(model, context).model


def take(data: Data, runtime: str) -> Data:
    return data if runtime == "onnxruntime" else data.take(1)  # 64 digits: numpy is slow


def test_models_are_there() -> None:
    assert len(MODELS) >= 9


@pytest.mark.parametrize("runtime", list(runtimes()))
@pytest.mark.parametrize("pass_name", list(passes()))
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_keeps_the_model_valid_and_its_outputs_in_bounds(
    name: str, pass_name: str, runtime: str
) -> None:
    model, _, test = case(name)
    after = rewritten(name, pass_name)
    assert signature(after) == signature(model)
    onnx.checker.check_model(to_proto(after), full_check=True)
    engine = runtimes()[runtime].make()
    data = take(test, runtime)
    found = compare(engine.prepare(model), engine.prepare(after), data, labels=data.labels)
    if passes()[pass_name].effect is Effect.EXACT:
        assert found.exact
        return
    snr, points = BOUNDS[pass_name]
    assert found.top1 is not None
    before, now = found.top1
    assert found.snr >= snr
    assert 100 * (before - now) <= points


@pytest.mark.parametrize("name", MODELS)
def test_the_two_runtimes_agree(name: str) -> None:
    model, _, test = case(name)
    engines: list[Callable[[], object]] = [each.make for each in runtimes().values()]
    first, second = (each().prepare(model) for each in engines)  # type: ignore[attr-defined]
    assert compare(first, second, test.take(1), tolerance=Tolerance(rtol=1e-4)).exact
