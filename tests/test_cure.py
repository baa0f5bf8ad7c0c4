import math

import models
import numpy as np
import onnx_ir as ir
import pytest
from test_drop import comparison

from onnxcompress import BoundError, compress
from onnxcompress.cure import hurt

CHAIN = """
g (float[N, 32] x) => (float[N, 32] y) <float[32, 32] u, float[32, 32] v, float[32, 32] w> {
  [first] a = MatMul(x, u)
  [second] b = MatMul(a, v)
  [third] y = MatMul(b, w)
}
"""
COARSE = "quant(activations=none, per_channel=false)"


def chain(outlier: float) -> ir.Model:
    """Return a chain whose second layer has a channel of `outlier` times the others' range, not read."""
    draw = np.random.default_rng(0)
    u, v, w = (draw.normal(size=(32, 32)).astype(np.float32) / 6 for _ in range(3))
    v[:, 0] *= outlier
    w[0] = 0
    made = models.model(CHAIN, {"u": u, "v": v, "w": w})
    made.graph.node("second").name = "conv.2"
    return made


def samples() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)


def advice(passes: str, outlier: float = 1000, **options: object) -> list[str]:
    made = compress(chain(outlier), passes, measure_latency=False, **options)  # type: ignore[arg-type]
    return [note for note in made.report.notes if "SNR" in note]


def test_the_layer_that_hurts_is_named_with_the_exclude_that_cures_it() -> None:
    (note,) = advice(COARSE, data=samples())
    assert note.startswith("conv.2 hurts most (SNR ")
    assert r"--exclude 'conv\.2' brings the outputs from " in note
    assert advice(COARSE, data=samples(), exclude=r"conv\.2") == []


def test_a_model_that_keeps_its_predictions_gets_no_advice() -> None:
    assert advice("quant(activations=none)", data=samples()) == []
    assert advice(COARSE) == []  # random inputs tell nothing


def test_layers_that_all_hurt_alike_are_not_blamed_on_one() -> None:
    (note,) = advice("cluster(bits=1)", outlier=1, data=samples())
    assert "leaving out no single layer brings 3 dB" in note
    assert "--exclude" not in note


def test_a_missed_bound_says_what_cures_it() -> None:
    with pytest.raises(BoundError, match=r"agreement: drops by .*, expected 1 at most; conv\.2 hurts most"):
        advice(COARSE, data=samples(), evaluation=samples(), metric="agreement", max_drop=1.0)


def test_hurt_is_told_by_predictions_and_else_by_noise() -> None:
    assert hurt(comparison(agreement=0.97, changed_predictions=3, predictions=100, snr=40.0))
    assert not hurt(comparison(agreement=0.97, changed_predictions=1, predictions=32, snr=40.0))
    assert not hurt(comparison(agreement=0.99, changed_predictions=2, predictions=200, snr=10.0))
    assert hurt(comparison(snr=15.0))
    assert not hurt(comparison(snr=25.0))
    assert not hurt(comparison(snr=15.0, random=True))
    assert not hurt(comparison(exact=True, snr=math.inf))
