from pathlib import Path

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context, Pass, Record
from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.layers import put_constant
from onnxcompress.model import clone, load, save
from onnxcompress.passes import CorrectBias, Fuse, Prune, PruneChannels, Quant, Simplify
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

TESTDATA = Path(__file__).parent.parent.parent / "testdata"
NETWORK = """net (float[N, 4, 8, 8] x) => (float[N, 5] y)
<float[6, 4, 3, 3] w = {}, float[6] b = {}, float[6, 6, 1, 1] v = {}, float[384, 5] u = {}, float[5] c = {}>
{
    [one] h = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    r = Relu(h)
    [two] s = Conv(r, v)
    f = Flatten(s)
    [three] m = MatMul(f, u)
    y = Add(m, c)
}"""


def feeds() -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(3)
    return [{"x": draw.random((1, 4, 8, 8), np.float32)} for _ in range(32)]


def context(made: ir.Model) -> Context:
    return Context(calibration=load_data(feeds(), made), runtime=OnnxRuntime())


def run(made: ir.Model, reference: Path | str, **options: str) -> dict[str, Record]:
    result = CorrectBias(reference=str(reference), **options).call(made, context(made))
    return {record.layer: record for record in result.records}


def lowered(tmp_path: Path) -> tuple[ir.Model, ir.Model, Path]:
    """A model, the same with smaller weights, and the file of the first."""
    made = models.model(NETWORK)
    path = tmp_path / "whole.onnx"
    save(made, path)
    changed = clone(made)
    for name in ("w", "v", "u"):
        value = changed.graph.initializers[name]
        put_constant(value, ir.tensor(value.const_value.numpy() - np.float32(0.1), name=name))  # type: ignore[union-attr]
    return made, changed, path


def means(made: ir.Model, names: list[str]) -> list[np.ndarray]:
    runnable = OnnxRuntime().prepare(made, outputs=names)
    runs = [runnable.run(feed) for feed in feeds()]
    arrays = [np.concatenate([run[name] for run in runs]) for name in names]
    return [each.mean(axis=tuple(axis for axis in range(each.ndim) if axis != 1)) for each in arrays]


def test_outputs_get_their_means_back_layer_by_layer(tmp_path: Path) -> None:
    made, changed, path = lowered(tmp_path)
    names = ["h", "s", "y"]
    wanted, before = means(made, names), means(changed, names)
    records = run(changed, path)
    assert {name: each.what for name, each in records.items()} == dict.fromkeys(
        ("one", "two", "three"), "mean corrected"
    )
    for aim, was, now in zip(wanted, before, means(changed, names), strict=True):
        assert np.abs(was - aim).max() > 0.05
        np.testing.assert_allclose(now, aim, atol=0.05 * np.abs(was - aim).max() + 1e-4)


def test_a_pruned_network_loses_less(tmp_path: Path) -> None:
    made = load(TESTDATA / "branch_digits.onnx")
    pruned = Prune(sparsity=0.6).call(clone(made), Context()).model
    corrected = clone(pruned)
    data = load_data(TESTDATA / "digits_calib.npz", made)
    given = Context(calibration=data, runtime=OnnxRuntime())
    CorrectBias(reference=str(TESTDATA / "branch_digits.onnx")).call(corrected, given)
    test = load_data(TESTDATA / "digits_test.npz", made, batch=64)
    lost = []
    for each in (pruned, corrected):
        runnables = [OnnxRuntime().prepare(model) for model in (made, each)]
        outputs = [[next(iter(one.run(feed).values())) for feed in test] for one in runnables]
        lost.append(sum(float(np.sum((a - b) ** 2)) for a, b in zip(*outputs, strict=True)))
    assert lost[1] < 0.97 * lost[0]


def test_a_second_run_moves_little(tmp_path: Path) -> None:
    _, changed, path = lowered(tmp_path)
    run(changed, path)
    before = means(changed, ["y"])[0]
    run(changed, path)
    np.testing.assert_allclose(means(changed, ["y"])[0], before, atol=0.02)


def test_excluded_quantized_and_unknown_layers_stay_and_it_says_so(tmp_path: Path) -> None:
    _, changed, path = lowered(tmp_path)
    assert run(clone(changed), path, exclude="one")["one"].what == "excluded"
    Quant(activations="none", min_size=1).call(changed, Context())
    assert not any(record.changed for record in run(changed, path).values())
    other = models.model(NETWORK.replace("s = Conv", "other = Conv").replace("Flatten(s)", "Flatten(other)"))
    record = run(other, path)["two"]
    assert (record.changed, record.what) == (False, "the reference computes nothing of that name")


def test_layers_that_compute_what_they_did_stay(tmp_path: Path) -> None:
    made, _, path = lowered(tmp_path)
    same = clone(made)
    assert {record.what for record in run(same, path).values()} == {"it computes what it did"}
    np.testing.assert_array_equal(models.run(made, feeds()[0])[0], models.run(same, feeds()[0])[0])
    value = same.graph.initializers["v"]
    put_constant(value, ir.tensor(value.const_value.numpy() * np.float32(0.9), name="v"))  # type: ignore[union-attr]
    whats = {name: record.what for name, record in run(same, path).items()}
    assert whats["one"] == "it computes what it did"
    assert whats["two"] == whats["three"] == "mean corrected"


def test_it_needs_a_reference_data_and_equal_inputs(tmp_path: Path) -> None:
    _, changed, path = lowered(tmp_path)
    with pytest.raises(UsageError, match="no reference, expected reference=FILE"):
        run(changed, "")
    with pytest.raises(UsageError, match="needs calibration data, as no BatchNormalization tells"):
        CorrectBias(reference=str(path)).call(changed, Context())
    with pytest.raises(CompressError, match="nowhere"):
        run(changed, tmp_path / "nowhere.onnx")
    text = NETWORK.replace("8] x)", "8] z)").replace("(x, w", "(z, w")
    save(models.model(text), tmp_path / "other.onnx")
    with pytest.raises(CompressError, match="has an input z, the model has not"):
        run(changed, tmp_path / "other.onnx")


def outputs(made: ir.Model) -> np.ndarray:
    test = load_data(TESTDATA / "digits_test.npz", made, batch=64)
    runnable = OnnxRuntime().prepare(made)
    return np.concatenate([next(iter(runnable.run(feed).values())) for feed in test])


@pytest.mark.parametrize("before", [None, Fuse(), Simplify()])
@pytest.mark.parametrize("name", ["bottleneck_digits", "residual_digits", "shufflenet_digits"])
def test_without_data_batch_normalization_tells_the_means(name: str, before: Pass | None) -> None:
    path = TESTDATA / f"{name}.onnx"
    made = load(path)
    wanted = outputs(made)
    if before is not None:
        made = before.call(made, Context()).model
    pruned = Prune(sparsity=0.5).call(made, Context()).model
    corrected = clone(pruned)
    result = CorrectBias(reference=str(path)).call(corrected, Context())
    whats = {record.what for record in result.records}
    assert "mean corrected by statistics" in whats
    assert whats <= {
        "mean corrected by statistics",
        "it computes what it did",
        "its own weight is what it was",
        "its mean is what it was",
        "no BatchNormalization tells the means of what it reads",
        "the reference computes it otherwise",
    }
    lost, after = outputs(pruned), outputs(corrected)
    assert np.sum((after - wanted) ** 2) < 0.7 * np.sum((lost - wanted) ** 2)
    again = CorrectBias(reference=str(path)).call(corrected, Context())
    assert not any(record.changed for record in again.records)


def test_without_data_a_weight_of_another_form_stays(tmp_path: Path) -> None:
    path = TESTDATA / "residual_digits.onnx"
    made = PruneChannels(ratio=0.5).call(load(path), Context()).model
    records = CorrectBias(reference=str(path)).call(made, Context()).records
    assert "the reference has a weight of another form" in {record.what for record in records}
    assert not any(record.changed for record in records if record.what.startswith("the reference"))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("before", [Fuse(), Simplify()])
def test_a_model_that_only_folded_what_follows_layers_keeps_its_outputs(
    before: Pass, calibrated: bool
) -> None:
    path = TESTDATA / "residual_digits.onnx"
    made = load(path)
    wanted = outputs(made)
    made = before.call(made, Context()).model
    data = load_data(TESTDATA / "digits_calib.npz", made)
    given = Context(calibration=data, runtime=OnnxRuntime()) if calibrated else Context()
    CorrectBias(reference=str(path)).call(made, given)
    np.testing.assert_allclose(outputs(made), wanted, atol=1e-3)
