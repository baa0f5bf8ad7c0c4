import models
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.base import Context, Record
from onnxcompress.errors import CompressError
from onnxcompress.passes import Prune
from onnxcompress.passes.prune import Cut, smallest, zero_up_to

TEXT = """<ir_version: 10, opset_import: ["": 17]>
agraph (float[N, 64] x, float[64, 64] given) => (float[N, 10] y, float[N, 64] z)
{
    [first] a = MatMul(x, w1)
    [again] b = MatMul(a, w1)
    [second] c = Gemm<transB=1>(b, w2, bias)
    [small] y = MatMul(c, w3)
    [dynamic] z = MatMul(x, given)
}"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "w1": draw.standard_normal((64, 64)).astype(np.float32),
        "w2": (10 * draw.standard_normal((32, 64))).astype(np.float32),
        "bias": draw.standard_normal(32).astype(np.float32),
        "w3": draw.standard_normal((32, 10)).astype(np.float32),
    }


def model(values: dict[str, np.ndarray] | None = None) -> ir.Model:
    made = ir.from_onnx_text(TEXT)
    for name, array in (values or weights()).items():
        value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        made.graph.initializers[name] = value
    return made


def held(made: ir.Model, name: str) -> np.ndarray:
    tensor = made.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def run(made: ir.Model, context: Context | None = None, **options: object) -> dict[str, Record]:
    result = Prune(**options).call(made, context or Context())  # type: ignore[arg-type]
    return {record.layer: record for record in result.records}


def test_zeroes_the_smallest_weights_of_each_layer() -> None:
    made = model()
    records = run(made, sparsity=0.75)
    for name, size in (("w1", 4096), ("w2", 2048)):
        before, after = weights()[name], held(made, name)
        gone = after == 0
        assert gone.sum() == int(0.75 * size)
        assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
        np.testing.assert_array_equal(after[~gone], before[~gone])
    assert records["first"].numbers == {"sparsity": 0.75, "size": 4096, "zeros": 3072}


def test_leaves_biases_small_and_computed_weights_alone_and_says_so() -> None:
    made = model()
    records = run(made)
    np.testing.assert_array_equal(held(made, "bias"), weights()["bias"])
    np.testing.assert_array_equal(held(made, "w3"), weights()["w3"])
    assert (records["small"].changed, records["small"].what) == (False, "too small")
    assert "dynamic" not in records


def test_a_tied_weight_is_pruned_once_and_stays_tied() -> None:
    made = model()
    records = run(made)
    assert (records["again"].changed, records["again"].what) == (False, "tied to first, done there")
    first, again = made.graph.node("first"), made.graph.node("again")
    assert first.inputs[1] is again.inputs[1]


def test_one_global_threshold_takes_more_from_layers_with_small_weights() -> None:
    made = model()
    records = run(made, scope="global", sparsity=0.5)
    every = np.abs(np.concatenate([weights()[name].ravel() for name in ("w1", "w2")]))
    threshold = np.sort(every)[int(0.5 * every.size) - 1]
    assert records["first"].numbers["threshold"] == threshold
    zeros = [int((held(made, name) == 0).sum()) for name in ("w1", "w2")]
    assert sum(zeros) == int(0.5 * every.size)
    assert zeros[0] / 4096 > 0.6 > 0.3 > zeros[1] / 2048


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_second_run_is_idle(scope: str) -> None:
    made = model()
    run(made, scope=scope)
    kept = {name: held(made, name) for name in ("w1", "w2")}
    again = Prune(scope=scope).call(made, Context())
    assert not again.modified
    for name, values in kept.items():
        np.testing.assert_array_equal(held(made, name), values)


@pytest.mark.parametrize("by_pass", [True, False])
def test_excluded_layers_stay_whether_the_pass_or_the_run_excludes_them(by_pass: bool) -> None:
    made = model()
    records = (
        run(made, exclude="sec.*", min_size=0)
        if by_pass
        else run(made, Context(exclude=("sec.*",)), min_size=0)
    )
    assert (records["second"].changed, records["second"].what) == (False, "excluded")
    np.testing.assert_array_equal(held(made, "w2"), weights()["w2"])
    assert records["first"].changed


@pytest.mark.parametrize("excluded", ["first", "again"])
@pytest.mark.parametrize("by_pass", [True, False])
def test_a_weight_shared_with_an_excluded_layer_stays(by_pass: bool, excluded: str) -> None:
    made = model()
    records = run(made, exclude=excluded) if by_pass else run(made, Context(exclude=(excluded,)))
    assert {records[name].what for name in ("first", "again")} == {
        "its weight is shared with an excluded layer"
    }
    np.testing.assert_array_equal(held(made, "w1"), weights()["w1"])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_tied_layer_gives_the_reason_of_the_first_where_nothing_was_done(scope: str) -> None:
    small = run(model(), scope=scope, min_size=10_000)
    assert small["first"].what == small["again"].what == "too small"
    nothing = run(model(), scope=scope, sparsity=0.0)
    assert nothing["first"].what == nothing["again"].what
    assert not nothing["again"].what.startswith("tied")


def test_a_look_up_table_that_is_a_matrix_too_stays() -> None:
    made = models.model(
        """net (int64[N] i) => (float[N, 64] y) <float[64, 64] table = {}>
        { [embed] x = Gather(table, i) [logits] y = MatMul(x, table) }"""
    )
    records = run(made)
    assert {record.what for record in records.values()} == {"a look-up table, not a linear layer"}
    assert held(made, "table").all()


def test_a_weight_computed_from_constants_stays_and_it_says_so() -> None:
    made = models.model(
        """net (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w = {}>
        { t = Transpose(w) [fc] y = MatMul(x, t) }"""
    )
    records = run(made)
    assert (records["fc"].changed, records["fc"].what) == (False, "its weight is computed by Transpose")


def test_refuses_weights_that_are_not_finite() -> None:
    values = weights()
    values["w1"][3, 4] = np.nan
    with pytest.raises(CompressError, match="w1: the weight holds NaN or infinity"):
        run(model(values))


def test_sparsity_zero_changes_nothing_and_one_clears_everything() -> None:
    made = model()
    assert not Prune(sparsity=0.0).call(made, Context()).modified
    run(made, sparsity=1.0)
    assert not held(made, "w1").any()


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(max_dims=4, max_side=6),
        elements=st.floats(-8, 8, width=16) | st.sampled_from([0.0, 1.0, -1.0]),
    ),
    st.floats(0, 1, exclude_min=True),
)
def test_exactly_the_smallest_go(weight: np.ndarray, share: float) -> None:
    count = max(1, int(share * weight.size))
    pruned = zero_up_to(weight, smallest(weight, count))
    assert (pruned.shape, pruned.dtype) == (weight.shape, weight.dtype)
    zeros = int((weight == 0).sum())
    assert (pruned == 0).sum() == max(count, zeros)
    changed = pruned != weight
    assert not pruned[changed].any()
    assert np.abs(weight[changed]).max(initial=0) <= np.abs(pruned[pruned != 0]).min(initial=np.inf)


def test_without_ties_a_cut_takes_all_at_the_threshold() -> None:
    np.testing.assert_array_equal(
        zero_up_to(np.float32([-2, -1, 0.5, 1, 3]), Cut(1.0)), np.float32([-2, 0, 0, 0, 3])
    )
    np.testing.assert_array_equal(
        zero_up_to(np.float32([-2, -1, 0.5, 1, 3]), Cut(1.0, ties=1)), np.float32([-2, 0, 0, 1, 3])
    )
