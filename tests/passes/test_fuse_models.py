import light
import models
import numpy as np
import onnx_ir as ir
import pytest
from fused import TESTDATA, fuse, image, operators
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress import Context
from onnxcompress.model import clone, load
from onnxcompress.passes import Fuse
from onnxcompress.passes.simplify import census


def random_conv(draw: st.DrawFn, name: str, given: str, channels: int, dims: int) -> tuple[str, str, int]:
    """Draw a Conv of `given`, which has `channels`; return its text, its weights' text and its channels."""
    groups = draw(st.sampled_from([each for each in (1, 2, 4) if channels % each == 0]))
    outputs = groups * draw(st.integers(1, 4 // groups))

    def ints(low: int, high: int, count: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    sizes, pads = ints(1, 3, dims), draw(st.sampled_from([[0] * 2 * dims, ints(0, 2, 2 * dims)]))
    attributes = f"group={groups}, strides={ints(1, 2, dims)}, dilations={ints(1, 2, dims)}, pads={pads}"
    shape = ", ".join(map(str, [outputs, channels // groups, *sizes]))
    weights, biased = f"float[{shape}] w_{name} = {{}}", draw(st.booleans())
    if biased:
        weights += f", float[{outputs}] b_{name} = {{}}"
    bias = f", b_{name}" if biased else ""
    return f"{name} = Conv<{attributes}>({given}, w_{name}{bias})", weights, outputs


@st.composite
def chains(draw: st.DrawFn) -> ir.Model:
    """Draw a network of two or three convolutions in a row, in one or two dimensions."""
    dims, channels, given = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4])), "x"
    spatial = [draw(st.integers(29, 32)) for _ in range(dims)]
    inputs, texts, weights = ", ".join(map(str, ["N", channels, *spatial])), [], []
    for name in ("a", "c", "y")[draw(st.integers(0, 1)) :]:
        text, more, channels = random_conv(draw, name, given, channels, dims)
        texts.append(text)
        weights.append(more)
        given = name
    dims_out = ", ".join("NCHW"[: dims + 2])
    body = "\n".join(texts)
    return models.model(
        f"net (float[{inputs}] x) => (float[{dims_out}] y) <{', '.join(weights)}> {{ {body} }}"
    )


@settings(max_examples=150)
@given(chains(), st.sampled_from(["always", "cheaper"]))
def test_any_chain_of_convolutions_computes_the_same(made: ir.Model, when: str) -> None:
    count = len(list(made.graph))
    records = fuse(made, when)
    merged = sum(record.changed for record in records)
    assert len(list(made.graph)) == count - merged
    assert len(records) == count - 1  # each pair was merged, or is said not to be


@st.composite
def branches(draw: st.DrawFn) -> ir.Model:
    """Draw a network of two or three convolutions of one input, added up or concatenated."""
    stride, spare, joint = draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.booleans())
    texts, weights, values = [], [], ["a", "c", "d"][: draw(st.integers(2, 3))]
    for name in values:
        groups, biased = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
        outputs = 4 if joint else groups * draw(st.integers(1, 2))
        front, back, sizes, dilations = [], [], [], []
        for _ in range(2):
            size, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            reach = dilation * (size - 1)
            front.append(draw(st.integers(0, reach + spare)))
            back.append(reach + spare - front[-1])
            sizes.append(size)
            dilations.append(dilation)
        weights.append(f"float[{outputs}, {4 // groups}, {sizes[0]}, {sizes[1]}] w_{name} = {{}}")
        if biased:
            weights.append(f"float[{outputs}] b_{name} = {{}}")
        texts.append(
            f"{name} = Conv<group={groups}, strides=[{stride}, {stride}], dilations={dilations}, "
            f"pads={front + back}>(x, w_{name}{f', b_{name}' if biased else ''})"
        )
    if joint and stride == 1 and spare == 0 and draw(st.booleans()):
        values.insert(draw(st.integers(0, len(values))), "x")
    join = "Sum" if joint else "Concat<axis=1>"
    return image("\n".join(texts) + f" y = {join}({', '.join(values)})", ", ".join(weights))


@settings(max_examples=100)
@given(branches())
def test_any_branches_of_one_input_become_one_convolution(made: ir.Model) -> None:
    fuse(made)
    assert operators(made) == "Conv"


def test_of_the_factorised_digits_the_pair_without_bias_and_bend_is_merged() -> None:
    made = load(TESTDATA / "factorised_digits.onnx")
    records = {record.layer: record for record in fuse(made)}
    assert census(made)["Conv"] == 6
    assert records["/linear_3x1/Conv"].changed
    assert not records["/biased_3x1/Conv"].changed
    assert records["/biased_3x1/Conv"].what.startswith("border")
    assert "/bent_3x1/Conv" not in records


@pytest.mark.parametrize("when", ["cheaper", "always"])
@pytest.mark.parametrize("name", sorted(path.stem for path in TESTDATA.glob("*.onnx")))
def test_every_test_model_computes_the_same_and_has_no_batch_norm_left(name: str, when: str) -> None:
    made = load(TESTDATA / f"{name}.onnx")
    fuse(made, when)
    assert census(made)["BatchNormalization"] == 0


WIDTH = {"shufflenet": 1}  # groups of 34 channels can't be narrowed by four


@pytest.mark.parametrize("name", light.NAMES)
def test_of_every_architecture_all_batch_norms_behind_convolutions_are_folded(name: str) -> None:
    made = load(light.raised(light.build(name, WIDTH.get(name, 4)), 13))
    behind = sum(
        node.op_type == "BatchNormalization" and node.inputs[0].producer().op_type == "Conv"
        for node in made.graph
    )
    before = census(made)
    result = Fuse().call(clone(made), Context())
    after = census(result.model)
    assert before["BatchNormalization"] - after["BatchNormalization"] == behind
    told = [record for record in result.records if record.numbers.get("operator") == "BatchNormalization"]
    assert len(told) == after["BatchNormalization"]
    fuse(made)


@pytest.mark.parametrize(
    ("kind", "tolerance", "body", "after"),
    [
        ("float16", 1e-2, "a = MatMul(x, v) b = Mul(a, s) y = MatMul(b, w)", "MatMul"),
        ("double", 1e-9, "a = MatMul(x, v) b = Add(a, s) y = Gemm(b, w, c)", "Gemm"),
    ],
)
def test_other_float_types_are_computed_in_float64_and_stored_as_they_were(
    kind: str, tolerance: float, body: str, after: str
) -> None:
    dtype = np.dtype(kind)
    shapes = {"v": (8, 3), "w": (3, 5), "s": (3,), "c": (5,)}
    arrays = {
        name: np.random.default_rng(7).normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }
    used = {name: array for name, array in arrays.items() if name in "vws" or "c)" in body}
    made = models.model(f"net ({kind}[N, 8] x) => ({kind}[N, 5] y) {{ {body} }}", used)
    fuse(made, tolerance=tolerance)
    assert operators(made) == after
    assert {value.dtype for value in made.graph.initializers.values()} == {ir.DataType.from_numpy(dtype)}
