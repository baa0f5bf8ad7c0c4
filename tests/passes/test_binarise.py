import numpy as np
import pytest
from models import run, snr
from rounded import calibrated, feeds, network, records, weight

from onnxcompress.base import Context
from onnxcompress.errors import CompressError
from onnxcompress.passes import Binarise, Encode, Ternarise
from onnxcompress.runtimes.interpreter import Interpreter


def test_each_output_channel_holds_the_mean_of_its_magnitudes_with_the_signs_it_had() -> None:
    made = network()
    found = records(Binarise(min_size=0), made)
    for layer, axis in (("middle", 0), ("turned", 1)):
        before, after = weight(network(), layer), weight(made, layer)
        np.testing.assert_array_equal(np.sign(after), np.sign(before))
        means = np.abs(before).mean(axis=axis, keepdims=True)
        np.testing.assert_allclose(np.abs(after), np.broadcast_to(means, after.shape), rtol=1e-6)
        assert (found[layer].changed, found[layer].what) == (True, "binarised")
        assert found[layer].numbers["snr"] == pytest.approx(snr(before, after))
    records(Binarise(min_size=0, per_channel=False), made := network())
    assert len(np.unique(weight(made, "turned"))) == 2


def test_leaves_first_last_small_and_excluded_layers_alone_and_says_so() -> None:
    made = network()
    found = records(Binarise(exclude="tu.*", min_size=300), made)
    said = {name: record.what for name, record in found.items() if not record.changed}
    assert said == {
        "first": "a first or last layer",
        "last": "a first or last layer",
        "table": "too small",
        "depthwise": "too small",
        "again": "tied to middle, done there",
        "turned": "excluded",
    }
    everything = records(Binarise(keep_ends=False, min_size=0), network())
    assert [name for name, record in everything.items() if not record.changed] == ["again"]


@pytest.mark.parametrize("importance", ["equal", "inputs"])
def test_a_second_run_is_idle(importance: str) -> None:
    made = network()
    each = Binarise(min_size=0, keep_ends=False, importance=importance)
    assert each.call(made, calibrated(made)).modified
    assert not each.call(made, calibrated(made)).modified


def test_ternary_weights_are_kept_and_binary_ones_are_ternary() -> None:
    made = network()
    Binarise(min_size=0).call(made, Context())
    assert not Ternarise(min_size=0).call(made, Context()).modified


def test_outputs_are_nearer_where_errors_of_outputs_are_made_least() -> None:
    (expected, _), found = run(network(), feeds()), {}
    for importance in ("equal", "inputs"):
        made = network()
        each = Binarise(importance=importance, min_size=0, exclude="depthwise|middle")
        each.call(made, calibrated(made))
        found[importance] = snr(expected, run(made, feeds())[0])
    assert found["inputs"] > found["equal"] + 3


def test_refuses_importance_without_data() -> None:
    with pytest.raises(CompressError, match="importance=inputs needs calibration data, none was given"):
        Binarise(importance="inputs", min_size=0).call(network(), Context())


def test_encode_stores_it_in_one_bit_and_the_interpreter_multiplies_by_magnitudes_only() -> None:
    made = network()
    Binarise(min_size=500).call(made, Context())
    result = Encode(format="binary").call(made, Context())
    (record,) = (each for each in result.records if each.layer == "w3")
    assert record.changed
    assert float(record.numbers["stored"]) < 128 * 24 / 8 + 128 * 4 + 150  # bits, magnitudes, names
    runnable = Interpreter(compressed=True).prepare(made)
    found = runnable.run(feeds(4))
    np.testing.assert_allclose(found["y"], run(made, feeds(4))[0], rtol=1e-4, atol=1e-5)
    counts = runnable.counts["turned (Gemm)"]
    assert counts.multiply_adds == 4 * 128
    assert counts.adds == 4 * 128 * 24
