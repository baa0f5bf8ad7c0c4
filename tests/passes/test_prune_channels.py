from pathlib import Path

import light
import masking
import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Result
from onnxcompress.errors import UsageError
from onnxcompress.model import clone, load, to_proto, weight_bytes
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


CHAIN = """net (float[N,3,6,6] x) => (float[N,4,6,6] y)
<float[16,3,3,3] a = {}, float[16] d = {}, float[8,16,3,3] b = {}, float[4,8,1,1] c = {}>
{ [a] p = Conv<pads=[1,1,1,1]>(x, a, d) [r] q = Relu(p) [b] s = Conv<pads=[1,1,1,1]>(q, b)
  [c] y = Conv(s, c) }"""


def shapes(result: Result) -> dict[str, list[int]]:
    return {
        name: list(value.shape.numpy())
        for name, value in result.model.graph.initializers.items()
        if value.shape is not None
    }


def test_removes_the_channels_with_the_smallest_weights() -> None:
    made = models.model(CHAIN)
    weight = made.graph.initializers["a"].const_value
    assert weight is not None
    result = PruneChannels(ratio=0.25).call(made, Context())
    assert shapes(result) == {"a": [12, 3, 3, 3], "d": [12], "b": [6, 12, 3, 3], "c": [4, 6, 1, 1]}
    norms = np.sqrt((weight.numpy() ** 2).sum(axis=(1, 2, 3)))
    (record,) = [each for each in result.records if each.layer == "a"]
    assert masking.numbers(str(record.numbers["outputs_removed"])) == sorted(np.argsort(norms)[:4].tolist())


def test_never_removes_all_channels_of_a_layer() -> None:
    result = PruneChannels(ratio=1.0).call(models.model(CHAIN), Context())
    assert shapes(result) == {"a": [1, 3, 3, 3], "d": [1], "b": [1, 1, 3, 3], "c": [4, 1, 1, 1]}


def test_leaves_excluded_layers_and_what_they_read_alone_and_says_so() -> None:
    result = PruneChannels(exclude="b").call(models.model(CHAIN), Context())
    assert shapes(result) == {"a": [16, 3, 3, 3], "d": [16], "b": [8, 16, 3, 3], "c": [4, 8, 1, 1]}
    assert [(each.layer, each.what) for each in result.records] == [
        ("b", "excluded"),
        ("a", "excluded: b (Conv)"),
        ("c", "graph output y"),
    ]


def test_masks_alone_compute_the_same_as_the_removal() -> None:
    made = load(TESTDATA / "residual_digits.onnx")
    given = masking.feeds(made)
    removed, masked = clone(made), clone(made)
    PruneChannels().call(removed, Context())
    result = PruneChannels(apply=False).call(masked, Context())
    assert weight_bytes(masked) >= weight_bytes(made)
    assert result.modified
    (one,), (other,) = (masking.outputs(to_proto(each), given) for each in (removed, masked))
    assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


@pytest.mark.parametrize("score", ["activation", "energy"])
def test_scores_of_activations_need_calibration_data(score: str) -> None:
    with pytest.raises(UsageError, match=f"score={score} needs calibration data"):
        PruneChannels(score=score).call(models.model(CHAIN), Context())


def test_what_can_be_removed_ends_at_a_ratio_of_zero() -> None:
    result = PruneChannels(ratio=0.0).call(models.model(CHAIN), Context())
    assert not result.modified
    assert {each.what for each in result.records} == {"no channel to spare", "graph output y"}
