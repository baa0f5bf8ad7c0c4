from pathlib import Path

import light
import masking
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxcompress.base import Context, Record
from onnxcompress.model import clone, load, signature, to_proto, weight_bytes
from onnxcompress.passes import PruneChannels

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
MODELS = sorted(path.stem for path in TESTDATA.glob("*.onnx"))
WIDTH = {"shufflenet": 1}  # groups of 34 channels can't be narrowed by four


def share(before: ir.Model, after: ir.Model) -> float:
    return weight_bytes(after) / weight_bytes(before)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", light.NAMES)
def test_a_pruned_architecture_computes_what_masks_would(name: str, score: str) -> None:
    made = load(light.build(name, WIDTH.get(name, 4)))
    after, records = masking.pruned_and_masked(made, {"score": score})
    assert share(made, after) <= 0.65
    reasons = {record.what for record in records if not record.changed}
    assert all(reasons)
    if name in ("bvlc_alexnet", "inception_v1", "zfnet512"):
        assert any("(LRN)" in reason for reason in reasons)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_classifier_computes_what_masks_would(name: str, score: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    after, records = masking.pruned_and_masked(made, {"score": score})
    if name == "branch_digits":
        assert "is read inside a body" in " ".join(record.what for record in records)
    else:
        assert share(made, after) < 0.7
