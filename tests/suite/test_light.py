"""The nine light_* architectures of the onnx package, narrow, with seeded weights, through every pass."""

from pathlib import Path

import light
import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcompress import compress
from onnxcompress.model import load, signature

WIDTH = {"shufflenet": 1}  # groups of 34 channels can't be narrowed by four


@pytest.mark.parametrize("name", light.NAMES)
def test_an_architecture_goes_through_every_pass(name: str, tmp_path: Path) -> None:
    given = light.build(name, WIDTH.get(name, 4))
    images = {given.graph.input[0].name: np.random.default_rng(1).random((4, 3, 224, 224), np.float32)}
    out = tmp_path / "out.onnx"
    result = compress(given, "simplify,prune,quant(gate=off)", data=images, output=out, measure_latency=False)
    before, after = load(given), load(out)
    assert signature(after) == signature(before)
    onnx.checker.check_model(out, full_check=True)
    for step in result.report.steps:
        assert step.comparison is not None
    for step in result.report.steps[1:]:
        assert any(record.changed for record in step.records)
    assert result.report.steps[0].comparison is not None
    assert result.report.steps[0].comparison.exact
    assert out.stat().st_size < 0.4 * given.ByteSize()
    session = onnxruntime.InferenceSession(out)
    (value,) = session.run(None, {name: array[:1] for name, array in images.items()})
    assert np.isfinite(value).all()
