import numpy as np
import pytest
from models import run, snr
from rounded import LEFT, calibrated, feeds, left, network, quality, records, weight

from onnxcompress.base import Context
from onnxcompress.errors import CompressError
from onnxcompress.passes import Encode, QuantLog
from onnxcompress.runtimes.interpreter import Interpreter


@pytest.mark.parametrize(("base", "most"), [("two", 1 / 3), ("sqrt2", 0.18)])
def test_weights_are_powers_and_as_near_as_can_be(base: str, most: float) -> None:
    made = network()
    found = records(QuantLog(bits=5, base=base, min_size=0), made)
    for layer in ("first", "turned", "middle", "last", "depthwise", "table"):
        before, after = weight(network(), layer), weight(made, layer)
        powers = np.log2(np.abs(after[after != 0])) * (1 if base == "two" else 2)
        np.testing.assert_allclose(powers, np.rint(powers), atol=1e-5)
        assert powers.min() != powers.max()
        large = np.abs(after) > np.abs(after).max() / 32
        assert (np.abs(after - before)[large] <= most * np.abs(before)[large]).all()
        assert found[layer].numbers["snr"] == pytest.approx(snr(before, after))
    assert found["turned"].what == f"rounded to powers of {base}"
    assert found["again"].what == "tied to middle, done there"


def test_the_full_scale_is_that_of_a_channel_or_of_the_weight() -> None:
    scaled = weight(network(), "turned") * np.exp2(-np.arange(128, dtype=np.float32) / 4)[:, None]
    values = {}
    for per_channel in (True, False):
        made = network()
        made.graph.initializers["w3"].const_value = type(made.graph.initializers["w3"].const_value)(scaled)  # type: ignore[misc, call-arg, arg-type]
        QuantLog(per_channel=per_channel, min_size=0).call(made, Context())
        values[per_channel] = weight(made, "turned")
    assert (values[True] != 0).any(axis=1).all()
    assert not values[False][64:].any()
    assert len(np.unique(values[False])) <= 15


def test_leaves_small_excluded_and_where_wanted_end_layers_alone_and_says_so() -> None:
    assert left(QuantLog(exclude="tu.*", min_size=300, keep_ends=True), network()) == LEFT


@pytest.mark.parametrize("base", ["two", "sqrt2"])
@pytest.mark.parametrize("importance", ["equal", "inputs"])
def test_a_second_run_is_idle(importance: str, base: str) -> None:
    made = network()
    each = QuantLog(min_size=0, importance=importance, base=base)
    assert each.call(made, calibrated(made)).modified
    assert not each.call(made, calibrated(made)).modified


def test_outputs_are_nearer_with_more_bits_a_finer_base_and_errors_of_outputs_made_least() -> None:
    plain = quality(QuantLog(min_size=0, bits=3))
    assert quality(QuantLog(min_size=0, bits=4)) > plain
    assert quality(QuantLog(min_size=0, bits=5, base="sqrt2")) > quality(QuantLog(min_size=0, bits=5)) + 3
    assert quality(QuantLog(min_size=0, bits=3, importance="inputs")) > plain


def test_refuses_importance_without_data() -> None:
    with pytest.raises(CompressError, match="importance=inputs needs calibration data, none was given"):
        QuantLog(importance="inputs", min_size=0).call(network(), Context())


def test_encode_stores_exponents_and_the_interpreter_shifts_by_them() -> None:
    made = network()
    QuantLog(min_size=500).call(made, Context())
    result = Encode(format="logscale").call(made, Context())
    (record,) = (each for each in result.records if each.layer == "w3")
    assert record.changed
    assert float(record.numbers["stored"]) < 128 * 24 / 2 + 128 * 4 + 150  # codes, full scales, names
    runnable = Interpreter(compressed=True).prepare(made)
    found = runnable.run(feeds(4))
    np.testing.assert_allclose(found["y"], run(made, feeds(4))[0], rtol=1e-4, atol=1e-5)
    counts = runnable.counts["turned (Gemm)"]
    assert counts.shifts > 0
    assert counts.multiply_adds == 0
    assert counts.skipped == 4 * 128 * 24
