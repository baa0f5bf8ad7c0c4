import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.factors import METHODS, Depthwise, Method, Separable, Svd, Tucker, TwoKernels
from onnxcompress.lowrank import balanced, components, energy, kept, leading, regress, shifted
from onnxcompress.windows import conv

SHAPES = [
    (8, 3),
    (3, 8),
    (5, 5),
    (7, 5, 3, 3),
    (6, 4, 5, 5),
    (5, 4, 3),
    (4, 4, 5),
    (3, 4, 2, 3),
    (3, 2, 3, 2, 2),
]
CASES = [(kind, shape) for shape in SHAPES for kind in METHODS if kind.fits(shape)]


def weight(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def correlated(size: int, seed: int = 1) -> np.ndarray:
    """Second moments of inputs most of which lies in few directions."""
    draw = np.random.default_rng(seed)
    mixed = draw.standard_normal((400, size)) @ (
        draw.standard_normal((size, size)) * 0.7 ** np.arange(size)[:, None]
    )
    return mixed.T @ mixed / 400 + 0.01 * np.eye(size)


def made(kind: type[Method], shape: tuple[int, ...], data: bool) -> Method:
    values = weight(shape)
    return kind(values, correlated(values[0].size) if data else None)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_full_rank_is_exact_and_kernels_have_the_shapes_foretold(
    kind: type[Method], shape: tuple[int, ...], data: bool
) -> None:
    method = made(kind, shape, data)
    for ranks in (method.ladder[0], method.ladder[-1]):
        kernels, product = method.kernels(ranks)
        assert [each.shape for each in kernels] == method.shapes(ranks)
        assert method.kept(ranks) == pytest.approx(kept(method.matrix, product, method.gram), abs=1e-9)
    np.testing.assert_allclose(product, method.matrix, atol=1e-6)
    assert method.kept(method.ladder[-1]) == pytest.approx(1)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_more_rank_costs_more_and_keeps_no_less(
    kind: type[Method], shape: tuple[int, ...], data: bool
) -> None:
    method = made(kind, shape, data)
    sizes = [sum(int(np.prod(each)) for each in method.shapes(ranks)) for ranks in method.ladder]
    assert np.diff(sizes).min(initial=1) > 0
    if not data or kind is not Tucker:  # its iteration knows the moments of channels, not those of windows
        assert np.diff([method.kept(ranks) for ranks in method.ladder]).min(initial=0) > -1e-9


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_the_second_moments_lower_the_error_in_the_outputs(
    kind: type[Method], shape: tuple[int, ...]
) -> None:
    plain, aware = made(kind, shape, False), made(kind, shape, True)
    ranks = plain.ladder[min(1, len(plain.ladder) // 3)]
    blind = kept(plain.matrix, plain.kernels(ranks)[1], aware.gram)
    assert kept(plain.matrix, aware.kernels(ranks)[1], aware.gram) > blind + 1e-3


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_a_weighted_svd_is_the_best_there_is_of_its_rank(shape: tuple[int, int]) -> None:
    matrix, gram = weight(shape), correlated(shape[1])
    values = np.linalg.svd(matrix @ np.linalg.cholesky(gram), compute_uv=False) ** 2
    found = components(matrix, gram)
    np.testing.assert_allclose(found.energies[: len(values)], values, rtol=1e-8, atol=1e-8)
    outer, inner = found.pair(4)
    assert energy(matrix - outer @ inner, gram) == pytest.approx(values[4:].sum(), rel=1e-6)
    assert found.whole == pytest.approx(values.sum())


def test_the_moments_of_the_outputs_do_instead_of_those_of_the_inputs() -> None:
    matrix, gram = weight((10, 40)), correlated(40)
    known, other = components(matrix, gram), components(matrix, covariance=matrix @ gram @ matrix.T)
    np.testing.assert_allclose(known.energies, other.energies, rtol=1e-9)
    np.testing.assert_allclose(np.matmul(*known.pair(3)), np.matmul(*other.pair(3)), atol=1e-9)


def test_a_weight_of_low_rank_is_found_again() -> None:
    draw = np.random.default_rng(3)
    low = draw.standard_normal((40, 6)) @ draw.standard_normal((6, 90))
    assert Svd(low).kept((6,)) == pytest.approx(1)
    assert Svd(low).kept((5,)) < 1 - 1e-3
    np.testing.assert_allclose(Svd(low).kernels((6,))[1], low, atol=1e-10)
    vertical, horizontal = draw.standard_normal((2, 6, 3, 1)), draw.standard_normal((5, 2, 1, 3))
    separable = np.einsum("rchx,orxw->ochw", vertical, horizontal)
    np.testing.assert_allclose(Separable(separable).kernels((2,))[1], separable.reshape(5, -1), atol=1e-10)
    core = np.einsum("or,rsp,sc->ocp", weight((8, 3)), weight((3, 2, 9)), weight((2, 7)))
    tucker = Tucker(core.reshape(8, 7, 3, 3))
    assert (2, 3) in [ranks for ranks in tucker.ladder if tucker.kept(ranks) > 1 - 1e-9]
    depthwise = np.einsum("oc,cp->ocp", weight((6, 4)), weight((4, 9))).reshape(6, 4, 3, 3)
    assert Depthwise(depthwise).kept((1,)) == pytest.approx(1)


def test_two_kernels_of_three_are_found_again_and_make_one_of_five() -> None:
    first, last = weight((2, 3, 3, 3)), weight((4, 2, 3, 3))
    whole = (last.reshape(4, -1) @ shifted(first.reshape(2, 3, -1))).reshape(4, 3, 5, 5)
    x = weight((1, 3, 9, 8), 5)
    np.testing.assert_allclose(conv(conv(x, first), last), conv(x, whole), atol=1e-9)
    assert TwoKernels(whole).kept((2,)) > 0.999


def test_leading_eigenvectors_hold_nearly_as_much_as_the_best() -> None:
    draw = np.random.default_rng(6)
    basis = np.linalg.qr(draw.standard_normal((300, 300)))[0]
    for values, lost in (
        (1 / np.arange(1, 301) ** 2, 1e-6),
        (1 / np.arange(1, 301), 1e-3),
        (np.ones(300), 1e-9),
    ):
        found, vectors = leading((basis * values) @ basis.T, 30)
        assert (1 - lost) * values[:30].sum() <= found.sum() <= values[:30].sum() + 1e-9
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(30), atol=1e-9)


def test_a_large_matrix_of_low_rank_is_found_from_its_leading_eigenvectors() -> None:
    low = (weight((1200, 20)) @ weight((20, 1300), 1)).astype(np.float32)
    found = components(low, count=20)
    assert len(found.energies) == 20
    np.testing.assert_allclose(np.matmul(*found.pair(20)), low, atol=1e-4)


def test_regression_takes_what_is_singular() -> None:
    inner = np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]])
    matrix = np.array([[3.0, 6.0, 1.0]])
    np.testing.assert_allclose(regress(matrix, inner) @ inner, [[3.0, 6.0, 0.0]], atol=1e-6)
    assert not regress(matrix, np.zeros((2, 3))).any()


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))
def test_balancing_keeps_the_product(outputs: int, inputs: int, rank: int, seed: int) -> None:
    outer, inner = weight((outputs, rank), seed) * 1e3, weight((rank, inputs), seed + 1)
    inner[: rank // 2] = 0
    found = balanced(outer, inner)
    np.testing.assert_allclose(found.outer @ found.inner, outer @ inner, atol=1e-9)
    alive = slice(rank // 2, None)
    np.testing.assert_allclose(
        np.linalg.norm(found.outer, axis=0)[alive], np.linalg.norm(found.inner, axis=1)[alive]
    )
