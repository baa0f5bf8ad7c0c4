from itertools import combinations, pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.kmeans import METHODS, codebook, cuts, lloyd, means, prefix_sums, shared

DTYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]


def squared_error(numbers: np.ndarray, edges: np.ndarray | tuple[int, ...]) -> float:
    parts = [numbers[begin:end] for begin, end in pairwise(edges)]
    return float(sum(((part - part.mean()) ** 2).sum() for part in parts))


def code_length(edges: np.ndarray | tuple[int, ...]) -> float:
    counts = np.diff(edges)
    return float(-counts @ np.log2(counts / counts.sum()))


def clusterings(numbers: np.ndarray, count: int) -> list[tuple[int, ...]]:
    inner = [place for place in range(1, numbers.size) if numbers[place] != numbers[place - 1]]
    return [
        (0, *chosen, numbers.size)
        for more in range(min(count, len(inner) + 1))
        for chosen in combinations(inner, more)
    ]


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
        elements=st.floats(-8, 8, width=16) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 6e-8]),
    ),
    st.integers(1, 4),
    st.sampled_from(METHODS),
)
def test_few_values_stand_for_all_and_zeros_stay_zero(array: np.ndarray, bits: int, method: str) -> None:
    book = codebook(array, 2**bits, method)
    result = shared(array, book)
    assert (result.shape, result.dtype) == (array.shape, array.dtype)
    assert not result[array == 0].any()
    values, counts = np.unique(result, return_counts=True)
    assert len(values) <= book.count <= 2**bits
    assert book.exact == (len(np.unique(array)) <= 2**bits) == (result == array).all()
    if len(values) == book.count:  # a mean may be zero
        shares = counts / max(1, counts.sum())
        assert book.entropy == pytest.approx(-(shares * np.log2(shares)).sum())
    assert codebook(result, 2**bits, method).exact


@given(
    hnp.arrays(np.float64, st.integers(1, 9), elements=st.integers(-9, 9) | st.floats(-8, 8, width=16)),
    st.integers(1, 5),
    st.sampled_from([1e-200, 1.0, 1e200]),
)
def test_optimal_is_as_good_as_the_best_of_all_clusterings(
    array: np.ndarray, count: int, scale: float
) -> None:
    numbers = np.sort(array)
    best = min(squared_error(numbers, edges) for edges in clusterings(numbers, count))
    found = cuts(prefix_sums(numbers * scale), count, "optimal")
    assert squared_error(numbers, found) <= best + 1e-9


def test_entropy_is_as_good_as_the_best_of_all_clusterings() -> None:
    numbers = np.sort(np.random.default_rng(0).standard_normal(12))
    least = min(squared_error(numbers, edges) for edges in clusterings(numbers, 6))
    for price in (0.2, 1.0, 3.0):
        bit = price * 2 * np.log(2) * least / numbers.size
        costs = [
            squared_error(numbers, edges) + bit * code_length(edges) for edges in clusterings(numbers, 6)
        ]
        found = cuts(prefix_sums(numbers), 6, "entropy", price)
        cost = squared_error(numbers, found) + bit * code_length(found)
        assert cost == pytest.approx(min(costs), rel=1e-9)


def test_optimal_and_entropy_do_what_they_are_for_on_many_weights() -> None:
    array = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    books = {method: codebook(array, 32, method) for method in METHODS}
    errors = {
        method: float(np.mean((shared(array, book).astype(float) - array) ** 2))
        for method, book in books.items()
    }
    assert min(errors, key=lambda method: errors[method]) == "optimal"
    assert min(books, key=lambda method: books[method].entropy) == "entropy"
    wider = codebook(array, 32, "entropy", 3.0)
    assert wider.entropy < books["entropy"].entropy
    assert codebook(array, 32, "entropy", 0.0).entropy == pytest.approx(books["optimal"].entropy, abs=0.02)


def test_the_optimum_on_normal_numbers_is_that_of_max() -> None:
    """Max, Quantizing for Minimum Distortion, IRE Trans. Information Theory 6(1), 1960, table I: 8 levels."""
    array = np.random.default_rng(1).standard_normal(1_000_000)
    book = codebook(array, 8, "optimal")
    np.testing.assert_allclose(
        book.values, [-2.152, -1.344, -0.7560, -0.2451, 0.2451, 0.7560, 1.344, 2.152], atol=0.02
    )
    np.testing.assert_allclose(np.mean((shared(array, book) - array) ** 2), 0.03454, atol=2e-4)


def test_lloyd_ends_where_each_number_is_nearest_to_the_mean_of_its_cluster() -> None:
    numbers = np.sort(np.random.default_rng(0).standard_normal(5000))
    points = prefix_sums(numbers)
    edges = lloyd(points, np.linspace(numbers[0], numbers[-1], 16), 0.0)
    centres = means(points, edges)
    nearest = np.abs(numbers[:, None] - centres).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.repeat(np.arange(len(centres)), np.diff(edges)))
    np.testing.assert_allclose(centres, [numbers[nearest == each].mean() for each in range(len(centres))])


def test_linear_leaves_out_centres_that_stand_for_nothing() -> None:
    array = np.float32([-100, *np.linspace(0.5, 1, 50), 100])
    book = codebook(array, 16, "linear")
    assert book.count == len(np.unique(shared(array, book))) < 16
    assert codebook(array, 16, "optimal").count == 16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_have_the_weights_dtype_and_lie_within_their_clusters(dtype: type, method: str) -> None:
    array = np.random.default_rng(0).standard_normal((50, 40)).astype(dtype)
    array[:5] = 0
    book = codebook(array, 16, method)
    result = shared(array, book)
    assert book.values.dtype == result.dtype == array.dtype
    assert book.count <= 16
    for value in np.unique(result[array != 0]):
        own = array[result == value].astype(np.float64)
        assert own.min() <= float(value) <= own.max()
    ascending = result[array != 0][np.argsort(array[array != 0])].astype(np.float64)
    assert (np.diff(ascending) >= 0).all()


def test_one_huge_weight_takes_no_digits_from_the_others() -> None:
    small = np.float32([1, 1, 2, 2, 3, 3.5]) * np.float32(1e-3)
    for huge in (np.float32(-1e30), np.float32(1e30)):
        array = np.append(small, huge)
        result = shared(array, codebook(array, 5, "density"))
        assert result[-1] == huge
        assert np.abs(result[:-1] - small).max() <= 0.6e-3
        np.testing.assert_array_equal(result[:4], small[:4])


def test_the_same_weights_in_any_order_give_the_same_values() -> None:
    array = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    for method in METHODS:
        first, second = codebook(array, 16, method), codebook(array[::-1].reshape(30, 100), 16, method)
        np.testing.assert_array_equal(first.values, second.values)
        np.testing.assert_array_equal(first.boundaries, second.boundaries)


def test_a_number_of_importance_n_counts_like_n_equal_numbers() -> None:
    draw = np.random.default_rng(3)
    numbers, times = draw.standard_normal(300), draw.integers(1, 6, 300)
    weighted = codebook(numbers, 8, "optimal", importance=times.astype(np.float32))
    repeated = codebook(np.repeat(numbers, times), 8, "optimal")
    np.testing.assert_allclose(weighted.values, repeated.values)
    np.testing.assert_array_equal(weighted.boundaries, repeated.boundaries)


def test_what_is_important_is_kept_more_exactly() -> None:
    numbers = np.random.default_rng(4).standard_normal(4000)
    importance = np.where(numbers > 1, 100.0, 1.0)
    for method in ("linear", "density", "optimal"):
        plain, heavy = codebook(numbers, 8, method), codebook(numbers, 8, method, importance=importance)
        errors = [(shared(numbers, book) - numbers) ** 2 for book in (plain, heavy)]
        assert errors[1] @ importance < errors[0] @ importance, method


def test_importance_leaves_zeros_zero() -> None:
    draw = np.random.default_rng(5)
    numbers = np.where(draw.random(1000) < 0.5, 0, draw.standard_normal(1000))
    book = codebook(numbers, 16, importance=draw.random(1000) + 0.1)
    result = shared(numbers, book)
    np.testing.assert_array_equal(result == 0, numbers == 0)
    assert book.count == 16
