from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import run, snr
from rounded import LEFT, calibrated, feeds, left, network, quality, records, weight

from onnxcompress import compress
from onnxcompress.base import Context
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.passes import Encode, Prune, Ternarise
from onnxcompress.runtimes.interpreter import Interpreter

LENET = Path(__file__).parent.parent.parent / "testdata" / "lenet5_digits.onnx"


def test_each_output_channel_holds_zero_and_one_magnitude() -> None:
    made = network()
    found = records(Ternarise(min_size=0), made)
    for layer, channels in (("middle", "columns"), ("turned", "rows"), ("depthwise", "rows")):
        after = weight(made, layer)
        for channel in after.T if channels == "columns" else after:
            magnitude = np.abs(channel).max()
            assert set(np.unique(channel)) <= {0, magnitude, -magnitude}
        before = weight(network(), layer)
        assert (found[layer].changed, found[layer].what) == (True, "ternarised")
        assert found[layer].numbers["size"] == after.size
        assert found[layer].numbers["snr"] == pytest.approx(snr(before, after))
        assert found[layer].numbers["snr"] > 5
    assert len(np.unique(np.abs(weight(made, "middle")))) == 25


def test_one_magnitude_may_serve_the_whole_weight_and_either_sign_may_have_its_own() -> None:
    made = network()
    records(Ternarise(min_size=0, per_channel=False), made)
    assert len(np.unique(weight(made, "turned"))) == 3
    records(Ternarise(min_size=0, per_channel=False, scales="two"), made := network())
    values = np.unique(weight(made, "turned"))
    assert len(values) == 3
    assert values[0] != -values[2]


def test_leaves_first_and_last_small_and_excluded_layers_alone_and_says_so() -> None:
    made = network()
    assert left(Ternarise(exclude="tu.*", min_size=300), made) == LEFT
    for layer in LEFT.keys() - {"again"}:
        np.testing.assert_array_equal(weight(made, layer), weight(network(), layer))
    assert list(left(Ternarise(keep_ends=False, min_size=0), network())) == ["again"]


@pytest.mark.parametrize("importance", ["equal", "inputs"])
@pytest.mark.parametrize("scales", ["one", "two"])
def test_a_second_run_is_idle(scales: str, importance: str) -> None:
    made = network()
    each = Ternarise(min_size=0, keep_ends=False, scales=scales, importance=importance)
    assert each.call(made, calibrated(made)).modified
    again = each.call(made, calibrated(made))
    assert not again.modified
    assert again.records[0].what == "ternarised already"


def test_pruned_weights_stay_zero() -> None:
    made = network()
    Prune(sparsity=0.7, min_size=0).call(made, Context())
    zeros = weight(made, "turned") == 0
    Ternarise(min_size=0).call(made, Context())
    assert not weight(made, "turned")[zeros].any()


def test_outputs_are_nearer_where_errors_of_outputs_are_made_least() -> None:
    found = {
        importance: quality(Ternarise(importance=importance, min_size=0, exclude="depthwise|middle"))
        for importance in ("equal", "inputs")
    }
    assert found["inputs"] > found["equal"] + 3


def test_refuses_a_weight_with_nan_and_importance_without_data() -> None:
    made = network()
    spoiled = weight(made, "middle").copy()
    spoiled[0, 0] = np.nan
    made.graph.initializers["w2"].const_value = ir.tensor(spoiled, name="w2")
    with pytest.raises(CompressError, match="w2: the weight holds NaN or infinity"):
        Ternarise(min_size=0).call(made, Context())
    with pytest.raises(UsageError, match="importance=inputs needs calibration data, none was given"):
        Ternarise(importance="inputs", min_size=0).call(network(), Context())


def test_encode_stores_it_in_two_bits_and_the_interpreter_multiplies_by_magnitudes_only(
    tmp_path: Path,
) -> None:
    done = compress(LENET, "ternarise,encode(format=ternary)", output=tmp_path / "small.onnx", verify="off")
    stored = {record.layer: record.numbers for record in done.report.steps[-1].records if record.changed}
    ternary = [record for record in done.report.steps[0].records if record.changed]
    assert ternary
    assert len(stored) == len(ternary)
    for numbers in stored.values():
        assert float(numbers["stored"]) < float(numbers["bytes"]) / 32 * 2.2 + 300

    made = network()
    Ternarise(min_size=500).call(made, Context())
    Encode().call(made, Context())
    runnable = Interpreter(compressed=True).prepare(made)
    found = runnable.run(feeds(4))
    np.testing.assert_allclose(found["y"], run(made, feeds(4))[0], rtol=1e-4, atol=1e-5)
    counts = runnable.counts["turned (Gemm)"]
    assert counts.multiply_adds == 4 * 128  # one by the magnitude of each output
    assert counts.adds > 0
