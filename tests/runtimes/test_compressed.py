"""MatMul, Gemm and Conv on weights in every format give what they give on expanded ones."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import KINDS, agree, encoded, layer, normal, weight_of

from onnxcompress.formats import ENCODERS

many = settings(max_examples=100, suppress_health_check=list(HealthCheck))
weights = {
    "kind": st.sampled_from(KINDS),
    "pick": st.integers(0, 99),
    "seed": st.integers(0, 99),
    "dtype": st.sampled_from([np.float16, np.float32, np.float64]),
}


@many
@given(
    rows=st.integers(1, 5),
    inner=st.integers(1, 70),
    outer=st.integers(1, 40),
    place=st.sampled_from([0, 1]),
    **weights,
)
def test_matmul_in_every_format(
    rows: int, inner: int, outer: int, place: int, kind: str, pick: int, seed: int, dtype: type
) -> None:
    shape = (inner, outer) if place else (outer, inner)
    made = layer("MatMul", "x w" if place else "w x", weight_of(kind, shape, seed, dtype))
    x = normal((rows, inner) if place else (inner, rows), dtype)
    if encoded(made, pick=pick):
        agree(made, {"x": x})


@many
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)),
    place=st.sampled_from([0, 1]),
    turned=st.tuples(st.booleans(), st.booleans()),
    factors=st.sampled_from([(1.0, 1.0), (0.5, -2.0), (0.0, 1.0)]),
    bias=st.sampled_from([None, (1, 0), (0, 1), (1, 1)]),
    **weights,
)
def test_gemm_in_every_format(
    sizes: tuple[int, int, int],
    place: int,
    turned: tuple[bool, bool],
    factors: tuple[float, float],
    bias: tuple[int, int] | None,
    kind: str,
    pick: int,
    seed: int,
    dtype: type,
) -> None:
    m, k, n = sizes
    shapes = [(k, m) if turned[0] else (m, k), (n, k) if turned[1] else (k, n)]
    weight = weight_of(kind, shapes[place], seed, dtype)
    inputs = ("x w" if place else "w x") + (" c" if bias else "")
    alpha, beta = factors
    made = layer("Gemm", inputs, weight, alpha=alpha, beta=beta, transA=int(turned[0]), transB=int(turned[1]))
    feeds = {"x": normal(shapes[1 - place], dtype)}
    if bias:
        feeds["c"] = normal((m if bias[0] else 1, n if bias[1] else 1), dtype)
    if encoded(made, pick=pick):
        agree(made, feeds)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, object], tuple[int, ...], tuple[int, ...]]:
    """Draw the attributes of Conv, and the shapes of its weight and input."""
    rank = draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    gaps = [draw(st.integers(1, 2)) for _ in range(rank)]
    sizes = [(k - 1) * gap + 1 + draw(st.integers(0, 4)) for k, gap in zip(kernel, gaps, strict=True)]
    group = draw(st.sampled_from([1, 1, 2, 3]))
    inner, outer = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    attributes = {"group": group, "dilations": gaps, "strides": [draw(st.integers(1, 3)) for _ in kernel]}
    if padding == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    else:
        attributes["auto_pad"] = padding
    return attributes, (group * outer, inner, *kernel), (draw(st.sampled_from([1, 3])), group * inner, *sizes)


@many
@given(drawn=convolutions(), bias=st.booleans(), **weights)
def test_conv_in_every_format(
    drawn: tuple[dict[str, object], tuple[int, ...], tuple[int, ...]],
    bias: bool,
    kind: str,
    pick: int,
    seed: int,
    dtype: type,
) -> None:
    attributes, shape, x = drawn
    made = layer("Conv", "x w b" if bias else "x w", weight_of(kind, shape, seed, dtype), **attributes)
    feeds = {"x": normal(x, dtype)} | ({"b": normal(shape[:1], dtype)} if bias else {})
    if encoded(made, pick=pick):
        agree(made, feeds)


@pytest.mark.parametrize("word", list(ENCODERS))
def test_every_format_is_there_among_the_drawn_ones(word: str) -> None:
    for kind in KINDS:
        made = layer("MatMul", "x w", weight_of(kind, (64, 48), 1))
        if encoded(made, word=word):
            agree(made, {"x": normal((3, 64))})
            return
    pytest.fail(f"no weight is stored as {word}")


@pytest.mark.parametrize("kind", ["sparse, few", "few", "ternary by channel", "binary", "powers"])
@pytest.mark.parametrize(
    ("weight", "x", "inputs"),
    [
        ((30, 20), (2, 3, 4, 30), "x w"),
        ((30, 20), (30,), "x w"),
        ((30,), (4, 5, 30), "x w"),
        ((30,), (30,), "x w"),
        ((3, 30, 20), (2, 3, 4, 30), "x w"),
        ((3, 30, 20), (5, 30), "x w"),
        ((3, 30, 20), (30,), "x w"),
        ((2, 1, 30, 20), (3, 5, 30), "x w"),
        ((2, 3, 30, 20), (2, 1, 5, 30), "x w"),
        ((1, 30, 20), (4, 5, 30), "x w"),
        ((20, 30), (2, 3, 30, 4), "w x"),
        ((20, 30), (30,), "w x"),
        ((30,), (4, 30, 5), "w x"),
        ((30,), (30,), "w x"),
        ((3, 20, 30), (2, 3, 30, 4), "w x"),
        ((2, 1, 20, 30), (3, 30, 5), "w x"),
    ],
)
def test_matmul_with_operands_of_any_rank(
    kind: str, weight: tuple[int, ...], x: tuple[int, ...], inputs: str
) -> None:
    made = layer("MatMul", inputs, weight_of(kind, weight, 3))
    for word in ENCODERS:
        if encoded(made, word=word):
            agree(made, {"x": normal(x)})
            return
    pytest.fail("no format stores it")


def test_a_batch_of_any_size_even_none_runs() -> None:
    made = layer("MatMul", "x w", weight_of("sparse, few", (64, 48), 1))
    assert encoded(made)
    for batch in (0, 1, 7):
        agree(made, {"x": normal((batch, 64))})
    made = layer("Conv", "x w", weight_of("sparse, few", (8, 8, 3, 3), 1))
    assert encoded(made)
    for batch in (0, 1, 7):
        agree(made, {"x": normal((batch, 8, 5, 5))})
