import json
from pathlib import Path

import models
import numpy as np
import pytest

from onnxcompress import Context, UsageError
from onnxcompress.model import load, weight_bytes
from onnxcompress.passes import Encode, Prune, Quant
from onnxcompress.trials import Sensitivity, only, sensitivity, units

TESTDATA = Path(__file__).parent.parent / "testdata"
LENET = TESTDATA / "lenet300_digits.onnx"
CALIB, TEST = TESTDATA / "digits_calib.npz", TESTDATA / "digits_test.npz"
TIED = """
g (float[1, 4] x) => (float[1, 4] y) <float[4, 4] w, float[4, 4] v> {
  [first] a = MatMul(x, w)
  [second] b = MatMul(a, v)
  [third] y = MatMul(b, w)
}
"""


def tied() -> object:
    draw = np.random.default_rng(0)
    return models.model(TIED, {name: draw.normal(size=(4, 4)).astype(np.float32) for name in ("w", "v")})


@pytest.fixture(scope="module")
def found() -> Sensitivity:
    schemes = [Quant(activations="none"), Prune(sparsity=0.95)]
    return sensitivity(LENET, schemes, data=CALIB, evaluation=TEST)


def test_every_layer_meets_every_scheme_alone(found: Sensitivity) -> None:
    names = [row.layer for row in found.rows]
    assert len(set(names)) == 3
    assert [row.scheme for row in found.rows] == ["quant(activations=none)", "prune(sparsity=0.95)"] * 3
    for row in found.rows:
        model = load(LENET)
        pass_ = only(
            next(p for p in (Quant(activations="none"), Prune(sparsity=0.95)) if str(p) == row.scheme),
            [row.layer],
            model,
        )
        result = pass_.call(model, Context())
        assert [record.layer for record in result.records if record.changed] in ([row.layer], [])


def test_the_harsher_scheme_loses_more_and_saves_more(found: Sensitivity) -> None:
    mild, harsh = found.rows[0], found.rows[1]
    assert mild.comparison is not None
    assert harsh.comparison is not None
    assert mild.comparison.snr > harsh.comparison.snr + 10
    assert mild.comparison.top1 is not None
    assert mild.saved < harsh.saved


def test_bytes_saved_are_those_of_the_weight_stored_the_smallest_way(found: Sensitivity) -> None:
    model = load(LENET)
    row = found.rows[0]
    Encode().call(model, Context(exclude=tuple({each.layer for each in found.rows[2:]})))
    before = weight_bytes(model)
    model = load(LENET)
    only(Quant(activations="none"), [row.layer], model).call(model, Context())
    assert before - weight_bytes(model) == pytest.approx(row.saved, rel=0.2)


def test_layers_that_share_a_weight_are_one_row() -> None:
    model = tied()
    assert [unit.layers for unit in units(model, Context())] == [("first", "third"), ("second",)]
    assert [unit.layers for unit in units(model, Context(exclude=("first",)))] == [("second",)]


def test_a_layer_that_a_scheme_leaves_alone_says_why() -> None:
    rows = sensitivity(tied(), "quant(activations=none)").rows
    assert [row.what for row in rows] == ["fewer than 256 elements"] * 2
    assert all(row.comparison is None and row.saved == 0 for row in rows)


def test_what_a_report_holds_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    steps: list[str] = []
    options = {
        "evaluation": f"{TEST}[:32]",
        "report_file": path,
        "progress": lambda *told: steps.append(told[2]),
    }
    first = sensitivity(LENET, "quant(activations=none)", **options)  # type: ignore[arg-type]
    document = json.loads(path.read_text())
    assert document["schema"] == 1
    document["rows"][0]["saved"] = -1
    path.write_text(json.dumps(document))
    again = sensitivity(LENET, "quant(activations=none)", **options)  # type: ignore[arg-type]
    assert again.rows[0].saved == -1
    assert again.rows[1:] == first.rows[1:]
    other = sensitivity(LENET, "quant(activations=none)", **{**options, "evaluation": f"{TEST}[32:64]"})  # type: ignore[arg-type]
    assert other.rows[0].saved == first.rows[0].saved


def test_a_file_that_is_no_report_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(UsageError, match="expected another file"):
        sensitivity(tied(), "quant", report_file=path)
    assert path.read_text() == "{}"


def test_only_lossy_passes_for_single_layers_are_schemes() -> None:
    for text in ("simplify", "quant,encode", "quant|quant", "encode|quant"):
        with pytest.raises(UsageError):
            sensitivity(tied(), text)


def test_an_own_exclude_of_a_scheme_stays() -> None:
    pass_ = only(Quant(exclude="second"), ["first", "third"], tied())
    assert pass_.exclude == "second|second"  # type: ignore[attr-defined]
