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


def outputs(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(proto, full_check=True)
    return list(onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds))


def feeds(made: ir.Model, batch: int = 2) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    found = {}
    for port in signature(made).inputs:
        assert port.shape is not None
        dims = [each if isinstance(each, int) else batch for each in port.shape]
        found[port.name] = draw.standard_normal(dims).astype(np.float32)
    return found


def pruned_and_masked(
    made: ir.Model, options: dict[str, object] | None = None
) -> tuple[ir.Model, list[Record]]:
    """Prune, and see that the outputs are those of the model of the same size whose channels are masked."""
    after = clone(made)
    result = PruneChannels(**(options or {})).call(after, Context())
    given = feeds(made)
    expected = outputs(masking.masked(to_proto(made), result.records), given)
    found = outputs(to_proto(after), given)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()
    assert signature(after) == signature(made)
    return after, result.records


def share(before: ir.Model, after: ir.Model) -> float:
    return weight_bytes(after) / weight_bytes(before)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", light.NAMES)
def test_a_pruned_architecture_computes_what_masks_would(name: str, score: str) -> None:
    made = load(light.build(name, WIDTH.get(name, 4)))
    after, records = pruned_and_masked(made, {"score": score})
    assert share(made, after) <= 0.65
    reasons = {record.what for record in records if not record.changed}
    assert all(reasons)
    if name in ("bvlc_alexnet", "inception_v1", "zfnet512"):
        assert any("(LRN)" in reason for reason in reasons)


@pytest.mark.parametrize("score", ["l2", "random"])
@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_classifier_computes_what_masks_would(name: str, score: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    after, records = pruned_and_masked(made, {"score": score})
    if name == "branch_digits":
        assert "is read inside a body" in " ".join(record.what for record in records)
    else:
        assert share(made, after) < 0.7
