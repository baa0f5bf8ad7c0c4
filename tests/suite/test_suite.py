"""Every built-in pass x every runtime x every model of testdata: valid, same signature, within the bound."""

from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxcompress import Context, Effect
from onnxcompress.base import Runtime
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
    "quant-blocks": {"when": "always"},  # what is faster differs from run to run in models this small
    "ternarise": {"scales": "two", "importance": "inputs", "min_size": 4096},
    "binarise": {"importance": "inputs", "min_size": 16384},
    "quant": {"gate": "off", "reduce_range": "off"},
}
FEEDS = {"ternarise": 100, "binarise": 100}  # of the calibration data; others take all
# What a lossy pass may do: signal-to-noise ratio of the logits in dB, at least, and how much of
# the accuracy on the held-out digits, in points, may go.
BOUNDS = {
    "prune": (10.0, 4.0),
    "prune-channels": (6.0, 4.0),
    "factorise": (12.0, 3.2),  # two of 64 digits
    "shrink-kernels": (20.0, 1.0),
    "shuffle": (6.0, 4.0),
    "cluster": (15.0, 2.0),
    "ternarise": (4.0, 8.0),
    "binarise": (1.5, 40.0),
    "quant-log": (4.0, 7.0),
    "quant-fixed": (25.0, 1.0),
    "quant": (20.0, 1.6),  # one of 64 digits
    "quant-blocks": (15.0, 2.0),
    "correct-bias": (10.0, 4.0),
    "cast": (50.0, 0.0),
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
    context = Context(calibration=calibration.take(FEEDS.get(pass_name, len(calibration))), runtime=runtime)
    options = OPTIONS.get(pass_name, {})
    if pass_name == "correct-bias":  # of what another pass has changed
        options = {"reference": str(TESTDATA / f"{name}.onnx")}
        model = passes()["prune"](**OPTIONS["prune"]).call(model, context).model
    return passes()[pass_name](**options).call(model, context).model


def made(runtime: str) -> Runtime:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="openvino, an extra, is not installed")
    return runtimes()[runtime].make()


def take(data: Data, runtime: str) -> Data:
    return data if runtime != "interpreter" else data.take(1)  # 64 digits: numpy is slow


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
    engine = made(runtime)
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


@pytest.mark.parametrize("runtime", [each for each in runtimes() if each != "onnxruntime"])
@pytest.mark.parametrize("name", MODELS)
def test_the_runtimes_agree(name: str, runtime: str) -> None:
    model, _, test = case(name)
    first, second = (made(each).prepare(model) for each in ("onnxruntime", runtime))
    assert compare(first, second, test.take(1), tolerance=Tolerance(rtol=1e-4)).exact
